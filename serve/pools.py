"""Threads for what may wait for long: who comes when all are taken is refused, and does not queue without bounds."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from hsokv_ray.errors import Overloaded

T = TypeVar("T")


class BoundedPool:
    """At most so many calls at once, each in a thread.

    Args:
        most: calls.
        what: they do, such as `documents are being read`; for the refusal.
        name: of the threads.
    """

    def __init__(self, most: int, what: str, name: str) -> None:
        self._most, self._what = most, what
        self._free = threading.Semaphore(most)
        self._threads = ThreadPoolExecutor(max_workers=most, thread_name_prefix=name)

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Return the result to be. Raises `Overloaded` where as many run as may."""
        if not self._free.acquire(blocking=False):
            raise Overloaded(f"{self._what} for {self._most} already, the most at once; try again later", 2)
        try:
            future = self._threads.submit(call)
        except RuntimeError:  # it was closed
            self._free.release()
            raise
        future.add_done_callback(lambda done: self._free.release())
        return future

    def close(self) -> None:
        """Take nothing more; what runs goes on."""
        self._threads.shutdown(wait=False, cancel_futures=True)
