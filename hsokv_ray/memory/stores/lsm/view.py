"""View: a picture of a store that does not change, and everything that is read from it.

    view = View(Version(7, 42), "cosine", 384, ((segment, alive), (growing.view(), None)))
    matches = view.search(queries, 10, predicate)        # columns: scores, part, position
    matches.hits()                                       # the same as Hit objects

Every id is alive in at most one part. Queries never wait for writers: writers make new views.
"""

import heapq
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hsokv_ray.errors import DataError
from hsokv_ray.memory.stores.facets import Predicate
from hsokv_ray.memory.stores.lsm.allowed import Allowed
from hsokv_ray.memory.stores.lsm.exact import has_gaps
from hsokv_ray.memory.stores.lsm.threads import use_threads
from hsokv_ray.memory.stores.types import Hit, Metric, Page, Record

_CURSOR = "after:"
_CACHED_FILTERS = 4
_SMALL_FLOATS = 2**25
"""A single query that is compared with at most so many numbers (some ten milliseconds) stays on one thread: waiting
for a second thread on a busy machine costs more than it saves."""


@dataclass(frozen=True, order=True, slots=True)
class Version:
    """Which state of a store; later ones are larger."""

    epoch: int
    """Counts the owners that the store has had."""
    seq: int
    """Counts committed writes."""


class Part(Protocol):
    """Rows that a view is made of: a `Segment` or a `GrowingView`. Positions are 0 to num_rows - 1."""

    num_rows: int

    @property
    def kind(self) -> str:
        """flat: every search compares with all rows."""
        ...

    def ids(self, positions: Iterable[int], /) -> list[str]: ...

    def metadata(self, positions: Iterable[int], /) -> list[bytes]: ...

    def vectors(self, positions: Sequence[int] | np.ndarray, /) -> np.ndarray: ...

    def find(self, ids: Iterable[str], /) -> np.ndarray: ...

    def search(
        self, queries: np.ndarray, top_k: int, allowed: Allowed | np.ndarray | None, /
    ) -> tuple[np.ndarray, np.ndarray]: ...

    def mask(self, predicate: Predicate, /) -> np.ndarray: ...

    def after(self, cursor: str | None, limit: int, allowed: Allowed | None, /) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class Matches:
    """What a search found, in columns; k is top_k, or the number of rows where that is smaller."""

    scores: np.ndarray
    """float32 [n, k], descending; -inf where there is no more."""
    part: np.ndarray
    """int32 [n, k], index into `parts`; -1 where there is no more."""
    position: np.ndarray
    """int64 [n, k], position within the part; -1 where there is no more."""
    parts: tuple[Part, ...]

    def hits(self) -> list[list[Hit]]:
        """Return the hits of each query, nearest first."""
        columns = zip(self.scores.tolist(), self.part.tolist(), self.position.tolist(), strict=True)
        return [self._hits(*row) for row in columns]

    def _hits(self, scores: list[float], numbers: list[int], positions: list[int]) -> list[Hit]:
        if numbers and numbers[0] == numbers[-1] >= 0 and numbers.count(numbers[0]) == len(numbers):
            part = self.parts[numbers[0]]  # asked once for all, which halves the time
            return list(map(Hit, part.ids(positions), scores, part.metadata(positions)))
        hits: list[Hit] = []
        for score, number, position in zip(scores, numbers, positions, strict=True):
            if number < 0:
                break
            part, at = self.parts[number], (position,)
            hits.append(Hit(part.ids(at)[0], score, part.metadata(at)[0]))
        return hits


