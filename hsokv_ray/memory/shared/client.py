"""A shared memory as a `VectorStore`: any job, trainer or server of the cluster reads and writes it like a local one.

    memory = connect("notes", collection="papers")
    memory.upsert(ids, vectors, metadata)
    [hits] = memory.query(vector, top_k=5, filter=field("year") >= 2000)
    reply = memory.search(vectors)                    # reply.hits, reply.versions: which version of which shard

Beside the files the client reads by itself, from sealed segments mapped without copying; elsewhere it asks the shard's
replicas or its writer, with concurrent calls joined.
"""

import itertools
import json
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import ray

from hsokv_ray import env
from hsokv_ray.errors import ConfigError, DataError, Overloaded, StoreError
from hsokv_ray.memory.shared.budget import ByteBudget
from hsokv_ray.memory.shared.config import MemoryConfig
from hsokv_ray.memory.shared.links import PATIENCE_S, Link, read_config
from hsokv_ray.memory.shared.messages import NOTHING, ShardInfo, shard_of
from hsokv_ray.memory.shared.reads import Freshness, LocalReads, Reads, RemoteReads
from hsokv_ray.memory.shared.replica import follow
from hsokv_ray.memory.shared.service import Caller
from hsokv_ray.memory.stores import checks
from hsokv_ray.memory.stores.base import FilterLike, VectorStore
from hsokv_ray.memory.stores.facets import Predicate, compile_filter
from hsokv_ray.memory.stores.filters import parse_filter
from hsokv_ray.memory.stores.lsm.view import Version, View
from hsokv_ray.memory.stores.types import Hit, Page, Record, Rows, StoreStats
from hsokv_ray.runtime import connect as connect_ray

_CHUNK_BYTES = 8 * 2**20
"""Of one write to one shard; larger batches go in several."""
_CHUNKS_UNDER_WAY = 4


@dataclass(frozen=True, slots=True)
class SearchReply:
    """Hits, and where they were read."""

    hits: list[list[Hit]]
    versions: dict[int, Version] = field(default_factory=dict)
    """Shard -> the version it was read from."""


def connect(
    name: str,
    collection: str = "main",
    *,
    key: str | None = None,
    consistency: str = "session",
    reads: Literal["auto", "local", "remote"] = "auto",
    patience_s: float = PATIENCE_S,
) -> "MemoryClient":
    """Return a client of the running memory `name`; joins Ray where that is not done yet.

    Args:
        collection: made by its first write.
        key: a tenant's key; default: the environment's HSOKV_MEMORY_KEY, and without one the tenant `default`.
        consistency: what a read contains. `strong`: everything acknowledged before it, to anyone. `session`: everything
            this client wrote. `bounded(50ms)`: everything acknowledged to anyone 50 ms ago. `eventual`: no promise,
            no waiting.
        reads: `local` reads in this process, `remote` asks actors; `auto` is local beside the files.
        patience_s: how long a call waits for an actor that restarts or is full.

    Raises:
        StoreError: no such memory runs, it is of another version, or does not know the key.
        ConfigError: an option is wrong.
    """
    connect_ray()
    caller = Caller(collection, key or env.memory_key())
    return MemoryClient(name, caller, freshness=Freshness.parse(consistency), reads=reads, patience_s=patience_s)


