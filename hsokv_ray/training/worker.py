"""One Ray Train worker: a thin shell around `Trainer`, and how its errors end a run.

An error that would come back on every try (`HsokvError`: a bad shard, a loss that is not a number, a full disk) is told
to the board and ends the run; anything else (a killed process, a lost node) is raised, so Ray Train starts the workers
again from the last checkpoint.
"""

import errno
from dataclasses import asdict
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist

from hsokv_ray.errors import HsokvError, RunError
from hsokv_ray.training.build import build_trainer
from hsokv_ray.training.config import TrainHMSTConfig
from hsokv_ray.training.host import Host
from hsokv_ray.training.loop import RunSummary
from hsokv_ray.training.place import Place, set_threads, use_bf16, worker_device
from hsokv_ray.training.run_folder import RunFolder

FATAL_GRACE_S = 10.0


class RayHost:
    """Sends events of the first worker to the board, and every worker's metrics to Ray Train."""

    def __init__(self, board: Any, rank: int) -> None:
        self._board, self._rank = board, rank

    def event(self, kind: str, **values: Any) -> None:
        """Push an event without waiting."""
        if self._rank == 0:
            self._board.push.remote({"kind": kind, **values})

    def report(self, metrics: dict[str, float]) -> None:
        """Report metrics; checkpoints stay with `CheckpointStore`, whose folders are complete or absent.

        A report waits until the controller asks, every RAY_TRAIN_HEALTH_CHECK_INTERVAL_S (2 s): never one per step.
        """
        ray.train.report(metrics)

    def fatal(self, error: HsokvError) -> None:
        """Tell the driver why the run ends; waits until it is told."""
        event = {"kind": "fatal", "text": str(error), "error": type(error).__name__, "rank": self._rank}
        ray.get(self._board.push.remote(event))

    def fatal_elsewhere(self) -> bool:
        """Whether another worker has told why the run ends."""
        return ray.get(self._board.fatal.remote(), timeout=FATAL_GRACE_S) is not None


def train_worker(spec: dict[str, Any]) -> dict[str, Any] | None:
    """Run one worker of the job described by `spec` (configuration, folder, length, board); return its summary."""
    context = ray.train.get_context()
    host = RayHost(spec["board"], context.get_world_rank())
    try:
        return asdict(_train(spec, host))
    except HsokvError as error:
        host.fatal(error)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        host.fatal(RunError(f"the disk is full: {error}; free space and give the same command again to resume"))
    except torch.OutOfMemoryError as error:
        text = " ".join(str(error).split())
        host.fatal(RunError(f"out of GPU memory: {text}; lower --batch-size or --seq-len, or --gradient-checkpointing"))
    except RuntimeError:
        # a collective breaks when a peer has ended; its own reason is the one to show
        if not host.fatal_elsewhere():
            raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return None


def _train(spec: dict[str, Any], host: Host) -> RunSummary:
    config = TrainHMSTConfig(**spec["config"])
    context = ray.train.get_context()
    set_threads(context.get_local_world_size())
    device = worker_device(use_gpu=config.run.use_gpu, gpu_ids=config.run.gpu_ids, local_rank=context.get_local_rank())
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL and new tensors take the current device
    place = Place(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=device,
        bf16=use_bf16(config.run.mixed_precision, device),
    )
    return build_trainer(
        config,
        max_steps=spec["max_steps"],
        step_limit=spec["step_limit"],
        epochs=spec["epochs"],
        folder=RunFolder(spec["folder"]),
        place=place,
        host=host,
        use_ray_data=True,
    ).run()


def gpu_environment(config: TrainHMSTConfig) -> dict[str, str]:
    """Return the environment by which workers see every GPU of a node and choose by `--gpu-ids` themselves."""
    if not config.run.gpu_ids:
        return {}
    return {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
