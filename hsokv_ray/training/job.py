"""The driver of the HMST training job: prepare once, start the workers, follow them, write the results."""

import os
import shlex
import shutil
import sys
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from hsokv_ray import runtime
from hsokv_ray.errors import CheckpointError, ConfigError, DataError, HsokvError, RunError
from hsokv_ray.models.presets import model_shape
from hsokv_ray.training.config import TrainHMSTConfig
from hsokv_ray.training.cost import Cost, cost_of, describe, describe_memory, memory_of, warmup_steps
from hsokv_ray.training.failures import explain_failure
from hsokv_ray.training.metrics import progress_line
from hsokv_ray.training.place import node_memory_bytes
from hsokv_ray.training.prepare import prepare
from hsokv_ray.training.progress import Board, Event, Follower, Printer
from hsokv_ray.training.results import write_results
from hsokv_ray.training.run_folder import RunFolder
from hsokv_ray.training.worker import gpu_environment, train_worker

WORKER_START_TIMEOUT_S = 300
POLL_WORKERS_S = 0.5
"""How often the controller looks at the workers; a report waits for it."""

ERRORS: dict[str, type[HsokvError]] = {
    error.__name__: error for error in (HsokvError, CheckpointError, ConfigError, DataError, RunError)
}


def run(config: TrainHMSTConfig) -> int:
    """Run the job that `config` describes; return the exit status."""
    printer = Printer()
    folder = RunFolder.of(config.run)
    with folder.claim(config):
        demand = _admit(config)
        prepared = prepare(config, folder, say=printer.say)
        cost = cost_of(config, prepared.shape, prepared.length)
        warmup_steps(config, cost.length.max_steps)
        printer.say(describe(cost, size=config.model.size, num_workers=config.run.num_workers))
        printer.say(prepared.baselines.describe())
        printer.say(precision(config))
        summary = _train(config, folder, cost, demand, printer)
        printer.say(write_results(config, folder, prepared, cost, summary, command=shlex.join(sys.argv)))
    return 0


def _admit(config: TrainHMSTConfig) -> runtime.Demand:
    """Connect, and refuse what cannot run before any work is done. Raises `RunError` with the numbers."""
    if config.run.compile and not config.run.use_gpu and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise ConfigError(
            "--compile needs a C++ compiler on CPUs, and none is on the PATH; install g++ or leave it out"
        )
    runtime.connect(log_to_driver=False)
    demand = runtime.preflight(
        runtime.Demand(
            num_workers=config.run.num_workers,
            cpus_per_worker=config.run.cpus_per_worker,
            gpus_per_worker=1 if config.run.use_gpu else 0,
            data_cpus=0 if config.data.pretokenized else config.run.data_cpus,
        )
    )
    if not config.run.use_gpu and len(ray.nodes()) == 1:
        shape = model_shape(config.model, vocab_size=config.data.vocab_size, seq_len=config.data.seq_len)
        memory = memory_of(config, shape)
        runtime.refuse_if_too_large(
            memory.total_bytes * config.run.num_workers,
            available_bytes=node_memory_bytes(),
            what=f"training size {config.model.size} on {config.run.num_workers} worker(s) ({describe_memory(memory)})",
            advice="lower --size, --batch-size or --seq-len, or give --gradient-checkpointing",
        )
    return demand


def precision(config: TrainHMSTConfig) -> str:
    """Return the precision of the forward pass as a line, with what is surprising about it."""
    asked, gpu = config.run.mixed_precision, config.run.use_gpu
    if gpu:
        return "precision    float32" if asked is False else "precision    bfloat16 where the GPU computes in it"
    if asked:
        return "precision    bfloat16 as asked; on CPUs it slows small models (0.7x measured at micro width)"
    return "precision    float32; bfloat16 is off on CPUs, where it slows small models (--mixed-precision forces it)"


def _train(
    config: TrainHMSTConfig, folder: RunFolder, cost: Cost, demand: runtime.Demand, printer: Printer
) -> dict[str, Any]:
    """Run the workers to the end and return the first one's summary."""
    board = ray.remote(num_cpus=0)(Board).remote()
    watch = runtime.PendingWatch(demand, say=printer.say)
    with Follower(board, _Shown(printer, watch), on_idle=watch.poll):
        try:
            result = _trainer(config, folder, cost, demand, board).fit()
        except ray.train.TrainingFailedError as error:
            raise _reason(board) or _failure(error, cost, folder) from error
    if reason := _reason(board):
        raise reason
    assert result.return_value is not None, "a worker that gave no reason returns its summary"
    return result.return_value


def _trainer(
    config: TrainHMSTConfig, folder: RunFolder, cost: Cost, demand: runtime.Demand, board: Any
) -> TorchTrainer:
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(WORKER_START_TIMEOUT_S))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(POLL_WORKERS_S))
    resources = {"CPU": demand.cpus_per_worker} | ({"GPU": 1} if config.run.use_gpu else {})
    spec = {
        "config": config.model_dump(mode="json"),
        "folder": str(folder.path),
        "max_steps": cost.length.max_steps,
        "step_limit": cost.length.step_limit,
        "epochs": cost.length.epochs,
        "board": board,
    }
    return TorchTrainer(
        train_worker,
        train_loop_config=spec,
        torch_config=TorchConfig(backend="nccl" if config.run.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.run.num_workers, use_gpu=config.run.use_gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(folder.path),
            failure_config=ray.train.FailureConfig(max_failures=config.run.max_failures),
            worker_runtime_env={"env_vars": gpu_environment(config)},
        ),
    )


class _Shown:
    """Turns events of the run into lines."""

    def __init__(self, printer: Printer, watch: runtime.PendingWatch) -> None:
        self._printer, self._watch = printer, watch
        self._val_loss: float | None = None

    def __call__(self, event: Event) -> None:
        match event["kind"]:
            case "started":
                self._watch.close()
            case "row":
                validated = event["val_loss"] is not None
                self._val_loss = event["val_loss"] if validated else self._val_loss
                self._printer.progress(progress_line({**event, "val_loss": self._val_loss}), keep=validated)
            case "note":
                self._printer.say(event["text"])


def _reason(board: Any) -> HsokvError | None:
    """Return the error a worker gave as the reason of the end, if one did."""
    event: Event | None = ray.get(board.fatal.remote())
    return ERRORS[event["error"]](event["text"]) if event else None


def _failure(error: Exception, cost: Cost, folder: RunFolder) -> RunError:
    """Return one line for a failure no worker gave a reason for."""
    known = explain_failure(error, memory=describe_memory(cost.memory))
    if known is None:
        last = [line for line in str(error).splitlines() if line.strip()][-1].strip()
        known = f"the workers failed: {last}; their logs are in Ray's session folder, and --max-failures was used up"
    return RunError(f"{known}; the run so far is kept in {folder.path}")
