"""VectorStore: what every driver does, with the same meaning, errors and results.

The public methods check what comes in and are written once, here; a driver implements the hooks below them. Methods may
be called from several threads.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from hsokv_ray.errors import DataError, StoreError
from hsokv_ray.memory.stores import checks
from hsokv_ray.memory.stores.facets import Predicate, compile_filter
from hsokv_ray.memory.stores.filters import Filter, parse_filter
from hsokv_ray.memory.stores.types import Hit, Metadata, Metric, Page, Record, Rows, StoreStats

FilterLike = Filter | Mapping[str, Any] | None
"""A filter, the JSON object of one, or None for everything."""


class VectorStore(ABC):
    """Vectors with string ids and JSON metadata, searched by similarity.

    with open_store("faiss:memory/notes") as store:
        store.upsert(["a", "b"], vectors, [{"lang": "en"}, {"lang": "fr"}])      # float32 [2, d]
        [hits] = store.query(vectors[0], top_k=5, filter=field("lang") == "en")
        print(hits[0].id, hits[0].score, hits[0].metadata)
    """

    driver: str
    metric: Metric

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._closed = False

    @property
    @abstractmethod
    def dim(self) -> int | None:
        """The d of the vectors; None until the first one."""

    def upsert(self, ids: Sequence[str], vectors: Any, metadata: Sequence[Metadata] | None = None) -> int:
        """Write rows; a row whose id is already there replaces the old one whole. Durable when it returns.

        Args:
            ids: n strings of any form; of one that comes twice the last row is kept.
            vectors: [n, d] numbers, kept as float32; at unit length where the metric is cosine.
            metadata: n JSON objects; default: empty ones.

        Returns the number of distinct ids written. Raises `DataError` before anything is written, `StoreError` where
        the store cannot take it.
        """
        self._check_open()
        rows = checks.check_rows(ids, vectors, metadata, metric=self.metric, dim=self.dim)
        if rows.ids:
            self._upsert(rows)
        return len(rows)

    def query(self, vectors: Any, top_k: int = 10, filter: FilterLike = None) -> list[list[Hit]]:
        """Return, per query, the `top_k` nearest of the records that pass `filter`, nearest first.

        Args:
            vectors: [n, d], or [d] for a single query, which also gives a list with one list of hits.
            top_k: at least 1; fewer hits come where fewer records pass.

        Raises `DataError` for wrong vectors or filters.
        """
        self._check_open()
        top_k = checks.check_top_k(top_k)
        predicate = compile_filter(parse_filter(filter))
        queries = checks.check_vectors(vectors, metric=self.metric, dim=self.dim)
        if not len(queries):
            return []
        if self.dim is None:
            return [[] for _ in queries]
        return self._search(queries, top_k, predicate)

    def get(self, ids: Sequence[str]) -> list[Record | None]:
        """Return the records of `ids` in their order; None for one that is not there."""
        self._check_open()
        names = checks.check_ids(ids)
        return self._get(names) if names else []

    def delete(self, ids: Sequence[str] | None = None, *, filter: FilterLike = None) -> int:
        """Delete the records of `ids`, or all that pass `filter` (`{}` for everything); return how many there were."""
        self._check_open()
        if (ids is None) == (filter is None):
            raise DataError("delete: give either ids or a filter; filter={} deletes everything")
        if ids is not None:
            names = list(dict.fromkeys(checks.check_ids(ids)))
            return self._delete(names) if names else 0
        predicate = compile_filter(parse_filter(filter))
        assert predicate is not None
        return self._delete_where(predicate)

    def count(self, filter: FilterLike = None) -> int:
        """Return how many records pass `filter`."""
        self._check_open()
        return self._count(compile_filter(parse_filter(filter)))

    def scroll(self, filter: FilterLike = None, *, page_size: int = 1000, cursor: str | None = None) -> Page:
        """Return the next page of the records that pass `filter`, in an order of the driver's choice.

        A record that is neither written nor deleted between the first page and the last comes exactly once. Raises
        `DataError` for a cursor that this store did not give.
        """
        self._check_open()
        if isinstance(page_size, bool) or not isinstance(page_size, int) or page_size < 1:
            raise DataError(f"page_size: got {page_size!r}; a whole number of at least 1 is needed")
        return self._scroll(compile_filter(parse_filter(filter)), page_size, cursor)

    def records(self, filter: FilterLike = None, *, page_size: int = 1000) -> Iterator[Record]:
        """Yield every record that passes `filter`, page by page."""
        cursor = None
        while True:
            page = self.scroll(filter, page_size=page_size, cursor=cursor)
            yield from page.records
            if (cursor := page.cursor) is None:
                return

    def stats(self) -> StoreStats:
        """Return what the store holds."""
        self._check_open()
        return self._stats()

    def optimize(self) -> None:
        """Bring indexes up to date and give freed space back, now and not when the driver sees fit; waits for it."""
        self._check_open()
        self._optimize()

    def close(self) -> None:
        """Release files, threads and connections; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"this {self.driver} store is closed; open it again with open_store")

    # What a driver implements. Ids are distinct strings, vectors checked and as the metric stores them.

    @abstractmethod
    def _upsert(self, rows: Rows) -> None: ...

    @abstractmethod
    def _search(self, queries: np.ndarray, top_k: int, predicate: Predicate | None) -> list[list[Hit]]: ...

    @abstractmethod
    def _get(self, ids: list[str]) -> list[Record | None]: ...

    @abstractmethod
    def _delete(self, ids: list[str]) -> int: ...

    @abstractmethod
    def _delete_where(self, predicate: Predicate) -> int: ...

    @abstractmethod
    def _count(self, predicate: Predicate | None) -> int: ...

    @abstractmethod
    def _scroll(self, predicate: Predicate | None, page_size: int, cursor: str | None) -> Page: ...

    @abstractmethod
    def _stats(self) -> StoreStats: ...

    @abstractmethod
    def _optimize(self) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...
