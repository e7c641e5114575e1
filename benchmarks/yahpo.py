"""YAHPO Gym's lcbench: learning curves of 34 OpenML tasks as one surrogate network, read with onnxruntime alone.

The surrogate (slds-lmu/yahpo_data, Apache-2.0; lcbench: Zimmer et al. 2021) takes task, epoch 1..52 and 7 settings and
returns, among others, validation accuracy in percent. The package `yahpo_gym` itself is not needed.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from hsokv_ray.errors import DataError
from hsokv_ray.swarm.space import Float, Int, LogFloat, LogInt, Space, Strategy

EPOCHS = 52
VAL_ACCURACY = 1
"""Column of the surrogate's output."""
SPACE = Space(
    {
        "batch_size": LogInt(16, 512),
        "learning_rate": LogFloat(1e-4, 1e-1),
        "momentum": Float(0.1, 0.99),
        "weight_decay": Float(1e-5, 1e-1),
        "num_layers": Int(1, 5),
        "max_units": LogInt(64, 1024),
        "max_dropout": Float(0.0, 1.0),
    }
)
"""As in config_space.json, and in the order in which the surrogate takes them, after the epoch."""


class LCBench:
    """The surrogate of all tasks.

    Args:
        folder: holds model.onnx, encoding.json and config_space.json.

    Raises:
        DataError: it does not.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "model.onnx").exists():
            raise DataError(f"{folder}: got no model.onnx; get lcbench of github.com/slds-lmu/yahpo_data")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(folder / "model.onnx", options)
        self._codes = json.loads((folder / "encoding.json").read_text())["OpenML_task_id"]
        settings = json.loads((folder / "config_space.json").read_text())["hyperparameters"]
        self.tasks: list[str] = next(s["choices"] for s in settings if s["name"] == "OpenML_task_id")

    def accuracies(self, tasks: Sequence[str], strategies: Sequence[Strategy], epochs: Sequence[int]) -> np.ndarray:
        """Return validation accuracies in percent, float64 [n], of n strategies on their tasks after their epochs."""
        codes = np.array([[self._codes[task]] for task in tasks], np.int32)
        rows = [[epoch, *(s[name] for name in SPACE.domains)] for s, epoch in zip(strategies, epochs, strict=True)]
        output = self._session.run(None, {"x_cat": codes, "x_cont": np.array(rows, np.float32)})[0]
        return np.asarray(output)[:, VAL_ACCURACY].astype(np.float64)
