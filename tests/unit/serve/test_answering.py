"""From the events of replicas to what a client receives: every choice ends, no request hangs, nobody holds a place."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from hsokv_ray.inference.engine.events import ChoiceEnded, Event, Finished, Piece, Started, Timing, Usage
from hsokv_ray.inference.engine.requests import Sampling
from serve.answering import _AHEAD, Answering
from serve.args import Limits, ServeArgs
from serve.calls import GenerateCall
from serve.errors import ApiError
from serve.limits import OwnerLimit
from serve.replies import _frames, reply
from serve.services import Services
from serve.shapes import ChatShape, Choices, CompletionShape
from serve.streaming import EventStream

STARTED = Started(3, 0, 0, 0.0)
FINISHED = Finished(Usage(3, 2, 0), Timing(0, 0, 0, 0, 0))


class Replica:
    """A replica as its handle shows it: each call is answered with batches that are given."""

    def __init__(self, *streams: list[list[Event]], pause_s: float = 0) -> None:
        self._streams, self._pause_s = list(streams), pause_s
        self.generate = self
        self.num_sent = 0

    def options(self, *, stream: bool) -> "Replica":
        assert stream
        return self

    def remote(self, call: GenerateCall) -> "Replica.Stream":
        return Replica.Stream(self, self._streams.pop(0))

    class Stream:
        def __init__(self, replica: "Replica", batches: list[list[Event]]) -> None:
            self._replica, self._batches = replica, iter(batches)

        def __aiter__(self) -> "Replica.Stream":
            return self

        async def __anext__(self) -> list[Event]:
            await asyncio.sleep(self._replica._pause_s)
            batch = next(self._batches, None)
            if batch is None:
                raise StopAsyncIteration
            self._replica.num_sent += 1
            return batch

        def cancel(self) -> None:
            self._batches = iter(())


def services(replica: Replica, **limits: Any) -> Services:
    args = ServeArgs(limits=Limits(**limits))
    limit = OwnerLimit(args.limits.requests_per_owner)
    return Services(generator=replica, documents=None, segments=None, args=args, limit=limit)


def calls(number: int, n: int = 1) -> list[GenerateCall]:
    return [GenerateCall(f"r-{each}", "ann", "x", sampling=Sampling(n=n)) for each in range(number)]


def chunks(frames: list[bytes]) -> list[dict[str, Any]]:
    lines = b"".join(frames).split(b"\n\n")
    return [json.loads(line[6:]) for line in lines if line.startswith(b"data: {")]


async def streamed(replica: Replica, number: int, n: int, shape: Any, *, usage: bool) -> list[dict[str, Any]]:
    answering = Answering(services(replica, requests_per_owner=64), "ann", calls(number, n))
    await answering.start()
    try:
        return chunks([each async for each in _frames(answering, shape, Choices(number, n), usage)])
    finally:
        answering.close()


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("shape", [ChatShape("1", "m"), CompletionShape("1", "m")], ids=["chat", "completion"])
@pytest.mark.parametrize("in_one_batch", [True, False])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_choices_that_end_at_the_same_moment_each_get_their_finish_reason(
    n: int, in_one_batch: bool, shape: Any, usage: bool
) -> None:
    ends = [event for c in range(n) for event in (Piece(c, f"text {c}", (5,)), ChoiceEnded(c, "length"))]
    stream = [[STARTED, *ends, FINISHED]] if in_one_batch else [[STARTED], *([each] for each in ends), [FINISHED]]
    sent = asyncio.run(streamed(Replica(stream, stream), 2, n, shape, usage=usage))
    reasons = [(c["index"], c["finish_reason"]) for each in sent for c in each["choices"] if c["finish_reason"]]
    assert sorted(reasons) == [(index, "length") for index in range(2 * n)]
    told = [each for each in sent if each.get("hsokv")]
    assert told == sent[-1:], "what is said beside the end comes once, and last"
    assert bool(sent[-1].get("usage")) == usage


def test_a_stream_that_stops_in_the_middle_is_503_and_not_waited_for() -> None:
    async def ask() -> None:
        answering = Answering(services(Replica([[STARTED], [Piece(0, "a", (1,))]])), "ann", calls(1))
        await answering.start()
        async for _ in answering.batches():
            pass

    with pytest.raises(ApiError) as caught:
        asyncio.run(asyncio.wait_for(ask(), 10))
    assert (caught.value.status, caught.value.code) == (503, "replica_died")


def test_an_owner_s_limit_counts_answers_and_all_are_given_back() -> None:
    async def ask() -> None:
        replica = Replica(*[[[STARTED, ChoiceEnded(0, "stop"), FINISHED]]] * 4)
        of = services(replica, requests_per_owner=8)
        first = Answering(of, "ann", calls(3, n=2))
        with pytest.raises(ApiError) as caught:
            Answering(of, "ann", calls(3, n=1))
        assert caught.value.status == 429
        with pytest.raises(ApiError) as caught:
            Answering(of, "ann", calls(3, n=3))
        assert caught.value.status == 400
        Answering(of, "ann", calls(2, n=1)).close()
        assert of.limit.num_running == 6
        first.close()
        assert of.limit.num_running == 0

    asyncio.run(ask())


def test_a_client_that_does_not_read_makes_the_replica_wait_and_closing_frees_everything() -> None:
    async def ask() -> None:
        stream: list[list[Event]] = [[STARTED], *([Piece(0, "a", (1,))] for _ in range(100 * _AHEAD)), [FINISHED]]
        replica = Replica(stream)
        of = services(replica)
        answering = Answering(of, "ann", calls(1))
        await answering.start()
        for _ in range(10 * _AHEAD):
            await asyncio.sleep(0)
        assert replica.num_sent <= _AHEAD + 2
        answering.close()
        answering.close()
        assert of.limit.num_running == 0
        with pytest.raises(ApiError, match="the client has gone"):
            async for _ in answering.batches():
                pass

    asyncio.run(asyncio.wait_for(ask(), 30))


def test_nothing_is_lost_between_a_fast_replica_and_a_slow_reader() -> None:
    async def ask() -> str:
        pieces: list[list[Event]] = [[Piece(0, f"{number} ", (1,))] for number in range(10 * _AHEAD)]
        replica = Replica([[STARTED], *pieces, [ChoiceEnded(0, "stop"), FINISHED]])
        answering = Answering(services(replica), "ann", calls(1))
        answer = await reply(answering, CompletionShape("1", "m"), Choices(1, 1), stream=False, sends_usage=False)
        return json.loads(bytes(answer.body))["choices"][0]["text"]

    assert asyncio.run(ask()) == "".join(f"{number} " for number in range(10 * _AHEAD))


@contextmanager
def listening(app: Any) -> Iterator[int]:
    """A real server on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as place:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()
        yield place.getsockname()[1]
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("limits", [{"send_s": 0.5}, {"seconds": 0.5}], ids=str)
def test_a_client_that_reads_nothing_is_let_go(limits: dict[str, float]) -> None:
    is_closed, num_sent = threading.Event(), [0]

    async def endless() -> AsyncIterator[bytes]:
        while True:
            num_sent[0] += 1
            yield b"data: " + b"x" * 2**20 + b"\n\n"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await EventStream(endless(), is_closed.set, **limits)(scope, receive, send)

    with listening(app) as port, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        since_s = time.monotonic()
        assert is_closed.wait(20)
        assert time.monotonic() - since_s >= 0.4
        assert num_sent[0] < 50
