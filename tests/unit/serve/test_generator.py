"""The shell around the engine: what fails is counted as that, and who waits for documents is in nobody's way."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from serve.calls import GenerateCall, Refused
from serve.generator import Generator
from serve.metrics import ReplicaMetrics
from serve.pools import BoundedPool


class Shell(Generator):
    """A generator whose requests begin as `begin` says; no model is behind it."""

    def __init__(self, begin: Callable[[GenerateCall], Any], *, readers: int = 1) -> None:
        self._begin_of, self._num_streams = begin, 0
        self._metrics = ReplicaMetrics()
        self._threads = ThreadPoolExecutor(1)
        self._readers = BoundedPool(readers, "documents of requests are being read", "read")

    def _begin(self, call: GenerateCall, gone: threading.Event) -> Any:
        return self._begin_of(call)


async def events_of(shell: Shell, call: GenerateCall) -> list[Any]:
    return [event async for events in shell.generate(call) for event in events]


def count(shell: Shell, name: str, **labels: str) -> float:
    return shell._metrics.registry.get_sample_value(f"hsokv_serve_{name}_total", labels) or 0


def test_a_crash_at_the_beginning_is_a_failure_and_no_cancelled_request() -> None:
    def crash(call: GenerateCall) -> Any:
        raise ZeroDivisionError

    shell = Shell(crash)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(events_of(shell, GenerateCall("1", "ann")))
    assert count(shell, "cancelled_requests") == 0
    assert count(shell, "failed_requests", kind="internal") == 1


def test_a_refusal_is_neither() -> None:
    shell = Shell(lambda call: Refused(400, "too long"))
    assert asyncio.run(events_of(shell, GenerateCall("1", "ann"))) == [Refused(400, "too long")]
    assert count(shell, "cancelled_requests") == count(shell, "failed_requests", kind="internal") == 0


def test_unread_documents_keep_no_plain_chat_waiting_and_too_many_of_them_are_429() -> None:
    go, is_reading = threading.Event(), threading.Semaphore(0)

    def begin(call: GenerateCall) -> Any:
        if call.documents:
            is_reading.release()
            assert go.wait(30)
        return Refused(400, call.request_id)

    async def ask() -> None:
        shell = Shell(begin, readers=2)
        reading = [
            asyncio.create_task(events_of(shell, GenerateCall(f"{number}", "ann", documents=("d",))))
            for number in range(2)
        ]
        for _ in reading:
            assert await asyncio.to_thread(is_reading.acquire, timeout=10)
        [refused] = await events_of(shell, GenerateCall("3", "ann", documents=("d",)))
        assert (refused.status, refused.code) == (429, "overloaded")
        assert refused.retry_after_s
        assert await events_of(shell, GenerateCall("plain", "ann")) == [Refused(400, "plain")]
        go.set()
        assert [await each for each in reading] == [[Refused(400, "0")], [Refused(400, "1")]]
        assert count(shell, "cancelled_requests") == 0

    asyncio.run(asyncio.wait_for(ask(), 60))