class MemoryClient(VectorStore):
    """One collection of a shared memory; made by `connect`. Writes to several shards are not atomic together."""

    driver = "shared"

    def __init__(self, name: str, caller: Caller, *, freshness: "Freshness", reads: str, patience_s: float) -> None:
        first = Link(name, 0, patience_s=patience_s)
        info = first.describe()
        self.config: MemoryConfig = read_config(info)
        super().__init__(self.config.metric)
        self._caller = caller
        self._links = [first, *(Link(name, i, patience_s=patience_s) for i in range(1, self.config.num_shards))]
        self._dim: int | None = None
        self._patience_s = patience_s
        self._budget = ByteBudget(self.config.queue_bytes, "this client")
        self._written = [NOTHING] * len(self._links)
        self._threads = ThreadPoolExecutor(max(len(self._links), 1), "memory-client")
        self._reads = self._choose_reads(reads, info.node_id, freshness, patience_s)
        self.dim  # noqa: B018  # a key that is not known is refused now, not at the first call

    @property
    def dim(self) -> int | None:
        if self._dim is None:
            self._dim = next((dim for _, dim in self._everywhere("exists") if dim is not None), None)
        return self._dim

    @property
    def versions(self) -> dict[int, Version]:
        """Shard -> the version of this client's last acknowledged write."""
        return dict(enumerate(self._written))

    def search(self, vectors: Any, top_k: int = 10, filter: FilterLike = None) -> SearchReply:
        """As `query`, with the versions that were read."""
        self._check_open()
        top_k = checks.check_top_k(top_k)
        predicate = compile_filter(parse_filter(filter))
        queries = checks.check_vectors(vectors, metric=self.metric, dim=self.dim)
        if not len(queries) or self.dim is None:
            return SearchReply([[] for _ in queries])
        return self._search_shards(queries, top_k, predicate)

    def drop(self) -> bool:
        """Delete the whole collection; return whether it was there."""
        self._check_open()
        there = any(self._everywhere("drop"))
        self._reads.forget()
        self._dim, self._written = None, [NOTHING] * len(self._links)
        return there

    def collections(self) -> list[str]:
        """Return the names of this tenant's collections."""
        names = [link.call("collections", self._caller.key) for link in self._links]
        return sorted(set(itertools.chain.from_iterable(names)))

    def snapshot(self, uri: str) -> list[str]:
        """Write a snapshot of the collection below `uri` (any pyarrow.fs URI); return one place per shard."""
        self._check_open()
        return [place for place in self._everywhere("snapshot", uri) if place]

    def view(self, shard: int = 0) -> View:
        """Return the view that a read of `shard` by this process now comes from, for work on its columns.

        Raises `StoreError` where reads go through actors, or nothing was written yet.
        """
        view = self._reads.view(shard, self._written[shard])
        if view is None:
            raise StoreError(f"no view of {self._caller.collection!r} here: nothing is in it, or reads are remote")
        return view

    def info(self, shard: int = 0) -> ShardInfo:
        """Return who writes `shard`: its node, its process, its version."""
        return self._links[shard].describe()

    def status(self) -> list[dict[str, Any]]:
        """Return what each shard's writer says of itself."""
        return [link.call("status") for link in self._links]

    def _choose_reads(self, reads: str, node_id: str, freshness: "Freshness", patience_s: float) -> Reads:
        if reads not in ("auto", "local", "remote"):
            raise ConfigError(f"reads: got {reads!r}; auto, local or remote is needed")
        beside = self.config.shared_root or node_id == ray.get_runtime_context().get_node_id()
        if reads == "local" or (reads == "auto" and beside):
            readers = [follow(link, self._caller, num_threads=0) for link in self._links]
            return LocalReads(readers, freshness)
        replicas = [
            [Link(link.memory, link.shard, i, patience_s=patience_s) for i in range(self.config.num_replicas)]
            for link in self._links
        ]
        return RemoteReads(self._caller, self._links, replicas, freshness, self._threads)

    def _upsert(self, rows: Rows) -> None:
        under_way: deque[tuple[int, int, Callable[[], Version]]] = deque()
        try:
            for shard, part in enumerate(self._split(rows)):
                for chunk in _chunks(part):
                    num_bytes = chunk.vectors.nbytes + sum(map(len, chunk.metadata))
                    self._make_room(num_bytes, under_way)
                    write = self._links[shard].start("upsert", self._caller, chunk, uuid.uuid4().hex)
                    under_way.append((shard, num_bytes, write))
            while under_way:
                self._finish(under_way)
        finally:
            self._budget.give(sum(num_bytes for _, num_bytes, _ in under_way))
        self._dim = rows.vectors.shape[1]

    def _search(self, queries: np.ndarray, top_k: int, predicate: Predicate | None) -> list[list[Hit]]:
        return self._search_shards(queries, top_k, predicate).hits

    def _search_shards(self, queries: np.ndarray, top_k: int, predicate: Predicate | None) -> SearchReply:
        replies = self._reads.search(queries, top_k, predicate, self._written)
        versions = {shard: version for shard, (_, version) in enumerate(replies)}
        if len(replies) == 1:
            return SearchReply(replies[0][0], versions)
        merged = [
            sorted(itertools.chain.from_iterable(rows), key=lambda hit: (-hit.score, hit.id))[:top_k]
            for rows in zip(*(hits for hits, _ in replies), strict=True)
        ]
        return SearchReply(merged, versions)

    def _get(self, ids: list[str]) -> list[Record | None]:
        found: dict[str, Record | None] = {}
        for shard, names in enumerate(self._split_ids(ids)):
            if names:
                found |= zip(names, self._reads.get(shard, names, self._written[shard]), strict=True)
        return [found[id] for id in ids]

    def _delete(self, ids: list[str]) -> int:
        work = [
            (shard, self._links[shard].start("delete", self._caller, names, uuid.uuid4().hex))
            for shard, names in enumerate(self._split_ids(ids))
            if names
        ]
        return sum(self._note_deleted(shard, finish()) for shard, finish in work)

    def _delete_where(self, predicate: Predicate) -> int:
        work = [link.start("delete_where", self._caller, predicate, uuid.uuid4().hex) for link in self._links]
        return sum(self._note_deleted(shard, finish()) for shard, finish in enumerate(work))

    def _count(self, predicate: Predicate | None) -> int:
        return sum(self._reads.count(shard, predicate, self._written[shard]) for shard in range(len(self._links)))

    def _scroll(self, predicate: Predicate | None, page_size: int, cursor: str | None) -> Page:
        shard, inner = _parse_cursor(cursor, len(self._links))
        page = self._reads.scroll(shard, predicate, page_size, inner, self._written[shard])
        if page.cursor is not None:
            return Page(page.records, json.dumps([shard, page.cursor]))
        is_last = shard + 1 == len(self._links)
        return Page(page.records, None if is_last else json.dumps([shard + 1, None]))

    def _stats(self) -> StoreStats:
        status = self.status()
        return StoreStats(
            driver=self.driver,
            count=self._count(None),
            dim=self.dim,
            metric=self.metric,
            index=self.config.index,
            disk_bytes=None,
            details={"memory": self.config.name, "collection": self._caller.collection, "shards": status},
        )

    def _optimize(self) -> None:
        self._everywhere("optimize")

    def _close(self) -> None:
        self._reads.close()
        self._threads.shutdown(wait=False)

    def _everywhere(self, method: str, *args: Any) -> list[Any]:
        """Call `method` on every shard at once; return the answers in their order."""
        work = [link.start(method, self._caller, *args) for link in self._links]
        return [finish() for finish in work]

    def _split(self, rows: Rows) -> list[Rows]:
        if len(self._links) == 1:
            return [rows]
        owners = np.array([shard_of(id, len(self._links)) for id in rows.ids])
        parts = [np.flatnonzero(owners == shard) for shard in range(len(self._links))]
        return [
            Rows([rows.ids[i] for i in part], rows.vectors[part], [rows.metadata[i] for i in part]) for part in parts
        ]

    def _split_ids(self, ids: Sequence[str]) -> list[list[str]]:
        parts: list[list[str]] = [[] for _ in self._links]
        for id in ids:
            parts[shard_of(id, len(self._links))].append(id)
        return parts

    def _make_room(self, num_bytes: int, under_way: deque[tuple[int, int, Callable[[], Version]]]) -> None:
        """Take `num_bytes` of the budget: first by finishing this call's own writes, then by waiting for others'."""
        end = time.monotonic() + self._patience_s
        while len(under_way) >= _CHUNKS_UNDER_WAY:
            self._finish(under_way)
        while True:
            try:
                return self._budget.take(num_bytes)
            except Overloaded as full:
                if under_way:
                    self._finish(under_way)
                elif time.monotonic() + full.retry_after_s > end:
                    raise
                else:
                    time.sleep(full.retry_after_s)

    def _finish(self, under_way: deque[tuple[int, int, Callable[[], Version]]]) -> None:
        """Wait for the oldest write."""
        shard, num_bytes, write = under_way.popleft()
        try:
            self._note(shard, write())
        finally:
            self._budget.give(num_bytes)

    def _note(self, shard: int, version: Version) -> None:
        self._written[shard] = max(self._written[shard], version)

    def _note_deleted(self, shard: int, answer: tuple[Version, int]) -> int:
        self._note(shard, answer[0])
        return answer[1]


def _chunks(rows: Rows) -> list[Rows]:
    """Split `rows` so that one write holds about `_CHUNK_BYTES`."""
    if not rows.ids:
        return []
    sizes = rows.vectors.itemsize * rows.vectors.shape[1] + np.array([len(text) for text in rows.metadata])
    ends = np.flatnonzero(np.diff(np.cumsum(sizes) // _CHUNK_BYTES)) + 1
    bounds = itertools.pairwise([0, *ends.tolist(), len(rows)])
    return [Rows(rows.ids[a:b], rows.vectors[a:b], rows.metadata[a:b]) for a, b in bounds]


def _parse_cursor(cursor: str | None, num_shards: int) -> tuple[int, str | None]:
    if cursor is None:
        return 0, None
    try:
        shard, inner = json.loads(cursor)
    except (ValueError, TypeError):
        shard, inner = None, None
    if not isinstance(shard, int) or not 0 <= shard < num_shards or not isinstance(inner, str | None):
        raise DataError(f"cursor: got {cursor!r}, which this store did not give; begin without one")
    return shard, inner
