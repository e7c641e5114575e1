"""One Ray for all tests of this folder, started for them and ended with them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from hsokv_ray import env

NUM_CPUS = 4
"""Logical: the tests' actors wait more than they compute."""


@pytest.fixture(scope="session")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where submitted jobs write their runs; a job has the environment of the cluster, not of who submits it."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def ray_cluster(runs_dir: Path) -> Iterator[None]:
    """A connected Ray with `NUM_CPUS` CPUs and no GPU."""
    os.environ[env.RUNS_DIR] = str(runs_dir)
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
    del os.environ[env.RUNS_DIR]
