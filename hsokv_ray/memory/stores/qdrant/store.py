"""QdrantStore: a VectorStore on Qdrant.

with open_qdrant(QdrantConfig(path="memory/notes")) as store:                   # the engine in this process
with open_qdrant(QdrantConfig(url="http://127.0.0.1:6333")) as store:           # a server
"""

import threading
from typing import Any
from uuid import UUID

import numpy as np

from hsokv_ray.errors import DataError
from hsokv_ray.memory.stores.base import VectorStore
from hsokv_ray.memory.stores.config import QdrantConfig
from hsokv_ray.memory.stores.facets import Predicate
from hsokv_ray.memory.stores.qdrant.engine import Engine, Scored
from hsokv_ray.memory.stores.qdrant.filters import compile_predicate
from hsokv_ray.memory.stores.qdrant.payload import TERMS, make_points, point_id, read_hit, read_record
from hsokv_ray.memory.stores.types import Hit, Metric, Page, Record, Rows, StoreStats

LARGE_TOP_K = 10_000
"""Above, the records are counted before they are asked for: engines reserve room for every hit they might return."""


def open_qdrant(config: QdrantConfig) -> VectorStore:
    """Open the store of `config`; it is made if missing.

    Raises:
        ConfigError: a package is missing, or the store was made with another metric or dimension.
        StoreError: another process holds the path, it is damaged, or the server cannot be reached.
    """
    if config.path is not None:
        from hsokv_ray.memory.stores.qdrant.edge import EdgeEngine

        return QdrantStore(EdgeEngine(config.path, config.metric, config.dim), config)
    from hsokv_ray.memory.stores.qdrant.server import ServerEngine

    return QdrantStore(ServerEngine(config), config)


class QdrantStore(VectorStore):
    """See `VectorStore`. Search is approximate (HNSW) above some 10,000 KB of vectors, exact where that falls short."""

    driver = "qdrant"

    def __init__(self, engine: Engine, config: QdrantConfig) -> None:
        super().__init__(config.metric)
        self._engine = engine
        self._write_lock = threading.Lock()
        if config.dim is not None and engine.dim is None:
            self._create(config.dim)

    @property
    def dim(self) -> int | None:
        return self._engine.dim

    def _create(self, dim: int) -> None:
        self._engine.create(dim)
        self._engine.index_field(TERMS)

    def _upsert(self, rows: Rows) -> None:
        points = make_points(rows)
        with self._write_lock:
            dim = rows.vectors.shape[1]
            if self._engine.dim is None:
                self._create(dim)
            if self._engine.dim != dim:
                raise DataError(f"vectors: got {dim} dimensions; this store has {self._engine.dim}")
            self._engine.upsert(points)

    def _search(self, queries: np.ndarray, top_k: int, predicate: Predicate | None) -> list[list[Hit]]:
        filter = self._filter(predicate)
        if filter is False:
            return [[] for _ in queries]
        if top_k > LARGE_TOP_K:
            top_k = max(1, min(top_k, self._engine.count(filter)))
        found = self._engine.search(queries, top_k, filter, exact=False)
        short = [i for i, points in enumerate(found) if len(points) < top_k]
        if short and min(len(found[i]) for i in short) < min(top_k, self._engine.count(filter)):
            again = self._engine.search(queries[short], top_k, filter, exact=True)
            for i, points in zip(short, again, strict=True):
                found[i] = points
        return [self._hits(points) for points in found]

    def _hits(self, points: list[Scored]) -> list[Hit]:
        hits = [read_hit(point.payload, _score(point.distance, self.metric)) for point in points]
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))

    def _get(self, ids: list[str]) -> list[Record | None]:
        if self.dim is None:
            return [None] * len(ids)
        points = self._engine.retrieve([point_id(id) for id in dict.fromkeys(ids)])
        records = {point.id: read_record(point.payload, point.vector) for point in points}
        return [records.get(point_id(id)) for id in ids]

    def _delete(self, ids: list[str]) -> int:
        if self.dim is None:
            return 0
        with self._write_lock:
            existing = self._engine.existing([point_id(id) for id in ids])
            if existing:
                self._engine.delete(existing)
        return len(existing)

    def _delete_where(self, predicate: Predicate) -> int:
        if self.dim is None:
            return 0
        with self._write_lock:
            count = self._count(predicate)
            if count:
                filter = self._filter(predicate)
                self._engine.delete_where(self._engine.words.filter() if filter is None else filter)
        return count

    def _count(self, predicate: Predicate | None) -> int:
        if self.dim is None:
            return 0
        filter = self._filter(predicate)
        return 0 if filter is False else self._engine.count(filter)

    def _scroll(self, predicate: Predicate | None, page_size: int, cursor: str | None) -> Page:
        offset = None if cursor is None else _offset(cursor)
        filter = self._filter(predicate)
        if self.dim is None or filter is False:
            return Page([], None)
        points, after = self._engine.scroll(filter, page_size, offset)
        records = [read_record(point.payload, point.vector) for point in points]
        return Page(records, None if after is None else str(after))

    def _stats(self) -> StoreStats:
        details = {} if self.dim is None else self._engine.details()
        return StoreStats(
            driver=self.driver,
            count=self._count(None),
            dim=self.dim,
            metric=self.metric,
            index="HNSW" if details.get("indexed_vectors") else "exact",
            disk_bytes=self._engine.disk_bytes(),
            details={"engine": self._engine.name, **details},
        )

    def _optimize(self) -> None:
        if self.dim is not None:
            with self._write_lock:
                self._engine.optimize()

    def _close(self) -> None:
        with self._write_lock:
            self._engine.close()

    def _filter(self, predicate: Predicate | None) -> Any | None:
        """None: everything; False: nothing."""
        filter = compile_predicate(predicate, self._engine.words)
        return None if filter is True else filter


def _score(distance: float, metric: Metric) -> float:
    if metric == "l2":
        return -(distance * distance)
    return min(1.0, max(-1.0, distance)) if metric == "cosine" else distance


def _offset(cursor: str) -> UUID:
    try:
        return UUID(cursor)
    except (ValueError, AttributeError, TypeError):
        raise DataError(f"cursor: got {cursor!r}; the cursor of a page of this store is needed") from None
