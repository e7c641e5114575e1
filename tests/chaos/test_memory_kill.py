"""SIGKILL of a shared memory's writer, 200 times at random moments under load."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from memory_under_fire import kill_under_load

from hsokv_ray.memory.shared import MemoryConfig, connect, start_memory, stop_memory


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[str]:
    ray.init(address="local", num_cpus=2, namespace="hsokv", logging_level="ERROR", log_to_driver=False)
    try:
        start_memory(MemoryConfig(name="fire", root=str(tmp_path / "memory"), seal_rows=64))
        yield "fire"
        stop_memory("fire")
    finally:
        ray.shutdown()


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_two_hundred_kills_lose_no_acknowledged_write(memory: str):
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    with connect(memory, consistency="strong") as client:
        assert kill_under_load(client, rounds=200, seed=seed) >= 600
