"""Hands texts that were read to the store, in a thread of its own: copying them would keep the answers waiting."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from hsokv_ray.inference.engine.encoding import EncodeJob
from hsokv_ray.inference.engine.task import Task
from hsokv_ray.inference.engine.text_reading import TextReading
from hsokv_ray.longcontext.prefixes import Prefixes

logger = logging.getLogger(__name__)


class Publisher:
    """Cuts what readings recorded; nothing is read into their rows any more.

    Args:
        on_done: called after each piece of work, in any thread.
    """

    def __init__(self, prefixes: Prefixes, on_done: Callable[[], Any] = lambda: None) -> None:
        self.num_lost = 0
        """Texts that could not be shared."""
        self._prefixes, self._on_done = prefixes, on_done
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="engine-publisher")
        self._last: Future[None] | None = None

    @property
    def is_busy(self) -> bool:
        return self._last is not None and not self._last.done()

    def publish(self, reading: TextReading, task: Task) -> None:
        """Share what `task` read; release what it claimed afterwards."""
        if reading.is_recorded:
            self._do(self._publish, reading, task.take_claim())

    def finish(self, job: EncodeJob, reading: TextReading) -> None:
        """Give `job` its result."""
        self._do(self._finish, job, reading)

    def release(self, task: Task) -> None:
        """Give up what `task` claimed, if anything."""
        claim = task.take_claim()
        if claim is not None:
            self._do(self._release, claim)

    def close(self) -> None:
        """Finish what was handed in, and take no more."""
        self._pool.shutdown(wait=True)

    def _do(self, work: Callable[..., None], *arguments: Any) -> None:
        self._last = self._pool.submit(work, *arguments)
        self._last.add_done_callback(lambda _: self._on_done())

    def _publish(self, reading: TextReading, claim: str | None) -> None:
        try:
            encoded = reading.cut()
            if encoded is not None:
                self._prefixes.add(encoded)
        except Exception:  # the request has what it needs; only others have to read again
            self.num_lost += 1
            logger.exception("what was read cannot be shared")
        finally:
            if claim is not None:
                self._release(claim)

    def _release(self, claim: str) -> None:
        try:
            self._prefixes.release(claim)
        except Exception:  # the store lets claims lapse
            logger.exception("the claim %s cannot be released", claim)

    def _finish(self, job: EncodeJob, reading: TextReading) -> None:
        try:
            encoded = reading.cut()
            assert encoded is not None, "its end is a mark"
            job.succeed(encoded)
        except Exception as error:
            job.fail(error)
