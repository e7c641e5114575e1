"""A shared memory whose actor is killed again and again under load, and what must be true afterwards."""

import os
import random
import signal
import threading
import time
from dataclasses import dataclass, field

import numpy as np

from hsokv_ray.errors import HsokvError
from hsokv_ray.memory.shared import MemoryClient

DIM = 8
_IDS_PER_WRITER = 60


@dataclass
class Writer:
    """One thread's ids, which nobody else writes: what was acknowledged, and what is in doubt."""

    number: int
    client: MemoryClient
    acknowledged: dict[str, np.ndarray | None] = field(default_factory=dict)
    """Id -> its vector; None: deleted."""
    in_doubt: dict[str, list[np.ndarray | None]] = field(default_factory=dict)
    """Id -> what was asked for since, without an answer."""
    num_acknowledged: int = 0

    def run(self, stop: threading.Event, seed: int) -> None:
        """Upsert and delete random ids until `stop`; an error leaves the call in doubt."""
        rng = np.random.default_rng([seed, self.number])
        while not stop.is_set():
            picked = rng.choice(_IDS_PER_WRITER, size=int(rng.integers(1, 12)), replace=False)
            ids = [f"writer {self.number} row {i}" for i in picked]
            vectors = rng.normal(size=(len(ids), DIM)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            deletes = bool(rng.random() < 0.2)
            wanted = {id: None if deletes else vector for id, vector in zip(ids, vectors, strict=True)}
            for id, value in wanted.items():
                self.in_doubt.setdefault(id, []).append(value)
            try:
                self.client.delete(ids) if deletes else self.client.upsert(ids, vectors)
            except HsokvError:
                continue
            self.num_acknowledged += 1
            for id, value in wanted.items():
                self.acknowledged[id] = value
                del self.in_doubt[id]


def kill_under_load(client: MemoryClient, *, rounds: int, seed: int, num_writers: int = 3) -> int:
    """Kill the writer of shard 0 `rounds` times at random moments; check everything; return the acknowledged writes."""
    writers = [Writer(i, client) for i in range(num_writers)]
    clock = random.Random(seed)
    for number in range(rounds):
        stop = threading.Event()
        threads = [threading.Thread(target=each.run, args=(stop, seed + number)) for each in writers]
        before = [each.num_acknowledged for each in writers]
        pid = client.info(0).pid
        for thread in threads:
            thread.start()
        time.sleep(clock.uniform(0.0, 0.25))
        os.kill(pid, signal.SIGKILL)
        while any(each.num_acknowledged <= old for each, old in zip(writers, before, strict=True)):
            time.sleep(0.01)  # every writer got through again, whatever the kill interrupted
        stop.set()
        for thread in threads:
            thread.join()
        assert client.info(0).pid != pid
        check(client, writers)
    return sum(each.num_acknowledged for each in writers)


def check(client: MemoryClient, writers: list[Writer]) -> None:
    """Every acknowledged row is there as last acknowledged, and nothing else is; all counts agree."""
    records = list(client.records())
    stored = {record.id: record.vector for record in records}
    assert len(stored) == len(records) == client.count()
    for writer in writers:
        for id in {*writer.acknowledged, *writer.in_doubt}:
            allowed = [writer.acknowledged.get(id), *writer.in_doubt.get(id, [])]
            assert any(_same(stored.get(id), each) for each in allowed), (id, stored.get(id), allowed)
            stored.pop(id, None)
    assert not stored, f"never asked for: {list(stored)[:5]}"
    for record in records[:20]:
        [hits] = client.query(record.vector, top_k=1)
        assert hits[0].score > 1 - 1e-5


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is None and b is None if a is None or b is None else np.allclose(a, b, atol=1e-6)
