"""HMST's training job as trials: the job's own loop, in the trial's process, over settings the swarm chooses.

    job = TrainHMSTConfig(optim=OptimConfig(max_steps=400))
    space = {"optim": {"learning_rate": tune.loguniform(1e-4, 1e-2), "weight_decay": tune.uniform(0.0, 0.2)}}
    tuner = tune.Tuner(
        tune.with_resources(hmst_trainable(job, report_every=50), {"CPU": 1}),
        tune_config=tune.TuneConfig(
            metric="val_loss", mode="min", num_samples=-1, scheduler=SwarmScheduler(),
            search_alg=SwarmSearcher(space, SwarmConfig(max_steps=400, interval_steps=50), time_attr="step"),
        ),
    )

Source, tokenizer and held-out blocks are prepared once, in the job's run folder, which every node must see. A trial is
one process without Ray Train, so it needs the CPU or GPU it computes on and no other.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.utils.util import merge_dicts

from hsokv_ray.errors import ConfigError
from hsokv_ray.manifest import read_manifest
from hsokv_ray.training.build import build_trainer
from hsokv_ray.training.checkpoint import CheckpointStore
from hsokv_ray.training.config import TrainHMSTConfig
from hsokv_ray.training.loop import Trainer
from hsokv_ray.training.place import Place, use_bf16, worker_device
from hsokv_ray.training.prepare import prepare
from hsokv_ray.training.run_folder import RunFolder

_NOT_PREPARED = ("checkpoints", "tensorboard", "metrics.jsonl", ".lock", "ray")


def hmst_trainable(job: TrainHMSTConfig, *, report_every: int) -> Any:
    """Prepare the job's data and return a trainable for Tune.

    It reports "step", "loss", "val_loss" (nats per token on the held-out blocks) and "flops" since the last report,
    each with a checkpoint. A search space names settings as the job does ("optim": {"learning_rate": ...}); of those a
    model that is taken over keeps none: rate, schedule and weight decay are the new strategy's.

    Args:
        job: what all trials share; its folder takes the prepared data.
        report_every: optimiser steps between two reports.

    Raises:
        ConfigError: no number of steps is given, more than one worker is asked for, or nothing is held out.
        DataError: as `prepare`.
    """
    if job.optim.max_steps is None:
        raise ConfigError("hmst_trainable: got no --max-steps; give it, and the same as SwarmConfig's max_steps")
    if job.run.num_workers != 1:
        raise ConfigError(f"hmst_trainable: got --num-workers {job.run.num_workers}; a trial is 1 process")
    folder = RunFolder.of(job.run)
    with folder.claim(job):
        prepared = prepare(job, folder, say=lambda line: None)
    if not prepared.baselines.num_held_out_tokens:
        raise ConfigError("hmst_trainable: nothing is held out to compare trials on; give --val-split or --val-file")
    length = prepared.length
    return tune.with_parameters(
        train_hmst,
        job=job.model_dump(mode="json"),
        folder=str(folder.path),
        length={"max_steps": length.max_steps, "step_limit": length.step_limit, "epochs": length.epochs},
        report_every=report_every,
    )


def train_hmst(
    config: dict[str, Any], *, job: dict[str, Any], folder: str, length: dict[str, Any], report_every: int
) -> None:
    """Train one trial's model, from the trial's checkpoint on where it has one."""
    run = {"eval_every": report_every, "save_every": report_every, "keep": 1}
    settings = TrainHMSTConfig(**merge_dicts(merge_dicts(job, config), {"run": run}))
    device = worker_device(use_gpu=settings.run.use_gpu, gpu_ids=settings.run.gpu_ids, local_rank=0)
    with tempfile.TemporaryDirectory() as scratch:
        own = RunFolder(Path(scratch) / "run")
        shutil.copytree(folder, own.path, ignore=shutil.ignore_patterns(*_NOT_PREPARED))
        _fetch_checkpoint(own)
        host = _TuneHost()
        trainer = build_trainer(
            settings,
            **length,
            folder=own,
            place=Place(device=device, bf16=use_bf16(settings.run.mixed_precision, device)),
            host=host,
            use_ray_data=False,
        )
        host.attach(trainer)
        trainer.run()


def _fetch_checkpoint(own: RunFolder) -> None:
    """Put the checkpoint Tune hands to the trial, its own or another's, where the loop looks for one."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return
    with checkpoint.as_directory() as path:
        step = read_manifest(Path(path)).extra["step"]
        shutil.copytree(path, CheckpointStore(own.checkpoints, keep=1).path_of(step))


class _TuneHost:
    """Hands the loop's reports to Tune, each with the checkpoint just written."""

    def __init__(self) -> None:
        self._trainer: Trainer | None = None
        self._weight_decays: list[float] = []
        self._tokens = 0
        self._saved = ""

    def attach(self, trainer: Trainer) -> None:
        """Report for `trainer`, which has not begun yet."""
        self._trainer = trainer
        self._weight_decays = [group["weight_decay"] for group in trainer.optimizer.param_groups]

    def event(self, kind: str, **values: Any) -> None:
        """Note what the reports need."""
        assert self._trainer is not None
        if kind == "started":
            # A checkpoint brings the optimiser's settings of whoever wrote it; only its moments are wanted.
            for group, decay in zip(self._trainer.optimizer.param_groups, self._weight_decays, strict=True):
                group["weight_decay"] = decay
            self._tokens = self._trainer.progress.tokens
        elif kind == "saved":
            self._saved = values["path"]

    def report(self, metrics: dict[str, float]) -> None:
        """Report to Tune; waits until the swarm has decided."""
        assert self._trainer is not None
        tokens, self._tokens = self._tokens, self._trainer.progress.tokens
        flops = round((self._tokens - tokens) * self._trainer.flops_per_token)
        tune.report({**metrics, "flops": flops}, checkpoint=tune.Checkpoint.from_directory(self._saved))
