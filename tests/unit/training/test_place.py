"""Devices, precision and sums of one worker."""

import pytest
import torch

from hsokv_ray.errors import ConfigError
from hsokv_ray.training.place import Place, use_bf16, worker_device


def test_a_worker_without_gpu_is_on_the_cpu() -> None:
    assert worker_device(use_gpu=False, gpu_ids=(), local_rank=3) == torch.device("cpu")


def test_gpu_ids_are_dealt_by_local_rank_and_run_out_with_a_clear_line() -> None:
    assert worker_device(use_gpu=True, gpu_ids=(2, 5), local_rank=1) == torch.device("cuda", 5)
    with pytest.raises(ConfigError, match="2 GPUs are named and a node has more workers"):
        worker_device(use_gpu=True, gpu_ids=(2, 5), local_rank=2)


def test_mixed_precision_is_off_on_cpus_unless_it_is_forced() -> None:
    cpu = torch.device("cpu")
    assert not use_bf16(None, cpu)
    assert use_bf16(True, cpu)
    with Place(bf16=True).autocast():
        assert (torch.ones(4, 4) @ torch.ones(4, 4)).dtype == torch.bfloat16
    with Place().autocast():
        assert (torch.ones(4, 4) @ torch.ones(4, 4)).dtype == torch.float32


def test_alone_a_sum_is_the_value_itself() -> None:
    place = Place()
    assert place.sum_int(7) == 7
    assert place.gather_text("a") == ["a"]
    assert place.broadcast_int(-1) == -1
    assert place.memory_bytes() > 10_000_000
