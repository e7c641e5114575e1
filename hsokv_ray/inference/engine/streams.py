"""The way of events from the engine's thread to whoever asked, in a thread or in an event loop."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

from hsokv_ray.inference.engine.events import Event, Failed, Finished


class EventStream:
    """The events of one request; read by one thread or one task.

    for event in stream: ...            # or: async for event in stream
    while events := stream.take(): ...  # all there are, at once; or: await stream.atake()
    """

    def __init__(self, request_id: str, on_cancel: Callable[[], None] = lambda: None) -> None:
        self.request_id = request_id
        self._on_cancel = on_cancel
        self._changed = threading.Condition()
        self._events: list[Event] = []
        self._ended = False
        self._cancelled = False
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._waits_for_end = False

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        """End the request; what it held is freed within a step. Events that were not read are dropped."""
        with self._changed:
            if self._ended:
                return
            self._cancelled = self._ended = True
            self._events = []
            self._wake()
        self._on_cancel()

    def put(self, *events: Event) -> None:
        """Add events; after `Finished` or `Failed`, and on a cancelled stream, they are dropped."""
        with self._changed:
            if self._ended or not events:
                return
            self._events.extend(events)
            self._ended = isinstance(events[-1], Finished | Failed)
            self._wake()

    def take(self, timeout_s: float | None = None) -> list[Event]:
        """Return all events that are there, waiting for one; [] at the end of the stream.

        Raises `TimeoutError`.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._events or self._ended, timeout_s):
                raise TimeoutError(f"request {self.request_id}: no event in {timeout_s} s")
            return self._all()

    async def atake(self, *, rest_s: float = 0.0) -> list[Event]:
        """Return all events that are there, waiting for one; [] at the end of the stream.

        Args:
            rest_s: let events gather for so long first, unless the stream ends: handing each token on by itself costs
                more than making it.
        """
        if rest_s > 0:
            await self._rest(rest_s)
        arrived = asyncio.Event()
        while True:
            with self._changed:
                if self._events or self._ended:
                    self._waiter = None
                    return self._all()
                arrived.clear()
                self._waiter = (asyncio.get_running_loop(), arrived)
            await arrived.wait()

    async def _rest(self, seconds: float) -> None:
        ended = asyncio.Event()
        with self._changed:
            if self._ended:
                return
            self._waiter, self._waits_for_end = (asyncio.get_running_loop(), ended), True
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), seconds)
        finally:
            with self._changed:
                self._waiter, self._waits_for_end = None, False

    async def batches(self) -> AsyncIterator[list[Event]]:
        """Yield lists of events, each all there are."""
        while events := await self.atake():
            yield events

    def __iter__(self) -> Iterator[Event]:
        while events := self.take():
            yield from events

    async def __aiter__(self) -> AsyncIterator[Event]:
        async for events in self.batches():
            for event in events:
                yield event

    def _all(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._waiter is None or (self._waits_for_end and not self._ended):
            return
        loop, arrived = self._waiter
        self._waiter = None  # one call into the loop per wait, however many events follow
        try:
            loop.call_soon_threadsafe(arrived.set)
        except RuntimeError:  # the loop was closed, so nobody will ever read
            self._cancelled = self._ended = True
            self._events = []
