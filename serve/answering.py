"""A request on its way: its prompts go to replicas, their events come back as one stream."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError

from hsokv_ray.inference.engine.events import Event, Failed, Finished, Piece
from serve.calls import GenerateCall, Refused, Sources
from serve.errors import ApiError
from serve.metrics import GatewayMetrics
from serve.services import Services

logger = logging.getLogger(__name__)

AnyEvent = Event | Refused | Sources
_BROKEN_OFF = Refused(503, "the replica that answered has ended; send the request again", None, "replica_died", 1)
_STATUS = {"invalid": 400, "overloaded": 429, "unavailable": 503, "internal": 500}
_AHEAD = 64
"""Batches of events that wait for the client; then those of the replicas wait."""
_ATTEMPTS = 3
"""For a replica that dies before it said anything: nothing of the request is lost then."""


def error_of(event: Failed | Refused) -> ApiError:
    """Return what a client is told of `event`."""
    if isinstance(event, Refused):
        return ApiError(
            event.status, event.message, param=event.param, code=event.code, retry_after_s=event.retry_after_s
        )
    retry_after_s = event.retry_after_s or (1 if event.kind in ("overloaded", "unavailable") else None)
    code = "overloaded" if event.kind == "overloaded" else None
    return ApiError(_STATUS[event.kind], event.message, param=event.param, code=code, retry_after_s=retry_after_s)


class Answering:
    """The events of all prompts of a request.

    answering = Answering(services, owner, calls)
    await answering.start()                              # raises ApiError
    async for number, events in answering.batches(): ... # raises ApiError
    answering.close()                                    # always
    """

    def __init__(self, services: Services, owner: str, calls: Sequence[GenerateCall]) -> None:
        self._services, self._calls = services, calls
        self._held = ExitStack()
        self._held.enter_context(services.limit.hold(owner, sum(call.sampling.n for call in calls)))
        self._deadline = time.monotonic() + services.args.limits.request_timeout_s
        self._queue: asyncio.Queue[tuple[int, list[AnyEvent]] | None] = asyncio.Queue(_AHEAD)
        self._tasks: list[asyncio.Task[None]] = []
        self._clocks = [_Clock(services.metrics) for _ in calls]
        self._first: list[tuple[int, list[AnyEvent]]] = []
        services.metrics.open_requests.inc()
        self._held.callback(services.metrics.open_requests.dec)

    async def start(self) -> None:
        """Send the prompts, and wait until every one of them was taken. Raises `ApiError`."""
        try:
            self._tasks = [asyncio.create_task(self._pump(number, call)) for number, call in enumerate(self._calls)]
            taken: set[int] = set()
            while len(taken) < len(self._calls):
                number, events = await self._next()
                taken.add(number)
                self._first.append((number, events))
        except BaseException:
            self.close()
            raise

    async def batches(self) -> AsyncIterator[tuple[int, list[AnyEvent]]]:
        """Yield the number of a prompt and new events of it. Raises `ApiError` where one fails."""
        ended: set[int] = set()
        while len(ended) < len(self._calls):
            number, events = self._first.pop(0) if self._first else await self._next()
            self._clocks[number].see(events)
            if _is_end(events, self._calls[number]):
                ended.add(number)
            yield number, events

    def close(self) -> None:
        """End what still runs, and free what was held; may be called again."""
        for task in self._tasks:
            task.cancel()
        self._held.close()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(None)

    @property
    def seconds_left(self) -> float:
        """Return how long the answer may still take."""
        return self._deadline - time.monotonic()

    async def _next(self) -> tuple[int, list[AnyEvent]]:
        try:
            async with asyncio.timeout_at(_loop_time(self._deadline)):
                item = await self._queue.get()
        except TimeoutError:
            limit_s = self._services.args.limits.request_timeout_s
            raise ApiError(503, f"the answer took over {limit_s:g} s; ask for fewer tokens", code="timeout") from None
        if item is None:
            raise ApiError(499, "the client has gone", code="client_closed_request")
        failure = next((event for event in item[1] if isinstance(event, Failed | Refused)), None)
        if failure is not None:
            raise error_of(failure)
        return item

    async def _pump(self, number: int, call: GenerateCall) -> None:
        for attempt in range(_ATTEMPTS):
            if await self._pumped(number, call, is_last=attempt == _ATTEMPTS - 1):
                return

    async def _pumped(self, number: int, call: GenerateCall, *, is_last: bool) -> bool:
        """Return whether the stream came to an end; False: it broke off before anything came, and may be repeated."""
        response = self._services.generator.options(stream=True).generate.remote(call)
        is_begun = is_over = False
        try:
            async for events in response:
                is_begun, is_over = True, is_over or _is_over(events, call)
                await self._queue.put((number, events))
            if not is_over:
                await self._queue.put((number, [_BROKEN_OFF]))
        except Exception as error:  # whatever it is, the client must hear of it
            if isinstance(error, RayActorError) and not is_begun and not is_last:
                return False
            await self._queue.put((number, [refusal_of(error)]))
        finally:
            response.cancel()
        return True


def refusal_of(error: BaseException) -> Refused:
    """Return what is told of an error on the way to a replica."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, ApiError):
        return Refused(cause.status, cause.message, cause.param, cause.code, cause.retry_after_s)
    if isinstance(error, BackPressureError):
        return Refused(429, "too many requests wait for a replica; try again later", None, "overloaded", 1)
    if isinstance(error, RayActorError | DeploymentUnavailableError):
        return _BROKEN_OFF
    if isinstance(error, RequestCancelledError):
        return Refused(503, "the request was cancelled because its replica is ending; send it again", None, None, 1)
    logger.error("a request failed", exc_info=error)
    return Refused(500, "the server failed on this request; its log says why")


class _Clock:
    """Measures the time to the first token of one prompt."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics
        self._began_s: float | None = time.perf_counter()

    def see(self, events: list[AnyEvent]) -> None:
        if self._began_s is not None and any(isinstance(event, Piece) and event.token_ids for event in events):
            self._metrics.first_token_s.observe(time.perf_counter() - self._began_s)
            self._began_s = None


def _is_end(events: list[AnyEvent], call: GenerateCall) -> bool:
    """Return whether `events` are a prompt's last: `Finished`, with passages what `Sources` says of them."""
    last: Any = Sources if call.passages else Finished
    return any(isinstance(event, last) for event in events)


def _is_over(events: list[AnyEvent], call: GenerateCall) -> bool:
    return _is_end(events, call) or any(isinstance(event, Failed | Refused) for event in events)


def _loop_time(deadline: float) -> float:
    return asyncio.get_running_loop().time() + deadline - time.monotonic()
