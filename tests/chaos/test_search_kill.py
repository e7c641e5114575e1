"""A search whose driver is killed at random moments, again and again: its end is the end it would have had."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from search_audit import audit, config, lines, repeated_tests, told
from search_process import SEED, TASK

from hsokv_ray.swarm.backends.local import LocalBackend
from hsokv_ray.swarm.drive import Drive, Summary
from hsokv_ray.swarm.states import States

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests" / "helpers"
PATIENCE_S = 300

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]


def start(folder: Path, backend: str, exploit: str) -> subprocess.Popen[str]:
    """Begin the search, or go on with it where there is one."""
    command = [sys.executable, str(HELPERS / "search_process.py"), str(folder), backend, exploit]
    if (folder / "search.json").exists():
        command.append("resume")
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{HELPERS}",
        "RAY_TMPDIR": "/tmp",
        "RAY_ADDRESS": "local",
    }
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def kill(process: subprocess.Popen[str], backend: str) -> None:
    """SIGKILL the driver; with Ray, all that it started, since a head without its driver is nobody's."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)
    if backend == "ray":
        for each in family:
            if each.is_running():
                each.kill()
    psutil.wait_procs(family, timeout=PATIENCE_S)
    assert not [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def num_lines(folder: Path) -> int:
    journal = folder / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def kill_at_random(folder: Path, backend: str, exploit: str, *, rounds: int, rng: random.Random) -> Summary:
    """Kill the driver `rounds` times, each some time after it has made progress, then let it finish."""
    for _ in range(rounds):
        process = start(folder, backend, exploit)
        more = num_lines(folder) + rng.randrange(1, 3)
        deadline = time.monotonic() + PATIENCE_S
        while process.poll() is None and num_lines(folder) < more:
            assert time.monotonic() < deadline, "no progress"
            time.sleep(0.005)
        time.sleep(rng.random() * 0.1)
        if process.poll() is None:
            kill(process, backend)
        else:
            assert process.returncode == 0, process.communicate()[0][-3000:]
    process = start(folder, backend, exploit)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output[-3000:]
    return Summary.from_json(json.loads((folder / "summary.json").read_text()))


@pytest.mark.parametrize("exploit", ["copy", "restart", "none"])
@pytest.mark.parametrize(("backend", "rounds"), [("local", 6), ("multiprocessing", 6), ("ray", 2)])
def test_a_driver_killed_at_random_moments_is_resumed_to_the_same_end(
    tmp_path: Path, backend: str, rounds: int, exploit: str
):
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    summary = kill_at_random(tmp_path / "run", backend, exploit, rounds=rounds, rng=random.Random(seed))
    audit(tmp_path / "run", summary, TASK)
    assert summary.lost > 0
    task = replace(TASK, step_s=0.0)
    folder = tmp_path / "whole"
    whole = Drive(task, config(exploit), folder, LocalBackend(task, States(folder / "states")), seed=SEED).run()
    failed = [
        record for record in lines(tmp_path / "run" / "journal.jsonl") if record.get("outcome", {}).get("failure")
    ]
    assert not failed
    if max(record["order"]["attempt"] for record in lines(tmp_path / "run" / "journal.jsonl")) <= config().max_restarts:
        assert told(tmp_path / "run") == told(folder)
        assert summary.best == whole.best
        # useful in the one is, in the other, useful where the first attempt came through, else repeated
        lost_again = sum(
            record["flops"]
            for record in lines(tmp_path / "run" / "journal.jsonl")
            if record["what"] == "lost" and record["order"]["attempt"] > 1
        )
        lost_again += repeated_tests(tmp_path / "run") * TASK.step_flops
        assert summary.flops["useful"] + summary.flops["repeated"] - lost_again == whole.flops["useful"]
