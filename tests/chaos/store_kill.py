"""Kill a writing process again and again; after each death compare the store with what was acknowledged."""

import importlib.util
import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np

from hsokv_ray.memory.stores.lsm.store import FaissStore

SCRIPT = Path(__file__).with_name("store_under_load.py")
NUM_THREADS = 3
ABSENT = -1


def load_script() -> ModuleType:
    """Return the script as a module."""
    spec = importlib.util.spec_from_file_location("store_under_load", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


@dataclass
class Oracle:
    """Which write each id may show: one once its writer was told, two while a write is on its way."""

    allowed: dict[str, set[int]] = field(default_factory=dict)
    """By id: numbers of writes, ABSENT for none."""
    asked: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    """By thread: the write on its way."""
    num_done: int = 0

    def hear(self, line: str) -> None:
        """Take in one line of the script."""
        word, *rest = line.split()
        if word == "ask":
            thread, verb, number, *ids = rest
            effect = ABSENT if verb == "delete" else int(number)
            self.asked[thread] = (effect, ids)
            for id in ids:
                self.allowed.setdefault(id, {ABSENT}).add(effect)
        elif word == "done":
            effect, ids = self.asked.pop(rest[0])
            self.allowed.update((id, {effect}) for id in ids)
            self.num_done += 1

    def check(self, store: FaissStore) -> None:
        """Compare everything in `store`, and take what it shows for settled."""
        store.check_integrity()
        records = list(store.records())
        found = {record.id: record for record in records}
        assert len(found) == len(records) == store.count(), "an id is there twice"
        assert found.keys() <= self.allowed.keys(), f"never asked for: {found.keys() - self.allowed.keys()}"
        for id, allowed in self.allowed.items():
            number = found[id].metadata["number"] if id in found else ABSENT
            assert number in allowed, f"{id}: shows write {number}, one of {sorted(allowed)} is right"
            if id in found:
                assert np.array_equal(found[id].vector, script.vector(id, number)), f"{id}: another vector"
            self.allowed[id] = {number}
        self.asked.clear()
        self._check_search(store, found)

    def _check_search(self, store: FaissStore, found: dict) -> None:
        sample = list(found.values())[:20]
        if sample:
            hits = store.query(np.stack([record.vector for record in sample]), top_k=1)
            assert [hit[0].id for hit in hits] == [record.id for record in sample]
            assert all(abs(hit[0].score) < 1e-5 for hit in hits)


def kill_once(folder: Path, seed: int, num_lines: int, oracle: Oracle) -> None:
    """Start the script, let it say `num_lines` lines, kill it, and hear what it said until then."""
    command = [sys.executable, str(SCRIPT), str(folder), str(seed), str(NUM_THREADS)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(num_lines):
        line = process.stdout.readline().decode()
        if not line:
            break
        oracle.hear(line)
    process.kill()
    for line in process.stdout.read().decode().splitlines():
        oracle.hear(line)
    assert process.wait() == -9, f"the process ended by itself with {process.returncode}"
    process.stdout.close()


def kill_rounds(folder: Path, num_rounds: int, seed: int, *, most_lines: int) -> Oracle:
    """Kill `num_rounds` processes that write to one store, at random points; raises where anything is lost."""
    choice, oracle = random.Random(seed), Oracle()
    for number in range(num_rounds):
        kill_once(folder, seed * 1000 + number, choice.randint(1, most_lines), oracle)
        with FaissStore(script.config(str(folder))) as store:
            oracle.check(store)
            if number % 5 == 4:
                store.optimize()
                oracle.check(store)
    return oracle