class View:
    """Parts with the rows that are alive in each. Immutable; several threads may read it."""

    def __init__(
        self,
        version: Version,
        metric: Metric,
        dim: int | None,
        parts: tuple[tuple[Part, np.ndarray | None], ...],
        num_threads: int = 0,
    ) -> None:
        """Make a view.

        Args:
            dim: d of the vectors; None where there are no parts.
            parts: each part and its alive mask, bool [num_rows], which must not change any more; None: all alive.
            num_threads: of one search; 0 takes the CPUs this process may use.
        """
        self.version = version
        self.metric: Metric = metric
        self.dim = dim
        self.parts = parts
        self.num_threads = num_threads
        self._parts = tuple(part for part, _ in parts)
        self._compared_floats = sum(part.num_rows for part in self._parts if part.kind == "flat") * (dim or 0)
        self._alive: tuple[Allowed | None, ...] = tuple(_alive(part, mask) for part, mask in parts)
        self._filtered: OrderedDict[Predicate, tuple[Allowed, ...]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def alive_count(self) -> int:
        """How many records there are."""
        return self.count(None)

    def search(self, queries: np.ndarray, top_k: int, predicate: Predicate | None = None) -> Matches:
        """Return the `top_k` nearest records of each query, sorted by (-score, id).

        Args:
            queries: float32 [n, d], contiguous, checked, and at unit length where the metric is cosine.
        """
        small = len(queries) == 1 and self._compared_floats <= _SMALL_FLOATS
        use_threads(1 if small else self.num_threads)
        parts, allowed = self._parts, self._allowed(predicate)
        found = [(i, *part.search(queries, top_k, allowed[i])) for i, part in enumerate(parts) if part.num_rows]
        return _merge(found, len(queries), top_k, parts)

    def get(self, ids: Sequence[str]) -> list[Record | None]:
        """Return the record of each id; None where there is none."""
        records: list[Record | None] = [None] * len(ids)
        missing = list(range(len(ids)))
        for part, alive in zip(self._parts, self._alive, strict=True):
            if not missing:
                break
            positions = part.find(ids[i] for i in missing)
            here = positions >= 0
            if alive is not None:
                here &= alive.mask[positions]
            there = [missing[j] for j in np.flatnonzero(here)]
            for i, record in zip(there, _records(part, positions[here]), strict=True):
                records[i] = record
            missing = [missing[j] for j in np.flatnonzero(~here)]
        return records

    def count(self, predicate: Predicate | None = None) -> int:
        """Return how many records pass `predicate`."""
        allowed = self._allowed(predicate)
        pairs = zip(self._parts, allowed, strict=True)
        return sum(part.num_rows if some is None else some.count for part, some in pairs)

    def ids_where(self, predicate: Predicate | None = None) -> list[str]:
        """Return the ids of the records that pass `predicate`, in no particular order."""
        ids: list[str] = []
        for part, some in zip(self._parts, self._allowed(predicate), strict=True):
            ids += part.ids(range(part.num_rows) if some is None else some.positions.tolist())
        return ids

    def scroll(self, predicate: Predicate | None, page_size: int, cursor: str | None) -> Page:
        """Return the next page of the records that pass `predicate`, in id order.

        Raises `DataError`: not a cursor that a page had.
        """
        after = _read_cursor(cursor)
        candidates: list[tuple[str, int, int]] = []
        for number, (part, some) in enumerate(zip(self._parts, self._allowed(predicate), strict=True)):
            positions = part.after(after, page_size + 1, some).tolist()
            candidates += zip(part.ids(positions), [number] * len(positions), positions, strict=True)
        page = heapq.nsmallest(page_size + 1, candidates)
        more, page = len(page) > page_size, page[:page_size]
        return Page(self._read(page), _CURSOR + page[-1][0] if more else None)

    def _read(self, places: list[tuple[str, int, int]]) -> list[Record]:
        """Return the records at (id, part, position), reading part by part."""
        records: list[Any] = [None] * len(places)
        for number, part in enumerate(self._parts):
            mine = [i for i, place in enumerate(places) if place[1] == number]
            found = _records(part, np.asarray([places[i][2] for i in mine], np.int64))
            for i, record in zip(mine, found, strict=True):
                records[i] = record
        return records

    def _allowed(self, predicate: Predicate | None) -> tuple[Allowed | None, ...]:
        if predicate is None:
            return self._alive
        with self._lock:
            known = self._filtered.get(predicate)
        if known is None:
            known = tuple(
                _filtered(part, alive, predicate) for part, alive in zip(self._parts, self._alive, strict=True)
            )
            with self._lock:
                self._filtered[predicate] = known
                if len(self._filtered) > _CACHED_FILTERS:
                    self._filtered.popitem(last=False)
        return known


def _alive(part: Part, mask: np.ndarray | None) -> Allowed | None:
    if mask is None:
        return None
    assert len(mask) == part.num_rows, (len(mask), part.num_rows)
    allowed = Allowed(mask)
    return None if allowed.count == part.num_rows else allowed


def _filtered(part: Part, alive: Allowed | None, predicate: Predicate) -> Allowed:
    mask = part.mask(predicate)
    return Allowed(mask if alive is None else mask & alive.mask)


def _merge(
    found: list[tuple[int, np.ndarray, np.ndarray]], num_queries: int, top_k: int, parts: tuple[Part, ...]
) -> Matches:
    if not found:
        empty = np.zeros((num_queries, 0), np.int64)
        return Matches(empty.astype(np.float32), empty.astype(np.int32), empty, parts)
    if len(found) == 1:
        [(only, scores, positions)] = found
        numbers = np.full(positions.shape, only, np.int32)
    else:
        numbers = np.concatenate([np.full(p.shape, i, np.int32) for i, _, p in found], 1)
        scores = np.concatenate([s for _, s, _ in found], 1)
        positions = np.concatenate([p for _, _, p in found], 1)
        order = np.argsort(-scores, axis=1, kind="stable")
        scores, numbers, positions = (np.take_along_axis(a, order, 1) for a in (scores, numbers, positions))
    if positions.size and has_gaps(positions):
        numbers[positions < 0] = -1
    tied = scores[:, 1:] == scores[:, :-1]
    if np.count_nonzero(tied):
        _order_ties(tied & (numbers[:, 1:] >= 0), numbers, positions, parts)
    if scores.shape[1] > top_k:
        scores, numbers, positions = scores[:, :top_k], numbers[:, :top_k], positions[:, :top_k]
    return Matches(scores, numbers, positions, parts)


def _order_ties(tied: np.ndarray, numbers: np.ndarray, positions: np.ndarray, parts: tuple[Part, ...]) -> None:
    """Sort neighbours of equal score by id, in place; `tied[:, i]` says that i and i + 1 are equal."""
    for row in np.flatnonzero(tied.any(1)).tolist():
        for start, stop in _runs(tied[row]):
            places = zip(numbers[row, start:stop].tolist(), positions[row, start:stop].tolist(), strict=True)
            ordered = sorted((parts[number].ids((at,))[0], number, at) for number, at in places)
            numbers[row, start:stop] = [number for _, number, _ in ordered]
            positions[row, start:stop] = [at for _, _, at in ordered]


def _runs(tied: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield start and stop of each stretch of equal scores."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], tied, [False]]).astype(np.int8)))
    for start, stop in edges.reshape(-1, 2).tolist():
        yield start, stop + 1


def _records(part: Part, positions: np.ndarray) -> list[Record]:
    if not len(positions):
        return []
    vectors = part.vectors(positions)
    places = positions.tolist()
    hits = [Hit(id, 0.0, text) for id, text in zip(part.ids(places), part.metadata(places), strict=True)]
    return [Record(hit.id, vector, hit.metadata) for hit, vector in zip(hits, vectors, strict=True)]


def _read_cursor(cursor: str | None) -> str | None:
    if cursor is None:
        return None
    if isinstance(cursor, str) and cursor.startswith(_CURSOR):
        after = cursor.removeprefix(_CURSOR)
        if after and after.encode(errors="ignore").decode() == after:
            return after
    raise DataError(f"cursor: got {cursor!r}, which no page of this store had; begin with cursor=None")
