"""Run a store's whole life, killed at the first file operation, then at the second, and so on, until it survives.

    python tests/chaos/store_dies_everywhere.py FOLDER STEP

After each death the folder is opened again and compared with what was acknowledged. Each life is a fork of this
process, which itself never starts a thread. Prints how many deaths there were.
"""

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hsokv_ray.memory.stores.config import FaissConfig
from hsokv_ray.memory.stores.lsm.store import FaissStore

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}
NUM_LIVES, NUM_ROWS = 3, 20


def config(folder: Path) -> FaissConfig:
    return FaissConfig(path=str(folder), metric="l2", seal_rows=16)


def live(folder: Path, acknowledge: Callable[[int], None]) -> None:
    """Open, write, seal, merge and close, three times over. Write n gives rows 0 to 19 the value n."""
    number = 0
    for _ in range(NUM_LIVES):
        with FaissStore(config(folder), grace_s=0) as store:
            for _ in range(2):
                number += 1
                write(store, number)
                acknowledge(number)
                store._maintenance._seal_all()
            store.optimize()


def write(store: FaissStore, number: int) -> None:
    ids = [f"{i}" for i in range(NUM_ROWS)]
    store.upsert(ids, np.full((NUM_ROWS, 3), number), [{"number": number}] * NUM_ROWS)


def die_at(boundary: int, folder: Path) -> None:
    """Kill this process at the file operation in `folder` that comes after `boundary` others."""
    left = boundary

    def hook(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in EVENTS and str(arguments[0]).startswith(str(folder)):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def check(folder: Path, acknowledged: int) -> None:
    """Compare the store with the last write that was acknowledged; the one after it may be there too, whole."""
    with FaissStore(config(folder)) as store:
        store.check_integrity()
        numbers = {record.metadata["number"] for record in store.records()}
        allowed = [{acknowledged} - {0}, {acknowledged + 1}]
        assert numbers in allowed, (numbers, acknowledged)
        assert store.count() == (NUM_ROWS if numbers else 0)
        write(store, 1000)
        store.optimize()
    with FaissStore(config(folder)) as store:
        store.check_integrity()
        assert {record.metadata["number"] for record in store.records()} == {1000}
        assert len(store.stats().details["segments"]) == 1


def in_fork(work: Callable[[], None]) -> int:
    """Run `work` in a child; return its exit status, minus the signal's number where one killed it."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_once(folder: Path, boundary: int) -> bool:
    """Return whether the process died at `boundary`, and check what it left."""
    reader, writer = os.pipe()

    def work() -> None:
        die_at(boundary, folder)
        live(folder, lambda number: os.write(writer, bytes([number])))

    status = in_fork(work)
    os.close(writer)
    acknowledged = max(os.read(reader, 100), default=0)
    os.close(reader)
    assert status in (0, -signal.SIGKILL), status
    assert in_fork(lambda: check(folder, acknowledged)) == 0, f"after death at file operation {boundary}"
    return status != 0


def main() -> None:
    """Die at every STEPth file operation."""
    root, step, boundary, num_deaths = Path(sys.argv[1]), int(sys.argv[2]), 0, 0
    while die_once(root / f"{boundary}", boundary):
        shutil.rmtree(root / f"{boundary}", ignore_errors=True)
        boundary, num_deaths = boundary + step, num_deaths + 1
    print(num_deaths)


if __name__ == "__main__":
    main()
