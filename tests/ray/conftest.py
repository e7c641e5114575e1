"""One Ray for all tests of this folder, started for them and ended with them."""

from collections.abc import Iterator

import pytest
import ray

NUM_CPUS = 4
"""Logical: the tests' actors wait more than they compute."""


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A connected Ray with `NUM_CPUS` CPUs and no GPU."""
    ray.init(
        address="local",
        num_cpus=NUM_CPUS,
        num_gpus=0,
        namespace="hsokv",
        object_store_memory=400_000_000,
        logging_level="ERROR",
        log_to_driver=False,
    )
    yield
    ray.shutdown()
