"""A process that dies while it saves: the store then holds the checkpoint before or the new one, whole."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hsokv_ray.errors import RunError
from hsokv_ray.manifest import verify_manifest
from hsokv_ray.training.checkpoint import CheckpointStore
from hsokv_ray.training.snapshot import Snapshot

pytestmark = pytest.mark.chaos

BOUNDARIES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "fsync"}
DISK_REFUSED = 3


def snapshot(step: int) -> Snapshot:
    return Snapshot(
        step=step,
        model={"weight": torch.full((64, 64), float(step))},
        optimizer={"state.weight.exp_avg": torch.full((64, 64), float(-step)), "param_groups.weight.lr": 0.1},
        state={"cursor": step},
        rng_state=torch.arange(16, dtype=torch.uint8),
    )


@pytest.fixture
def saved(tmp_path) -> Path:
    """A folder whose best and only checkpoint is step 100."""
    CheckpointStore(tmp_path / "saved", keep=1).save(snapshot(100), best=True)
    return tmp_path / "saved"


def in_another_process(work: Callable[[], object]) -> int:
    """Run `work` in a forked process and return its exit code; minus the signal's number where one killed it."""

    def contained() -> None:
        try:
            work()
        except RunError:
            os._exit(DISK_REFUSED)

    process = multiprocessing.get_context("fork").Process(target=contained)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def kill_at(boundary: int, folder: Path) -> None:
    """Have this process killed just before its `boundary`-th change to the file system below `folder`."""
    passed = 0

    def count(event: str, args: tuple) -> None:
        nonlocal passed
        if event in BOUNDARIES and str(folder) in " ".join(map(str, args)):
            passed += 1
            if passed == boundary:
                os.kill(os.getpid(), signal.SIGKILL)

    fsync = os.fsync
    os.fsync = lambda descriptor: (count("fsync", (os.readlink(f"/proc/self/fd/{descriptor}"),)), fsync(descriptor))
    sys.addaudithook(count)


def surviving_step(folder: Path) -> int:
    """Return the step of the newest checkpoint after checking everything the store promises after a crash."""
    store = CheckpointStore(folder, keep=1)
    found = store.latest()
    assert found is not None
    assert found.damaged == ()
    loaded, expected = store.load(found.path), snapshot(found.step)
    assert loaded.state == expected.state
    assert torch.equal(loaded.model["weight"], expected.model["weight"])
    assert torch.equal(loaded.optimizer["state.weight.exp_avg"], expected.optimizer["state.weight.exp_avg"])
    verify_manifest(folder / json.loads((folder / "best.json").read_text())["folder"])
    return found.step


def test_killed_at_any_boundary_the_store_holds_one_whole_checkpoint(saved, tmp_path):
    survivors = []
    for boundary in range(1, 1000):
        folder = tmp_path / f"killed-{boundary}"
        shutil.copytree(saved, folder)

        def save(folder: Path = folder, boundary: int = boundary) -> None:
            kill_at(boundary, folder)
            CheckpointStore(folder, keep=1).save(snapshot(200), best=True)

        code = in_another_process(save)
        survivors.append(surviving_step(folder))
        CheckpointStore(folder, keep=1).save(snapshot(300), best=True)
        assert sorted(path.name for path in folder.iterdir()) == ["best.json", "step-00000300"]
        shutil.rmtree(folder)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert len(survivors) > 20
    assert survivors == sorted(survivors)
    assert set(survivors) == {100, 200}


@pytest.mark.parametrize("limit_bytes", [0, 1, 100, 1_000, 10_000, 16_000])
@pytest.mark.parametrize("killed", [True, False])
def test_stopped_in_the_middle_of_a_file_the_store_holds_the_checkpoint_before(saved, limit_bytes, killed):
    def save() -> None:
        # The kernel stops the write that passes the limit: by a signal, or where that is ignored by an error.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if killed else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        CheckpointStore(saved, keep=1).save(snapshot(200), best=True)

    assert in_another_process(save) == (-signal.SIGXFSZ if killed else DISK_REFUSED)
    assert surviving_step(saved) == 100
    if not killed:
        assert sorted(path.name for path in saved.iterdir()) == ["best.json", "step-00000100"]
