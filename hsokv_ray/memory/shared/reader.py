"""A reader keeps a replica of one shard up to date in its own process, and says how fresh what it gives is.

reader = Reader(fetch)                       # fetch(state, timeout_s) -> Update | None asks the shard
reader.view(at_least=version)                # session: what I wrote is in it
reader.view(max_age_s=0.05)                  # bounded: nothing older than that is missing; 0 is strong
"""

import threading
import time
from typing import Protocol

from hsokv_ray.errors import StoreError
from hsokv_ray.memory.shared.messages import NOTHING, ReaderState, Update
from hsokv_ray.memory.shared.updates import Replica
from hsokv_ray.memory.stores.lsm.view import Version, View

_ATTEMPTS = 3
"""A merge may delete a segment between the answer that names it and its opening; the next answer names another."""


class Fetch(Protocol):
    """Asks a shard for what is newer than `state`, waiting at most `timeout_s`; None where nothing is."""

    def __call__(self, state: ReaderState, timeout_s: float) -> Update | None: ...


class Reader:
    """Follows a shard in a thread of its own until `close`.

    Args:
        fetch: asks the shard; may raise `StoreError` while the shard is away, which the reader outlives.
        replica: where updates go; default: one that maps the segments' files.
        poll_s: how long one question waits for news.
        retry_s: pause after a failed one.
    """

    def __init__(
        self, fetch: Fetch, replica: Replica | None = None, *, poll_s: float = 1, retry_s: float = 0.2
    ) -> None:
        self._fetch = fetch
        self._replica = replica or Replica()
        self._poll_s, self._retry_s = poll_s, retry_s
        self._news = threading.Condition()
        self._asking = threading.Lock()
        self._confirmed_at = float("-inf")
        self._problem: StoreError | OSError | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="memory-reader", daemon=True)

    @property
    def newest(self) -> View | None:
        """What is here now, however old."""
        return self._replica.view

    def view(
        self, *, at_least: Version | None = None, max_age_s: float | None = None, timeout_s: float = 30
    ) -> View | None:
        """Return the newest view here, after it has caught up as asked; None where the collection does not exist yet.

        Args:
            at_least: a version that it must contain.
            max_age_s: nothing acknowledged longer ago than this is missing; 0 asks the shard now.

        Raises `StoreError` when that takes longer than `timeout_s`.
        """
        if self._thread.ident is None:
            self._start()
        too_old = max_age_s is not None and time.monotonic() - self._confirmed_at > max_age_s
        if too_old or self._confirmed_at == float("-inf"):
            self.refresh()
        if at_least is not None and not self._has(at_least):
            self._wait(at_least, timeout_s)
        return self._replica.view

    def refresh(self) -> None:
        """Ask the shard now. Raises `StoreError` where it does not answer."""
        with self._asking:
            for attempt in range(_ATTEMPTS):
                asked_at = time.monotonic()
                try:
                    self._take(self._fetch(self._replica.state, 0), asked_at)
                    return
                except (StoreError, OSError):
                    if attempt + 1 == _ATTEMPTS:
                        raise

    def forget(self) -> None:
        """Begin anew: the collection was deleted."""
        with self._asking:
            self._replica.clear()
            self._confirmed_at = float("-inf")

    def close(self) -> None:
        """Stop following; views that were given stay right."""
        self._closed.set()
        with self._news:
            self._news.notify_all()
        if self._thread.ident is not None:
            self._thread.join(2 * self._poll_s)

    def _start(self) -> None:
        with self._asking:
            if self._thread.ident is None and not self._closed.is_set():
                self._thread.start()

    def _follow(self) -> None:
        while not self._closed.is_set():
            try:
                asked_at = time.monotonic()
                update = self._fetch(self._replica.state, self._poll_s)
                if update is None and self._replica.view is None:
                    self._closed.wait(self._retry_s)  # a collection that does not exist gives no news to wait for
                with self._asking:
                    self._take(update if self._fits(update) else None, asked_at)
            except (StoreError, OSError) as problem:
                self._problem = problem
                self._closed.wait(self._retry_s)

    def _fits(self, update: Update | None) -> bool:
        """Whether nothing newer came in while this one was on its way."""
        view = self._replica.view
        return update is not None and (view is None or update.version >= view.version)

    def _take(self, update: Update | None, asked_at: float) -> None:
        if update is not None:
            self._replica.apply(update)
        with self._news:
            self._problem = None
            self._confirmed_at = max(self._confirmed_at, asked_at)
            self._news.notify_all()

    def _has(self, version: Version) -> bool:
        view = self._replica.view
        return version <= NOTHING or (view is not None and view.version >= version)

    def _wait(self, version: Version, timeout_s: float) -> None:
        if self._replica.view is None:
            self.refresh()
        with self._news:
            self._news.wait_for(lambda: self._has(version) or self._closed.is_set(), timeout_s)
        if self._has(version):
            return
        why = f": {self._problem}" if self._problem else ""
        raise StoreError(f"this reader did not reach {version} within {timeout_s:g} s{why}; try again or read strongly")
