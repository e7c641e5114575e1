"""Agents that share what their key-value memories hold, through one vector store: a local one or the memory actor.

    shared = SharedEntries(connect("notes", "words"), writer="a3")
    baseline = shared.merge_into(memory)              # what all agents wrote, with the standing all of them gave it
    ...                                               # train; reads and feedback move the standing
    shared.publish(memory, baseline, version=17)      # what this agent added, once, however often it is published

Each writer has its own row per entry, so writers never overwrite each other and the merge of rows does not depend on
the order in which they came (a state-based CRDT: Shapiro et al. 2011, https://inria.hal.science/inria-00555588).
Key, value and input of an entry are those of its highest (version, writer); retrievals, feedbacks and successes are
sums of what each writer contributed (grow-only counters), and the confidence follows from them. A version published
again replaces what it published before, an older one is passed over: a repeated order counts once.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hsokv_ray.errors import DataError
from hsokv_ray.memory.config import LifecycleConfig
from hsokv_ray.memory.key_value import KeyValueMemory
from hsokv_ray.memory.key_value_entry import Entry
from hsokv_ray.memory.stores import open_store
from hsokv_ray.memory.stores.base import VectorStore
from hsokv_ray.memory.stores.types import Record
from hsokv_ray.swarm.learner import Learner, Task
from hsokv_ray.swarm.messages import Order
from hsokv_ray.swarm.space import Space, Strategy

COUNTS = ("retrievals", "feedbacks", "successes")
Counts = dict[str, float]
Baseline = dict[str, Counts]
"""By entry: the counts it had when it was merged."""


@dataclass(frozen=True)
class Row:
    """What one writer says of one entry."""

    entry: str
    writer: str
    version: int
    key: np.ndarray
    """float32 [key_dim]."""
    value: np.ndarray
    """float32 [value_dim]."""
    encoder_id: str
    given: Any
    """What the key was encoded from."""
    metadata: dict[str, Any]
    counts: Counts
    """Contributed by this writer, up to and with this version."""
    before: Counts
    """The same without this version."""

    @property
    def id(self) -> str:
        """The row's own id in the store."""
        return f"{self.writer}/{self.entry}"


@dataclass
class Merged:
    """One entry as all writers together have it."""

    newest: Row
    counts: Counts = field(default_factory=lambda: _no_counts())

    def add(self, row: Row) -> None:
        """Take in one more writer's row."""
        if (row.version, row.writer) > (self.newest.version, self.newest.writer):
            self.newest = row
        self.counts = {name: self.counts[name] + row.counts[name] for name in COUNTS}


def merge(rows: list[Row]) -> dict[str, Merged]:
    """Return the entries that `rows`, one per writer and entry, stand for, ordered by id."""
    entries: dict[str, Merged] = {}
    for row in sorted(rows, key=lambda row: (row.entry, row.writer)):
        entries.setdefault(row.entry, Merged(row)).add(row)
    return entries


class SharedEntries:
    """One writer's access to what all share.

    Args:
        store: where the rows lie; any `VectorStore`.
        writer: this agent; unique among those who write.
    """

    def __init__(self, store: VectorStore, writer: str) -> None:
        if not writer or "/" in writer:
            raise DataError(f"writer: got {writer!r}; a name without '/' is needed")
        self.store, self.writer = store, writer

    def rows(self) -> list[Row]:
        """Return the rows of all writers."""
        if self.store.dim is None:
            return []
        return [_row(record) for record in self.store.records()]

    def merge_into(self, memory: KeyValueMemory) -> Baseline:
        """Write the entries of all writers into `memory`, most useful first where they are too many for it.

        Entries that nobody published stay. Keys of another encoder come in as stale ones: left out of reads until
        `reencode`, where the memory is configured so.

        Raises:
            DataError: they are of other dimensions.
        """
        entries = merge(self.rows())
        chosen = _most_useful(entries, memory.config.capacity)
        for encoder_id in sorted({each.newest.encoder_id for each in chosen}):
            _write(memory, [each for each in chosen if each.newest.encoder_id == encoder_id], encoder_id)
        return {entry.id: _counts_of(memory, entry.id) for entry in memory.entries if entry is not None}

    def publish(self, memory: KeyValueMemory, baseline: Mapping[str, Counts], *, version: int) -> int:
        """Write what `memory` has that this writer did not say yet; return how many rows were written.

        Args:
            baseline: what `merge_into` returned before; entries it lacks are new.
            version: of this writer, growing; the same again replaces, a lower one changes nothing.
        """
        known = {row.entry: row for row in self.rows() if row.writer == self.writer}
        said = [self._said(memory, e, known.get(e.id), baseline, version) for e in memory.entries if e is not None]
        rows = [row for row in said if row is not None]
        if rows:
            self.store.upsert([row.id for row in rows], np.stack([row.key for row in rows]), [_facts(r) for r in rows])
        return len(rows)

    def _said(
        self, memory: KeyValueMemory, entry: Entry, old: Row | None, baseline: Mapping[str, Counts], version: int
    ) -> Row | None:
        """Return this writer's new row of `entry`; None where it has nothing to say."""
        if old is not None and old.version > version:
            return None
        now, was = _counts_of(memory, entry.id), baseline.get(entry.id) or _no_counts()
        gained = {name: max(now[name] - was[name], 0.0) for name in COUNTS}
        if old is None and entry.id in baseline and not any(gained.values()):
            return None  # another's entry
        before = _no_counts() if old is None else old.before if old.version == version else old.counts
        [slot] = memory.slots_of([entry.id])
        key, value = memory.keys[slot].cpu().float().numpy(), memory.values[slot].cpu().float().numpy()
        counts = {name: before[name] + gained[name] for name in COUNTS}
        return Row(
            entry.id, self.writer, version, key, value, entry.encoder_id, entry.input, entry.metadata, counts, before
        )


