"""A process that writes to a store from several threads and says what was acknowledged. It is there to be killed.

    python tests/chaos/store_under_load.py FOLDER SEED NUM_THREADS

Lines on standard output, each written whole: "ready"; "ask THREAD upsert|delete NUMBER ID ..." before a call; "done
THREAD" after it returned. The vector of an id follows from the id and the number of the write, so that whoever reads
the lines knows every vector that the store may hold.
"""

import os
import random
import sys
import threading
from collections.abc import Iterator

import numpy as np

from hsokv_ray.memory.stores.config import FaissConfig
from hsokv_ray.memory.stores.lsm import maintenance
from hsokv_ray.memory.stores.lsm.store import FaissStore

DIM = 8
IDS_PER_THREAD = 60


def vector(id: str, number: int) -> np.ndarray:
    """Return the float32 [DIM] vector that write `number` gives `id`."""
    seed = int.from_bytes(id.encode(), "little") % 2**32
    return np.random.default_rng([seed, number]).normal(size=DIM).astype(np.float32)


def config(folder: str) -> FaissConfig:
    """Return a store that seals, merges and rewrites all the time."""
    return FaissConfig(path=folder, metric="l2", seal_rows=16)


def say(line: str) -> None:
    """Write a line in one piece: shorter than what a pipe takes at once."""
    os.write(1, line.encode() + b"\n")


def calls(thread: int, seed: int) -> Iterator[tuple[str, int, list[str]]]:
    """Yield what a thread asks for, without end. Threads share no ids, so the order of acknowledgements is known."""
    choice = random.Random(f"{seed}-{thread}")
    ids = [f"{thread}-{i}" for i in range(IDS_PER_THREAD)]
    number = seed * 1_000_000
    while True:
        number += 1
        verb = "delete" if choice.random() < 0.25 else "upsert"
        yield verb, number, choice.sample(ids, choice.randint(1, 12))


def write_for_ever(store: FaissStore, thread: int, seed: int) -> None:
    """Write until killed."""
    for verb, number, ids in calls(thread, seed):
        say(f"ask {thread} {verb} {number} {' '.join(ids)}")
        if verb == "delete":
            store.delete(ids)
        else:
            metadata = [{"number": number}] * len(ids)
            store.upsert(ids, np.stack([vector(id, number) for id in ids]), metadata)
        say(f"done {thread}")


def main() -> None:
    """Open the store and load it."""
    maintenance.QUIET_S = 0.0
    folder, seed, num_threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    store = FaissStore(config(folder))
    say("ready")
    threads = [threading.Thread(target=write_for_ever, args=(store, i, seed)) for i in range(num_threads)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


if __name__ == "__main__":
    main()
