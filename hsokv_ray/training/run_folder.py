"""The folder of a run: where its files lie, which configuration it belongs to, and that one driver writes it."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hsokv_ray import env
from hsokv_ray.config import differences, dump_yaml, load_yaml
from hsokv_ray.errors import ConfigError
from hsokv_ray.folder_lock import hold
from hsokv_ray.training.config import RunConfig, TrainHMSTConfig

INCIDENTAL = frozenset(
    {
        "data.hf_cache_dir",
        "data.hf_num_workers",
        "data.hf_token_env",
        "model.experts_implementation",
        "run.output_dir",
        "run.name",
        "run.eval_every",
        "run.patience",
        "run.save_every",
        "run.keep",
        "run.log_every",
        "run.cpus_per_worker",
        "run.data_cpus",
        "run.use_gpu",
        "run.gpu_ids",
        "run.gradient_checkpointing",
        "run.compile",
        "run.parallel",
        "run.expert_parallel_size",
        "run.max_failures",
        "run.dry_run",
    }
)
"""Fields that may change between two starts of one run: they do not move its loss curve, rounding aside."""


class RunFolder:
    """The paths of one run, and the claim a driver has on it.

    Args:
        path: the run's own folder; relative ones are made absolute, because Ray's workers change directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.plot = self.path / "loss.png"
        self.model_card = self.path / "README.md"
        self.plan = self.path / "plan.json"
        self.held_out = self.path / "held_out.safetensors"
        self.baselines = self.path / "baselines.json"
        self.checkpoints = self.path / "checkpoints"
        self.tokenizer = self.path / "tokenizer"
        self.tensorboard = self.path / "tensorboard"

    @classmethod
    def of(cls, run: RunConfig) -> "RunFolder":
        """Return the folder that the `run` section names. Raises `ConfigError` where the name is not one folder."""
        if run.name in ("", ".", "..") or "/" in run.name:
            raise ConfigError(f"--name: got {run.name!r}; give one folder's name without '/'")
        return cls((Path(run.output_dir) if run.output_dir else env.runs_dir()) / run.name)

    @contextlib.contextmanager
    def claim(self, config: TrainHMSTConfig) -> Iterator[None]:
        """Hold the run for this process; the first claim writes config.yaml, later ones must agree with it.

        Raises:
            ConfigError: the run was started with another configuration; names the differing fields.
            RunError: the folder cannot be written, or another process holds the run.
        """
        with hold(self.path):
            self._agree(config)
            yield

    def _agree(self, config: TrainHMSTConfig) -> None:
        if not self.config.exists():
            temporary = self.config.with_suffix(".tmp")
            temporary.write_text(dump_yaml(config), encoding="utf-8")
            temporary.replace(self.config)
            return
        rows = differences(defining(load_yaml(TrainHMSTConfig, self.config)), defining(config))
        if rows:
            raise ConfigError(
                f"{self.path} holds a run with another configuration: {'; '.join(rows)} (old -> new); "
                "give the old values to resume it, or another --name to start a new run"
            )


def defining(config: TrainHMSTConfig) -> dict[str, Any]:
    """Return the values that decide the loss curve of a run, by section.

    Workers, batch size and accumulation may change as long as their product, the blocks of one step, does not.
    """
    values = config.model_dump(mode="json")
    for name in INCIDENTAL:
        section, field = name.split(".")
        del values[section][field]
    optim = values["optim"]
    del optim["use_8bit_optimizer"]
    optim["optimizer"] = config.optim.optimizer_name
    optim["batch_size x gradient_accumulation_steps x run.num_workers"] = (
        optim.pop("batch_size") * optim.pop("gradient_accumulation_steps") * values["run"].pop("num_workers")
    )
    return values


def fingerprint(config: TrainHMSTConfig) -> str:
    """Return 16 hex digits that two configurations share exactly when they define the same run."""
    text = json.dumps(defining(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
