"""cluster/local.sh: one head, on this machine only, and gone without a trace when it is told to stop."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Head:
    """How a test's own head is reached and told apart from every other Ray on the machine."""

    temp_dir: Path
    environment: dict[str, str]

    def sh(self, command: str, *, check: bool = True) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            ["bash", "-c", command], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=200
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def processes(self) -> list[psutil.Process]:
        """Every process that knows the head's folder, by its command line or its environment."""
        found = []
        for process in psutil.process_iter():
            try:
                words = process.cmdline() + list(process.environ().values())
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if any(str(self.temp_dir) in word for word in words):
                found.append(process)
        return found


@pytest.fixture
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="hsokv", dir="/tmp"))  # short: the path of a Unix socket has 107 bytes
    ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    gcs, dashboard = (str(server.getsockname()[1]) for server in ports)
    for server in ports:
        server.close()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "HSOKV_"))}
    environment = inherited | {
        "HOME": str(folder),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HSOKV_HEAD_PORT": gcs,
        "HSOKV_HEAD_DASHBOARD_PORT": dashboard,
        "HSOKV_HEAD_TEMP_DIR": str(folder / "ray"),
        "HSOKV_HEAD_STATE": str(folder / "state"),
        "HSOKV_HEAD_STORE_BYTES": "100000000",
        "HSOKV_HEAD_CPUS": "2",
    }
    made = Head(folder, environment)
    yield made
    made.sh("cluster/local.sh stop", check=False)
    left = made.processes()
    for process in left:
        process.kill()
    shutil.rmtree(folder)
    assert left == []


def test_a_head_serves_jobs_on_loopback_and_stop_ends_all_of_it_and_nothing_else(head: Head) -> None:
    decoy = subprocess.Popen(["bash", "-c", "exec -a ray::IDLE sleep 300"])  # what `ray stop` would end
    try:
        head.sh("cluster/local.sh start")
        assert "running: pid" in head.sh("cluster/local.sh status").stdout
        assert "runs already" in head.sh("cluster/local.sh start").stderr

        listening = [c for p in head.processes() for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
        assert len(listening) >= 5
        assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}

        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{head.environment['HSOKV_HEAD_DASHBOARD_PORT']}/api/jobs/")
        note, job = head.temp_dir / "note", head.temp_dir / "job"
        job.write_text(f"#!/bin/sh\necho $PWD $$ > {note}.new; mv {note}.new {note}; exec sleep 1000\n")
        job.chmod(0o755)
        head.sh(f'eval "$(cluster/local.sh env)"; ray job submit --no-wait -- {job}')
        head.sh(f"for i in $(seq 300); do [ -f {note} ] && exit; sleep 0.2; done; exit 1")
        folder, pid = note.read_text().split()
        assert folder == str(ROOT)
        assert psutil.Process(int(pid)).name() == "sleep"

        stopped = head.sh("cluster/local.sh stop")
        assert "the head is stopped" in stopped.stderr
        assert head.processes() == []
        assert not psutil.pid_exists(int(pid))
        assert not (head.temp_dir / "ray" / "ray_current_cluster").exists()
        assert head.sh("cluster/local.sh status", check=False).returncode == 3
        assert decoy.poll() is None
    finally:
        decoy.kill()
        decoy.wait()


def test_a_port_that_is_taken_is_said_and_nothing_is_started(head: Head) -> None:
    with socket.create_server(("127.0.0.1", int(head.environment["HSOKV_HEAD_PORT"]))):
        done = head.sh("cluster/local.sh start", check=False)
    assert done.returncode == 1
    assert "is taken by another program" in done.stderr
    assert head.processes() == []


def test_stop_does_not_end_a_process_that_took_over_the_recorded_pid(head: Head) -> None:
    state = Path(head.environment["HSOKV_HEAD_STATE"])
    state.mkdir(parents=True)
    with subprocess.Popen(["sleep", "300"]) as other:
        (state / "pid").write_text(f"{other.pid}\n")
        (state / "started").write_text("Mon Jan  1 00:00:00 2024\n")
        assert "no head of this repository runs" in head.sh("cluster/local.sh stop").stderr
        assert other.poll() is None
        other.kill()


def test_a_head_that_cannot_start_is_reported_with_ray_s_reason_and_leaves_nothing(head: Head) -> None:
    head.environment["HSOKV_HEAD_STORE_BYTES"] = "1"
    done = head.sh("cluster/local.sh start", check=False)
    assert done.returncode == 1
    assert "the head did not come up: ValueError: Attempting to cap object store memory" in done.stderr
    assert head.processes() == []
    assert not (Path(head.environment["HSOKV_HEAD_STATE"]) / "pid").exists()
