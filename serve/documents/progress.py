"""How far each document's encoding is, as its encoder says; in memory only, because encoded texts are a cache."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from serve.documents.records import Progress, State

STALE_S = 15.0
"""An encoding of which nothing was heard for so long is not going on."""
_UNDER_WAY = ("queued", "encoding")


@dataclass(slots=True)
class _Entry:
    progress: Progress
    heard_s: float
    since_s: float
    """When the present encoding began."""
    first_done: int
    digests: set[str] = field(default_factory=set)


class ProgressBoard:
    """Safe to use from several threads.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}

    def note(self, id: str, state: State, done: int, total: int, message: str | None, digest: str | None) -> None:
        """Say how far the encoding of document `id` is; `digest` names an encoded text that came of it."""
        now_s = self._clock()
        with self._lock:
            old = self._entries.get(id)
            goes_on = old is not None and old.progress.state == "encoding" and old.progress.tokens_done <= done
            since_s, first_done = (old.since_s, old.first_done) if old and goes_on else (now_s, done)
            seconds = now_s - since_s
            rate = (done - first_done) / seconds if seconds > 0 else 0.0
            entry = _Entry(Progress(state, done, total, rate, message), now_s, since_s, first_done)
            entry.digests = (old.digests if old else set()) | ({digest} if digest else set())
            self._entries[id] = entry

    def wait_on(self, id: str) -> None:
        """Whoever asked for the encoding still waits for it, in its queue or while others are served."""
        now_s = self._clock()
        with self._lock:
            entry = self._entries.get(id)
            if entry is not None and entry.progress.state in _UNDER_WAY:
                entry.heard_s = now_s

    def read(self, id: str) -> Progress:
        """Return how far document `id` is; one that nothing is heard of any more is merely stored."""
        with self._lock:
            entry = self._entries.get(id)
            if entry is None:
                return Progress()
            is_stale = entry.progress.state in _UNDER_WAY and self._clock() - entry.heard_s > STALE_S
            return Progress() if is_stale else entry.progress

    def reset(self, id: str) -> None:
        """The document changed: it is to be encoded again."""
        with self._lock:
            if id in self._entries:
                self._entries[id].progress = Progress()

    def note_digest(self, id: str, digest: str) -> None:
        """An encoded text with this digest contains document `id`."""
        with self._lock:
            if id not in self._entries:
                now_s = self._clock()
                self._entries[id] = _Entry(Progress(), now_s, now_s, 0)
            self._entries[id].digests.add(digest)

    def digests(self, id: str) -> list[str]:
        """Return the digests of encoded texts that contain document `id`."""
        with self._lock:
            return sorted(self._entries[id].digests) if id in self._entries else []

    def forget(self, id: str) -> list[str]:
        """The document is gone; return the digests of what was encoded of it."""
        with self._lock:
            entry = self._entries.pop(id, None)
            return sorted(entry.digests) if entry else []
