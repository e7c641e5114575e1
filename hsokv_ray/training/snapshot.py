"""What a checkpoint holds, as files: weights and configuration any Hugging Face tool loads, and what resuming needs."""

import base64
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig

from hsokv_ray.errors import CheckpointError
from hsokv_ray.manifest import verify_manifest

WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "trainer_state.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run at the end of one optimiser step."""

    step: int
    """Optimiser steps finished."""

    model: dict[str, Tensor]
    """CPU weights under the names of the single-process model."""

    optimizer: dict[str, Any]
    """Optimiser state by flat name (`state.<parameter>.exp_avg`): CPU tensors, numbers, tuples of numbers, None."""

    state: dict[str, Any]
    """Whatever else resuming needs, as JSON values: progress, data cursor, fingerprint of the configuration."""

    rng_state: Tensor
    """`torch.get_rng_state()`, uint8."""

    model_config: PreTrainedConfig | None = None
    """Written as config.json and generation_config.json; not read back."""

    tokenizer: Path | None = None
    """Folder whose files are copied beside the weights; not read back."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors."""
        tensors = [*self.model.values(), *(v for v in self.optimizer.values() if isinstance(v, Tensor))]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def write_snapshot(snapshot: Snapshot, folder: Path) -> None:
    """Write the files of `snapshot` into the existing `folder`; no manifest.

    Raises:
        OSError: the disk refuses.
        SafetensorError: the disk refuses a tensor file.
    """
    moments = {name: value for name, value in snapshot.optimizer.items() if isinstance(value, Tensor)}
    aliases = _aliases(snapshot.model) | _aliases(moments)
    for name, tensors in ((WEIGHTS, snapshot.model), (OPTIMIZER, moments)):
        stored = {key: tensor.contiguous() for key, tensor in tensors.items() if key not in aliases}
        save_file(stored, folder / name, metadata={"format": "pt"})
    values = {
        "format": FORMAT,
        "step": snapshot.step,
        "state": snapshot.state,
        "rng_state": base64.b64encode(snapshot.rng_state.numpy().tobytes()).decode("ascii"),
        "optimizer_values": {k: v for k, v in snapshot.optimizer.items() if k not in moments},
        "aliases": aliases,
    }
    (folder / STATE).write_text(json.dumps(values, indent=1, allow_nan=False), encoding="utf-8")
    if snapshot.model_config is not None:
        snapshot.model_config.save_pretrained(folder)
        GenerationConfig.from_model_config(snapshot.model_config).save_pretrained(folder)
    if snapshot.tokenizer is not None:
        shutil.copytree(snapshot.tokenizer, folder, dirs_exist_ok=True)


def read_snapshot(folder: Path) -> Snapshot:
    """Return the snapshot in `folder` after every file was found unchanged.

    Raises:
        CheckpointError: the folder was never finished, a file is damaged, or another version wrote it.
    """
    verify_manifest(folder)
    try:
        values = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise CheckpointError(f"{folder}: {STATE} has format {values['format']!r}; this version reads {FORMAT}")
        model, optimizer = load_file(folder / WEIGHTS), load_file(folder / OPTIMIZER)
        for alias, name in values["aliases"].items():
            tensors = model if name in model else optimizer
            tensors[alias] = tensors[name]
        scalars = {k: tuple(v) if isinstance(v, list) else v for k, v in values["optimizer_values"].items()}
        return Snapshot(
            step=values["step"],
            model=model,
            optimizer=optimizer | scalars,
            state=values["state"],
            rng_state=torch.frombuffer(bytearray(base64.b64decode(values["rng_state"])), dtype=torch.uint8),
        )
    except (KeyError, OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is not a training checkpoint ({error!r}); use another one") from None


def _aliases(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Return the second and later names of what several names share (tied weights, 8-bit tables), to its first."""
    first: dict[tuple[Any, ...], str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        first.setdefault(key, name)
    return aliases
