"""Growing rows: exact, in RAM, appended by one thread while others read.

    growing = Growing(384, "cosine", generation=7)
    growing.append(rows)                     # returns the first slot
    view = growing.view()                    # the rows so far; later ones do not show in it
    scores, positions = view.search(queries, 10, None)

An id may be appended again; which of its slots counts is the business of whoever keeps the alive mask. Slots never
change once written, so views share the arrays: a reader sees only the slots that its view knows of.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from hsokv_ray.memory.stores.facets import Predicate
from hsokv_ray.memory.stores.lsm.allowed import Allowed
from hsokv_ray.memory.stores.lsm.exact import search_exact
from hsokv_ray.memory.stores.lsm.postings import PostingsBuilder
from hsokv_ray.memory.stores.lsm.segment import facets_of, first_true
from hsokv_ray.memory.stores.types import Metric, Rows

_FIRST_ROWS = 1024
_CACHED_MASKS = 8


class Growing:
    """Rows that one thread appends to. Everything else about it is read through `view`."""

    def __init__(self, dim: int, metric: Metric, generation: int) -> None:
        self.dim = dim
        self.metric: Metric = metric
        self.generation = generation
        """Tells apart growing parts that followed each other."""
        self.num_rows = 0
        self._vectors = np.empty((_FIRST_ROWS, dim), np.float32)
        self._ids: list[str] = []
        self._metadata: list[bytes] = []
        self._last_slot: dict[str, int] = {}
        self._slot_before: list[int] = []
        self._facets = _LazyFacets(self._metadata)
        self._order: tuple[int, list[str], np.ndarray] | None = None

    def append(self, rows: Rows) -> int:
        """Add `rows` (distinct ids) and return the slot of the first; the others follow it."""
        first, count = self.num_rows, len(rows)
        assert rows.vectors.shape == (count, self.dim), (rows.vectors.shape, count, self.dim)
        self._make_room(first + count)
        self._vectors[first : first + count] = rows.vectors
        self._metadata.extend(rows.metadata)
        self._ids.extend(rows.ids)
        last = self._last_slot
        self._slot_before.extend([last.get(id, -1) for id in rows.ids])
        last.update(zip(rows.ids, range(first, first + count), strict=True))
        self.num_rows = first + count
        return first

    def view(self) -> "GrowingView":
        """Return the rows so far."""
        return GrowingView(self, self._vectors, self.num_rows)

    def _make_room(self, num_rows: int) -> None:
        """Double the array where it is full; views keep the old one."""
        size = len(self._vectors)
        if num_rows <= size:
            return
        larger = np.empty((max(num_rows, 2 * size), self.dim), np.float32)
        larger[: self.num_rows] = self._vectors[: self.num_rows]
        self._vectors = larger


class GrowingView:
    """The first `num_rows` rows of a growing part. Immutable; several threads may read it."""

    def __init__(self, growing: Growing, vectors: np.ndarray, num_rows: int) -> None:
        self._growing = growing
        self._matrix = vectors[:num_rows]
        self.num_rows = num_rows
        self.dim = growing.dim
        self.metric: Metric = growing.metric
        self.generation = growing.generation
        self.kind = "flat"
        self.name = f"growing-{growing.generation}"
        self.num_bytes = self._matrix.nbytes
        """Of the vectors, in RAM."""

    @classmethod
    def from_rows(cls, dim: int, metric: Metric, generation: int, rows: Rows) -> "GrowingView":
        """Return a view of `rows`, such as another process shipped them."""
        growing = Growing(dim, metric, generation)
        growing.append(rows)
        return growing.view()

    def extended(self, rows: Rows) -> "GrowingView":
        """Return a view of these rows and then `rows`, sharing the arrays; this view stays as it is.

        Only the latest view of its growing part may be extended, by one thread at a time.
        """
        assert self.num_rows == self._growing.num_rows, (self.num_rows, self._growing.num_rows)
        self._growing.append(rows)
        return self._growing.view()

    def rows(self, start: int, stop: int) -> Rows:
        """Return the rows of slots start to stop - 1; the vectors are not copied."""
        assert 0 <= start <= stop <= self.num_rows, (start, stop, self.num_rows)
        growing = self._growing
        return Rows(growing._ids[start:stop], self._matrix[start:stop], growing._metadata[start:stop])

    def ids(self, positions: Iterable[int]) -> list[str]:
        """Return the ids at `positions`."""
        ids = self._growing._ids
        return [ids[position] for position in positions]

    def all_ids(self) -> list[str]:
        """Return the id of every slot, in slot order; one that was written twice comes twice."""
        return self._growing._ids[: self.num_rows]

    def metadata(self, positions: Iterable[int]) -> list[bytes]:
        """Return the JSON texts at `positions`."""
        texts = self._growing._metadata
        return [texts[position] for position in positions]

    def vectors(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the vectors at `positions`, float32 [m, d], as a copy."""
        return self._matrix[np.asarray(positions, np.int64)]

    def find(self, ids: Iterable[str]) -> np.ndarray:
        """Return the last slot of each id, int64 [m]; -1 where it is not here."""
        return np.fromiter((self._find(id) for id in ids), np.int64)

    def search(
        self, queries: np.ndarray, top_k: int, allowed: Allowed | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores float32 [n, k] and positions int64 [n, k]; see `search_exact`."""
        return search_exact(queries, self._matrix, self.metric, top_k, allowed)

    def mask(self, predicate: Predicate) -> np.ndarray:
        """Return which slots satisfy `predicate`, bool [num_rows], read-only."""
        return self._growing._facets.mask(predicate, self.num_rows)

    def after(self, cursor: str | None, limit: int, allowed: Allowed | None) -> np.ndarray:
        """Return the first `limit` allowed positions whose id is above `cursor`, in id order."""
        ids, order = self._by_id()
        start = 0 if cursor is None else bisect_right(ids, cursor)
        if allowed is None:
            return order[start : start + limit]
        return order[first_true(allowed.mask[order], start, limit)]

    def _find(self, id: str) -> int:
        growing = self._growing
        slot = growing._last_slot.get(id, -1)
        while slot >= self.num_rows:
            slot = growing._slot_before[slot]
        return slot

    def _by_id(self) -> tuple[list[str], np.ndarray]:
        """Return the ids ascending and the slot of each; remembered until the growing part grows."""
        known = self._growing._order
        if known is None or known[0] != self.num_rows:
            ids = self.all_ids()
            order = sorted(range(len(ids)), key=ids.__getitem__)
            known = (self.num_rows, [ids[slot] for slot in order], np.asarray(order, np.int64))
            self._growing._order = known
        return known[1], known[2]


class _LazyFacets:
    """Postings of the metadata so far, made when the first filter asks and each row once."""

    def __init__(self, metadata: list[bytes]) -> None:
        self._metadata = metadata
        self._builder = PostingsBuilder()
        self._num_indexed = 0
        self._masks: OrderedDict[tuple[Predicate, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def mask(self, predicate: Predicate, num_rows: int) -> np.ndarray:
        key = (predicate, num_rows)
        with self._lock:
            mask = self._masks.get(key)
            if mask is None:
                self._index_until(num_rows)
                mask = self._builder.mask(predicate, num_rows)
                mask.flags.writeable = False
                self._masks[key] = mask
                if len(self._masks) > _CACHED_MASKS:
                    self._masks.popitem(last=False)
            return mask

    def _index_until(self, num_rows: int) -> None:
        for position in range(self._num_indexed, num_rows):
            self._builder.add(position, facets_of(self._metadata[position]))
        self._num_indexed = max(self._num_indexed, num_rows)
