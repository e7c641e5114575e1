"""Where a worker runs: its rank, its device, and the few sums over workers that the loop needs."""

import contextlib
import os
import resource
from dataclasses import dataclass
from functools import cached_property

import psutil
import torch
import torch.distributed as dist

from hsokv_ray.errors import ConfigError

# Dense bf16 peak of one device in FLOP/s, from NVIDIA's data sheets (without sparsity).
_PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "T4": 65e12}


@dataclass(frozen=True, kw_only=True)
class Place:
    """One worker among `world_size`, with its device. Sums are over all workers; alone, they are the value itself."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")
    bf16: bool = False
    group: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this worker writes files and speaks to the user."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return `values` summed over workers, on the CPU."""
        if self.world_size == 1:
            return values.cpu()
        # NCCL moves only what lies on the GPU
        moved = values.to(self.device)
        dist.all_reduce(moved)
        return moved.cpu()

    def sum_int(self, value: int) -> int:
        """Return an integer summed over workers."""
        return int(self.sum(torch.tensor([value], dtype=torch.int64)).item())

    def broadcast_int(self, value: int) -> int:
        """Return the first worker's value."""
        return self.sum_int(value if self.is_first else 0)

    def gather_text(self, text: str) -> list[str]:
        """Return every worker's text, in order of rank."""
        if self.world_size == 1:
            return [text]
        texts: list[str] = [""] * self.world_size
        dist.all_gather_object(texts, text)
        return texts

    def barrier(self) -> None:
        """Wait until every worker is here."""
        if self.world_size > 1:
            dist.barrier()

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context of the forward pass: bfloat16 where it is on."""
        if not self.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    @cached_property
    def peak_flops(self) -> float | None:
        """Dense bf16 peak of the device in FLOP/s, or None where it is not known."""
        if self.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(self.device)
        return next((peak for key, peak in _PEAK_FLOPS.items() if key in name), None)

    def memory_bytes(self) -> int:
        """Return the peak memory of this worker so far, on its device."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def worker_device(*, use_gpu: bool, gpu_ids: tuple[int, ...], local_rank: int) -> torch.device:
    """Return the device of the worker that is number `local_rank` on its node. Raises `ConfigError`."""
    if not use_gpu:
        return torch.device("cpu")
    if not gpu_ids:
        return torch.device("cuda", 0 if torch.cuda.device_count() == 1 else local_rank)
    if local_rank >= len(gpu_ids):
        raise ConfigError(
            f"--gpu-ids: {len(gpu_ids)} GPUs are named and a node has more workers than that; "
            "lower --num-workers or name more"
        )
    return torch.device("cuda", gpu_ids[local_rank])


def use_bf16(mixed_precision: bool | None, device: torch.device) -> bool:
    """Return whether the forward pass runs in bfloat16; unasked, only on GPUs that compute in it."""
    if mixed_precision is not None:
        return mixed_precision
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def set_threads(local_world_size: int) -> int:
    """Give this worker its share of the node's cores for torch; Ray may have set OMP_NUM_THREADS to 1."""
    threads = max(1, len(os.sched_getaffinity(0)) // local_world_size)
    torch.set_num_threads(threads)
    return threads


def node_memory_bytes() -> int:
    """Return the memory a process may still take on this node."""
    return psutil.virtual_memory().available
