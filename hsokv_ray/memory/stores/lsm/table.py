"""The table: which rows count and where they are. Every write changes it, in the order of the log; views show it.

    table = Table("cosine", dim=None, num_threads=0)
    table.upsert(rows)
    table.delete(["a"])
    view = table.view(epoch=7)            # does not change any more

Rows lie in parts: sealed segments, frozen parts (full, waiting to be sealed) and the growing one. `ids` says where an
id is. A row that is deleted or overwritten stays where it is and loses its bit in the part's `alive` mask; a mask that
some view shows is copied before it changes. Not for several threads at once: the store's lock guards it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from hsokv_ray.memory.stores.lsm.growing import Growing
from hsokv_ray.memory.stores.lsm.requests import Outcome, Requests
from hsokv_ray.memory.stores.lsm.segment import Segment
from hsokv_ray.memory.stores.lsm.view import Part, Version, View
from hsokv_ray.memory.stores.types import Metric, Rows

_SHIFT = 40
"""An id's place is one number: the part's key above, the position in the part below."""
_POSITION = (1 << _SHIFT) - 1


class PartState:
    """A part and which of its rows count."""

    __slots__ = ("_mask", "_rows", "_shown", "end_seq", "key", "num_dead")

    def __init__(self, key: int, rows: Growing | Segment, alive: np.ndarray | None = None) -> None:
        self.key = key
        self._rows = rows
        self._mask = alive
        self._shown = True
        self.num_dead = 0 if alive is None else int(len(alive) - np.count_nonzero(alive))
        self.end_seq = 0
        """Of a frozen part: the last write in it."""

    @property
    def num_rows(self) -> int:
        return self._rows.num_rows

    @property
    def dim(self) -> int:
        return self._rows.dim

    @property
    def num_alive(self) -> int:
        return self.num_rows - self.num_dead

    @property
    def segment(self) -> Segment | None:
        """The segment; None while the part is growing or frozen."""
        return self._rows if isinstance(self._rows, Segment) else None

    @property
    def growing(self) -> Growing | None:
        return self._rows if isinstance(self._rows, Growing) else None

    def part(self) -> Part:
        """Return the rows as a view reads them."""
        return self._rows.view() if isinstance(self._rows, Growing) else self._rows

    def alive(self) -> np.ndarray | None:
        """Return the mask, bool [num_rows], which does not change any more; None where every row counts."""
        self._shown = True
        return None if self._mask is None else self._mask[: self.num_rows]

    def kill(self, positions: np.ndarray) -> None:
        """Clear the bits of `positions`, distinct rows that count."""
        mask = self._own_mask()
        assert mask[positions].all()
        mask[positions] = False
        self.num_dead += len(positions)

    def make_room(self) -> None:
        """Cover the rows appended since; all of them count."""
        if self._mask is not None and len(self._mask) < self.num_rows:
            self._mask = np.concatenate([self._mask, np.ones(self.num_rows, bool)])
            self._shown = False

    def _own_mask(self) -> np.ndarray:
        if self._mask is None:
            self._mask = np.ones(self.num_rows, bool)
        elif self._shown:
            self._mask = self._mask.copy()
        self._shown = False
        return self._mask


@dataclass(frozen=True, slots=True)
class Source:
    """A part as it was when its rewriting began."""

    key: int
    part: Part
    num_rows: int
    alive: np.ndarray | None


@dataclass(frozen=True, slots=True)
class _Moved:
    """Where the rows of a part that is gone are now."""

    key: int
    positions: np.ndarray
    """int64 [num_rows] in the new part; -1 for rows that did not count."""


class Table:
    """The parts, the ids, the requests and the number of the last write."""

    def __init__(self, metric: Metric, *, dim: int | None, num_threads: int = 0) -> None:
        self.metric: Metric = metric
        self.dim = dim
        self.seq = 0
        self.sealed_seq = 0
        """Every write up to this one is in segments."""
        self.requests = Requests()
        self.ids: dict[str, int] = {}
        self.parts: dict[int, PartState] = {}
        self._num_threads = num_threads
        self._growing: PartState | None = None
        self._moved: dict[int, _Moved] = {}
        self._next_key = 0
        self._generation = 0

    @property
    def growing(self) -> PartState | None:
        """The part that takes new rows; None until there is one."""
        return self._growing

    @property
    def segments(self) -> list[PartState]:
        """The sealed parts, oldest first."""
        return [state for state in self.parts.values() if state.segment is not None]

    @property
    def frozen(self) -> list[PartState]:
        """The full parts that wait to be sealed, oldest first."""
        return [s for s in self.parts.values() if s.growing is not None and s is not self._growing]

    def add_segment(self, segment: Segment, alive: np.ndarray | None) -> None:
        """Add a segment whose ids are not in the table yet."""
        state = self._add(segment, alive)
        base, names = state.key << _SHIFT, segment.all_ids()
        if alive is None:
            self.ids.update(zip(names, range(base, base + len(names)), strict=True))
        else:
            self.ids.update((names[i], base + i) for i in np.flatnonzero(alive).tolist())

    def apply(self, ids: Sequence[str], rows: Rows | None, request_id: str | None, epoch: int) -> Outcome:
        """Carry out the write after `seq`: an upsert of `rows`, or a delete of `ids`."""
        count = self._delete(ids) if rows is None else self._upsert(rows)
        self.seq += 1
        outcome = Outcome(epoch, self.seq, count)
        self.requests.add(request_id, outcome)
        return outcome

    def freeze(self) -> None:
        """Let the growing part wait to be sealed; the next row begins a new one."""
        if self._growing is not None and self._growing.num_rows:
            self._growing.end_seq = self.seq
            self._growing = None

    def caught_up(self) -> int:
        """Return the last write up to which all rows are in segments."""
        if not self.frozen and (self._growing is None or not self._growing.num_rows):
            self.sealed_seq = self.seq
        return self.sealed_seq

    def view(self, epoch: int) -> View:
        """Return what is there now."""
        parts = tuple((state.part(), state.alive()) for state in self.parts.values() if state.num_rows)
        return View(Version(epoch, self.seq), self.metric, self.dim, parts, self._num_threads)

    def begin_rewrite(self, keys: Iterable[int]) -> list[Source]:
        """Return some parts as they are now; they stay in use."""
        states = [self.parts[key] for key in keys]
        return [Source(state.key, state.part(), state.num_rows, state.alive()) for state in states]

    def finish_rewrite(self, sources: Sequence[Source], segment: Segment | None, moved: Sequence[np.ndarray]) -> None:
        """Put `segment` in the place of `sources`.

        Args:
            segment: the rows of the sources that counted when the rewriting began; None where there were none.
            moved: int64 [num_rows] per source: the rows' positions in the segment; -1 for those that did not count.

        Rows that were deleted or overwritten since then do not count in the segment either. `repoint` must follow,
        before the next rewriting.
        """
        assert not self._moved
        alive, key = None, -1
        for source, positions in zip(sources, moved, strict=True):
            dead = self._died_since(source)
            if segment is not None and len(dead):
                alive = np.ones(segment.num_rows, bool) if alive is None else alive
                alive[positions[dead]] = False
        if segment is not None:
            key = self._add(segment, alive).key
        for source, positions in zip(sources, moved, strict=True):
            end_seq = self.parts.pop(source.key).end_seq
            self.sealed_seq = max(self.sealed_seq, end_seq)
            self._moved[source.key] = _Moved(key, positions)

    def repoint(self, ids: Sequence[str]) -> None:
        """Let some ids of a rewritten segment point at it; when all have been given, `forget_moves`."""
        places = np.array([-1 if place is None else place for place in map(self.ids.get, ids)], np.int64)
        for key, moved in self._moved.items():
            here = (places >> _SHIFT) == key
            new = moved.positions[places[here] & _POSITION] | (moved.key << _SHIFT)
            self.ids.update(zip(compress(ids, here.tolist()), new.tolist(), strict=True))

    def forget_moves(self) -> None:
        """No id points at a part that is gone any more."""
        self._moved.clear()

    def check_integrity(self) -> None:
        """Assert that ids, masks and parts say the same. Looks at every row."""
        found: dict[str, tuple[int, int]] = {}
        for state in self.parts.values():
            alive = state.alive()
            positions = np.arange(state.num_rows) if alive is None else np.flatnonzero(alive)
            assert len(positions) == state.num_alive, (len(positions), state.num_alive)
            for name, position in zip(state.part().ids(positions), positions.tolist(), strict=True):
                assert name not in found, f"{name!r} counts twice"
                found[name] = (state.key, position)
        assert found == {name: self._resolve(place) for name, place in self.ids.items()}

    def _upsert(self, rows: Rows) -> int:
        if not rows.ids:
            return 0
        growing = self._growing or self._start_growing(rows.vectors.shape[1])
        assert growing.growing is not None
        self._kill([place for place in map(self.ids.get, rows.ids) if place is not None])
        first = (growing.key << _SHIFT) + growing.growing.append(rows)
        growing.make_room()
        self.ids.update(zip(rows.ids, range(first, first + len(rows)), strict=True))
        return len(rows)

    def _delete(self, ids: Sequence[str]) -> int:
        places = [place for name in ids if (place := self.ids.pop(name, None)) is not None]
        self._kill(places)
        return len(places)

    def _kill(self, places: list[int]) -> None:
        if not places:
            return
        if self._moved:
            places = [(key << _SHIFT) | position for key, position in map(self._resolve, places)]
        all_places = np.array(places, np.int64)
        keys = all_places >> _SHIFT
        for key in np.unique(keys).tolist():
            self.parts[key].kill(all_places[keys == key] & _POSITION)

    def _resolve(self, place: int) -> tuple[int, int]:
        key, position = place >> _SHIFT, place & _POSITION
        if (moved := self._moved.get(key)) is not None:
            return moved.key, int(moved.positions[position])
        return key, position

    def _died_since(self, source: Source) -> np.ndarray:
        """Return the rows that counted when the rewriting began and do not any more."""
        now = self.parts[source.key].alive()
        if now is None:
            return np.zeros(0, np.int64)
        dead = ~now[: source.num_rows]
        return np.flatnonzero(dead if source.alive is None else dead & source.alive)

    def _start_growing(self, dim: int) -> PartState:
        assert self.dim in (None, dim), (self.dim, dim)
        self.dim = dim
        self._growing = self._add(Growing(dim, self.metric, self._generation), None)
        self._generation += 1
        return self._growing

    def _add(self, rows: Growing | Segment, alive: np.ndarray | None) -> PartState:
        state = PartState(self._next_key, rows, alive)
        self.parts[state.key] = state
        self._next_key += 1
        return state