class SharingLearner:
    """A learner that takes over what all agents wrote before each order, and publishes what it added after it.

    Args:
        learner: has a `memory`, and where keys or values are of its own making, `bring_up_to_date()`.
        store: shared by all agents.
        run: goes before the writers' names, so that two runs on one store do not take each other's rows for their own.

    Raises:
        DataError: the learner has no memory to share.
    """

    def __init__(self, learner: Any, store: VectorStore, *, run: str = "") -> None:
        if not hasattr(type(learner), "memory"):
            raise DataError(f"sharing: {type(learner).__name__} has no memory; share among learners that have one")
        self.learner, self.store, self._run = learner, store, run
        self._writer, self._version = "", 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)  # configure, evaluate, state, test, save, ... are the learner's own

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def begins(self, order: Order) -> None:
        """Hear which order follows: its agent is the writer, its number the version."""
        agent, _, number = order.order_id.partition(".")
        self._writer, self._version = f"{self._run}{agent}", int(number)

    def train(self, num_steps: int) -> None:
        """Train between merging and publishing."""
        memory: KeyValueMemory | None = self.learner.memory
        if memory is None:
            self.learner.train(num_steps)
            return
        shared = SharedEntries(self.store, self._writer)
        with memory.writable():
            baseline = shared.merge_into(memory)
        if hasattr(self.learner, "bring_up_to_date"):
            self.learner.bring_up_to_date()  # keys and values of others mean nothing to this model
        self.learner.train(num_steps)
        shared.publish(self.learner.memory, baseline, version=self._version)


@dataclass(frozen=True)
class SharingTask:
    """A task whose agents share one memory.

    Args:
        task: makes learners that have a memory.
        uri: `shared:NAME/COLLECTION` of the memory actor, or a local store such as `faiss:FOLDER` for one process.
        run: names the search among those that use the store.
    """

    task: Task
    uri: str
    run: str = ""

    @property
    def name(self) -> str:
        """The task's own."""
        return self.task.name

    @property
    def space(self) -> Space:
        """The task's own."""
        return self.task.space

    def learner(self) -> Learner:
        """Make a learner that shares. Raises `StoreError`: no such memory runs."""
        return SharingLearner(self.task.learner(), open_store(self.uri), run=self.run)  # pyright: ignore[reportReturnType]

    def cost(self, strategy: Strategy) -> int:
        """The task's own."""
        return self.task.cost(strategy)


def shares(task: Task) -> bool:
    """Return whether the agents of `task` share a memory, whatever else it is wrapped in."""
    inner = getattr(task, "task", None)
    return isinstance(task, SharingTask) or (inner is not None and shares(inner))


def confidence_of(counts: Counts, config: LifecycleConfig) -> float:
    """Return the confidence that feedback has given an entry: initial + step * (successes - feedbacks / 2)."""
    moved = config.confidence_step * (counts["successes"] - 0.5 * counts["feedbacks"])
    return float(np.clip(config.initial_confidence + moved, config.min_confidence, 1.0))


def _write(memory: KeyValueMemory, entries: list[Merged], encoder_id: str) -> None:
    newest = [each.newest for each in entries]
    written = memory.write(
        torch.from_numpy(np.stack([row.key for row in newest])),
        torch.from_numpy(np.stack([row.value for row in newest])),
        ids=[row.entry for row in newest],
        metadata=[row.metadata for row in newest],
        inputs=[row.given for row in newest],
        encoder_id=encoder_id,
    )
    by_id = {each.newest.entry: each for each in entries}
    slots = np.array(written.slots, np.int64)
    life = memory.lifecycle
    for slot, name in zip(written.slots, written.ids, strict=True):
        counts = by_id[name].counts
        life.retrievals[slot], life.feedbacks[slot] = int(counts["retrievals"]), int(counts["feedbacks"])
        life.successes[slot] = counts["successes"]
        life.confidence[slot] = confidence_of(counts, life.config)
    memory._refresh(slots)


def _most_useful(entries: dict[str, Merged], capacity: int) -> list[Merged]:
    """Return at most `capacity` entries: those retrieved most, of equals the newest."""
    ranked = sorted(entries.values(), key=lambda each: (-each.counts["retrievals"], -each.newest.version))
    return ranked[:capacity]


def _no_counts() -> Counts:
    return dict.fromkeys(COUNTS, 0.0)


def _counts_of(memory: KeyValueMemory, id: str) -> Counts:
    [slot] = memory.slots_of([id])
    assert slot is not None
    return {name: float(getattr(memory.lifecycle, name)[slot]) for name in COUNTS}


def _facts(row: Row) -> dict[str, Any]:
    return {
        "entry": row.entry, "writer": row.writer, "version": row.version, "encoder_id": row.encoder_id,
        "input": row.given, "metadata": row.metadata, "counts": row.counts, "before": row.before,
        "value": base64.b64encode(row.value.astype("<f4").tobytes()).decode(),
    }  # fmt: skip


def _row(record: Record) -> Row:
    facts = record.metadata
    try:
        value = np.frombuffer(base64.b64decode(facts["value"]), "<f4").copy()
        return Row(facts["entry"], facts["writer"], facts["version"], record.vector, value, facts["encoder_id"],
                   facts["input"], facts["metadata"], facts["counts"], facts["before"])  # fmt: skip
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"shared memory: row {record.id!r} is no entry of a swarm ({error!r}); give a collection of its own"
        ) from None
