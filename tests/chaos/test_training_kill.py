"""Killed processes: a worker that dies, a driver that dies. What is left must be the unbroken run, step for step."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hsokv_ray.training.metrics import read_rows

ROOT = Path(__file__).parents[2]
STEPS = 24
PATIENCE_S = 300

pytestmark = pytest.mark.chaos


class Job:
    """`jobs/train_hmst.py` as a process with a Ray of its own; every descendant is ended with it."""

    def __init__(self, corpus: Path, runs: Path, name: str) -> None:
        self.metrics = runs / name / "metrics.jsonl"
        flags = f"--vocab-size 300 --seq-len 64 --batch-size 4 --max-steps {STEPS} --save-every 5 --eval-every 8"
        command = [sys.executable, "jobs/train_hmst.py", "--source", str(corpus), "--output-dir", str(runs)]
        command += ["--name", name, "--log-every", "1", *flags.split()]
        environment = os.environ | {"RAY_TMPDIR": "/tmp"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._family: dict[int, psutil.Process] = {}

    def wait(self) -> str:
        output, _ = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0, output[-3000:]
        return output

    def wait_for_step(self, step: int) -> None:
        def reached() -> bool:
            assert self.process.poll() is None, self.process.communicate()[0][-3000:]
            return self.metrics.exists() and any(row["step"] >= step for row in whole_rows(self.metrics))

        wait_until(reached)

    def family(self) -> list[psutil.Process]:
        """The process and its descendants, those of a killed parent included."""
        for process in [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]:
            self._family[process.pid] = process
        return list(self._family.values())

    def worker(self) -> psutil.Process:
        return next(process for process in self.family() if "RayTrainWorker" in name_of(process))

    def end(self) -> None:
        if self.process.poll() is None:
            self.family()
        for process in self._family.values():
            if process.is_running():
                process.kill()
        self.process.kill()
        self.process.wait(timeout=30)


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def whole_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def losses(path: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_rows(path)]


@pytest.fixture
def start(tmp_path: Path, corpus: Path) -> Iterator[Callable[[str], Job]]:
    jobs: list[Job] = []

    def begin(name: str) -> Job:
        jobs.append(Job(corpus, tmp_path / "runs", name))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.end()


@pytest.fixture
def unbroken(start: Callable[[str], Job]) -> list[tuple[int, float]]:
    job = start("unbroken")
    job.wait()
    rows = losses(job.metrics)
    assert [step for step, _ in rows] == list(range(1, STEPS + 1))
    return rows


def test_a_killed_worker_restarts_from_the_last_checkpoint_and_ends_on_the_unbroken_curve(
    start: Callable[[str], Job], unbroken: list[tuple[int, float]]
) -> None:
    job = start("killed-worker")
    job.wait_for_step(12)
    job.worker().send_signal(signal.SIGKILL)
    output = job.wait()
    assert re.search(r"resumed from step \d+", output), output[-2000:]
    assert losses(job.metrics) == unbroken


def test_after_the_driver_is_killed_the_same_command_resumes_on_the_unbroken_curve(
    start: Callable[[str], Job], unbroken: list[tuple[int, float]]
) -> None:
    job = start("killed-driver")
    job.wait_for_step(12)
    job.family()
    job.process.send_signal(signal.SIGKILL)
    job.end()
    again = start("killed-driver")
    assert re.search(r"resumed from step \d+", again.wait())
    assert losses(again.metrics) == unbroken
