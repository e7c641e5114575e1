"""What every test relies on: no hub, no token, one thread, everything on 127.0.0.1, no cluster but our own.

One Ray for all tests that need one, started for the first of them and ended with the last.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from hsokv_ray import env

os.environ |= {
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray then binds to 127.0.0.1 only, on Linux too
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # read by torch when it is imported
    # as an activated environment has it: `#!/usr/bin/env python` in a job is then the interpreter that runs the tests
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}
for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", env.RUNS_DIR):
    os.environ.pop(name, None)


# A shell's background job ignores SIGINT, and its children inherit that: tests of Ctrl-C need Python's own handler.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No timing in a test: a busy machine is not a bug.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")


NUM_CPUS = 4
"""Of the tests' Ray; logical: their actors wait more than they compute."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """With HSOKV_NO_SKIPS=1, a test of real data that is skipped has failed."""
    report = yield
    strict = os.environ.get(env.RUN_TESTS_STRICT) == "1"
    if strict and report.skipped and item.get_closest_marker("real_data"):  # type: ignore[attr-defined]
        report.outcome = "failed"  # type: ignore[attr-defined]
        report.longrepr = f"skipped, which {env.RUN_TESTS_STRICT}=1 forbids: {report.longrepr}"  # type: ignore[attr-defined]
    return report


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A jsonl file of 160 short documents over a small vocabulary, each different."""
    words = ("the", "memory", "of", "a", "model", "holds", "what", "its", "window", "cannot", "and", "swarm", "looks")
    path = tmp_path / "corpus.jsonl"
    with path.open("w") as file:
        for i in range(160):
            text = " ".join(words[(i * 7 + j * (1 + i % 5)) % len(words)] for j in range(30 + i % 17))
            file.write(json.dumps({"text": f"{i} {text}"}) + "\n")
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data sets; the test is skipped where HSOKV_DATA_DIR is unset."""
    folder = env.data_dir()
    if folder is None:
        pytest.skip(f"{env.DATA_DIR} is not set")
    return folder


@pytest.fixture(scope="session")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where submitted jobs write their runs; a job has the environment of the cluster, not of who submits it."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def ray_cluster(runs_dir: Path) -> Iterator[None]:
    """A connected Ray with `NUM_CPUS` CPUs and no GPU."""
    import ray  # here: most tests need none

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
