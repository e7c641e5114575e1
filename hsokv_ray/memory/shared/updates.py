"""What a reader lacks, and how it catches up: the two halves of replication, without a network in between."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from hsokv_ray.memory.shared.messages import GrowingNews, ReaderState, SegmentNews, Update
from hsokv_ray.memory.stores.lsm.growing import Growing, GrowingView
from hsokv_ray.memory.stores.lsm.segment import Segment
from hsokv_ray.memory.stores.lsm.threads import calibrate_exact_search
from hsokv_ray.memory.stores.lsm.view import Part, View
from hsokv_ray.memory.stores.types import Rows


def update_for(view: View, state: ReaderState) -> Update:
    """Return what leads from `state` to `view`."""
    is_reset = state.version is None or state.version.epoch != view.version.epoch
    segments, growing = [], []
    for part, alive in view.parts:
        dead = 0 if alive is None else part.num_rows - int(np.count_nonzero(alive))
        if isinstance(part, Segment):
            news = None if state.segments.get(part.name, 0) == dead else _pack(alive)
            segments.append(SegmentNews(part.name, str(part.folder), part.num_rows, news))
        else:
            assert isinstance(part, GrowingView)
            start, known_dead = (0, 0) if is_reset else state.growing.get(part.generation, (0, 0))
            news = None if known_dead == dead else _pack(alive)
            growing.append(GrowingNews(part.generation, start, part.rows(start, part.num_rows), news))
    return Update(view.version, view.metric, view.dim, is_reset, segments, growing)


def is_current(state: ReaderState, view: View) -> bool:
    """Return whether a reader with `state` has everything of `view`; a merge changes segments and not the version."""
    names = {part.name for part, _ in view.parts if isinstance(part, Segment)}
    return state.version == view.version and names == set(state.segments)


class Replica:
    """A copy of one shard's current view, built from updates. One thread applies; any thread reads `view`.

    Args:
        open_segment: turns the news of a segment into an open one; default: the folder that the shard wrote.
        drop_segment: told of each segment that is no longer part of the view; older views may still use it.
        num_threads: threads of one search; 0 takes every CPU of this process.
    """

    def __init__(
        self,
        open_segment: Callable[[SegmentNews], Segment] | None = None,
        drop_segment: Callable[[Segment], None] = lambda segment: None,
        *,
        num_threads: int = 0,
    ) -> None:
        self._drop = drop_segment
        self._open = open_segment or (lambda news: Segment.open(Path(news.folder), verify=False))
        self._num_threads = num_threads
        self._segments: dict[str, tuple[Segment, np.ndarray | None]] = {}
        self._growing: dict[int, tuple[Growing, np.ndarray | None]] = {}
        self.view: View | None = None

    @property
    def state(self) -> ReaderState:
        """What this replica has."""
        return ReaderState(
            self.view.version if self.view else None,
            {name: _dead(alive) for name, (_, alive) in self._segments.items()},
            {generation: (part.num_rows, _dead(alive)) for generation, (part, alive) in self._growing.items()},
        )

    def apply(self, update: Update) -> View:
        """Take over `update`; an error changes nothing. Raises `StoreError`, `OSError`: a segment is gone."""
        segments = {news.name: self._segment(news) for news in update.segments}
        known = {} if update.is_reset else self._growing
        growing = {news.generation: _grown(news, known.get(news.generation), update) for news in update.growing}
        if self.view is None and update.dim is not None:
            calibrate_exact_search(update.dim)
        gone = [segment for name, (segment, _) in self._segments.items() if name not in segments]
        self._segments, self._growing = segments, growing
        parts: tuple[tuple[Part, np.ndarray | None], ...] = (
            *segments.values(),
            *((part.view(), alive) for part, alive in growing.values()),
        )
        self.view = View(update.version, update.metric, update.dim, parts, num_threads=self._num_threads)
        for segment in gone:
            self._drop(segment)
        return self.view

    def clear(self) -> None:
        """Forget everything."""
        self._segments, self._growing, self.view = {}, {}, None

    def _segment(self, news: SegmentNews) -> tuple[Segment, np.ndarray | None]:
        segment, alive = self._segments.get(news.name) or (self._open(news), None)
        return segment, alive if news.alive is None else _unpack(news.alive, news.num_rows)


def _grown(
    news: GrowingNews, known: tuple[Growing, np.ndarray | None] | None, update: Update
) -> tuple[Growing, np.ndarray | None]:
    if known is None:
        assert update.dim is not None
        known = Growing(update.dim, update.metric, news.generation), None
    part, alive = known
    assert part.num_rows >= news.start, "an update that skips rows"
    seen = part.num_rows - news.start  # more than none where an earlier update was applied by half
    part.append(Rows(news.rows.ids[seen:], news.rows.vectors[seen:], news.rows.metadata[seen:]))
    if news.alive is not None:
        return part, _unpack(news.alive, part.num_rows)
    if alive is not None and len(alive) < part.num_rows:
        alive = np.concatenate([alive, np.ones(part.num_rows - len(alive), bool)])
    return part, alive


def _dead(alive: np.ndarray | None) -> int:
    return 0 if alive is None else len(alive) - int(np.count_nonzero(alive))


def _pack(alive: np.ndarray | None) -> bytes | None:
    return None if alive is None else np.packbits(alive).tobytes()


def _unpack(bits: bytes, num_rows: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=num_rows).astype(bool)
