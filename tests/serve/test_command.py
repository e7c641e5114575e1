"""`python -m serve` as a user runs it: it becomes ready, prints an address that works, and ends in order."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from served_app import KEYS, free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(chat_model: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The server on all addresses, under one name, in a Ray of its own."""
    words = ["--model", str(chat_model), "--name", "tiny", "--host", "0.0.0.0", "--port", str(free_port())]
    words += ["--allowed-hosts", "models.example.org", "--threads", "1", "--replica-cpus", "0.1"]
    words += ["--documents-dir", str(tmp_path / "documents"), "--segments-bytes", "50000000"]
    own = {"RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled", "HSOKV_API_KEYS": f"ann:{KEYS['ann']}"}
    own |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(
        [sys.executable, "-m", "serve", *words],
        cwd=ROOT,
        env=os.environ | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield started
    if started.poll() is None:
        started.kill()
        started.wait(30)


def test_it_is_ready_under_allowed_hosts_prints_an_address_that_works_and_ends_on_ctrl_c(
    command: subprocess.Popen[str],
) -> None:
    assert command.stdout is not None
    said: list[str] = []
    for line in command.stdout:
        said.append(line)
        if " is ready:" in line:
            break
    assert command.poll() is None, "".join(said)
    [url] = re.findall(r"(http://\S+) is ready", said[-1])
    assert url.startswith("http://127.0.0.1:")
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEYS['ann']}"}
    body = json.dumps({"model": "tiny", "prompt": "The", "max_tokens": 2}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.loads(answer.read())["usage"]["completion_tokens"] == 2
    command.send_signal(signal.SIGINT)
    rest, _ = command.communicate(timeout=120)
    assert command.returncode == 0, rest
    assert "ended hsokv" in rest
