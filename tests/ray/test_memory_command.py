"""`hsokv memory` on a shared memory: start it, write, read and look at it from the shell, stop it."""

import json
from pathlib import Path

import numpy as np
import pytest
import ray

from hsokv_ray import env
from hsokv_ray.cli import main

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs `hsokv memory` and returns its status and what it printed."""
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)

    def command(*words: str) -> tuple[int, str, str]:
        status = main(["memory", *words])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return command


def test_a_memory_is_started_used_and_stopped_from_the_shell(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    vectors = np.eye(8, dtype=np.float32)
    np.savez(tmp_path / "rows.npz", ids=np.array([f"row {i}" for i in range(8)]), vectors=vectors)
    np.save(tmp_path / "query.npy", vectors[3])
    root = str(tmp_path / "memory")
    status, out, _ = run("start", "shell", "--root", root)
    assert status == 0
    assert 'connect("shell")' in out
    try:
        status, out, err = run("upsert", "shared:shell/rows", "rows.npz")
        assert (status, "holds 8" in out) == (0, True), err
        assert run("count", "shared:shell/rows")[1].strip() == "8"
        _, out, _ = run("query", "shared:shell/rows", "--vector-file", "query.npy", "--top-k", "1")
        assert json.loads(out)["id"] == "row 3"
        [row] = json.loads(run("status", "shell", "--output", "json")[1])
        assert (row["role"], row["vectors"], row["problems"]) == ("writer", 8, [])
        assert "writer" in run("status", "shell")[1]
        assert run("export", "shared:shell/rows", "rows.parquet")[0] == 0
        assert run("migrate", "shared:shell/rows", "shared:shell/copy")[0] == 0
        assert run("count", "shared:shell/copy")[1].strip() == "8"
        key = run("tenant", "acme", "--root", root)[1].strip()
        monkeypatch.setenv(env.MEMORY_KEY, key)
        assert run("count", "shared:shell/rows")[1].strip() == "0"
        monkeypatch.setenv(env.MEMORY_KEY, "hk-wrong")
        status, _, err = run("count", "shared:shell/rows")
        assert (status, "does not know the key" in err) == (1, True)
        monkeypatch.delenv(env.MEMORY_KEY)
        assert run("restart", "shell")[0] == 0
        assert run("count", "shared:shell/rows?consistency=strong")[1].strip() == "8"
        status, _, err = run("count", "shared:shell/rows?metric=dot")
        assert (status, "metric dot was asked for" in err) == (2, True)
    finally:
        assert run("stop", "shell")[0] == 0
    status, _, err = run("status", "shell")
    assert (status, "hsokv memory start shell" in err) == (1, True)
    assert err.count("\n") == 1


def test_a_command_without_a_head_says_how_to_start_one(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("hsokv_ray.memory.shared.command.head_address", lambda: None)
    status, _, err = run("status", "nothing")
    assert (status, "make head" in err) == (2, True)
