"""Events reach whoever asked, in a thread or in an event loop."""

import asyncio
import threading

import pytest

from hsokv_ray.inference.engine import Event, EventStream, Failed, Piece

PIECES = [Piece(0, str(number), (number,)) for number in range(200)]
END = Failed("internal", "the end")


def fill(stream: EventStream) -> threading.Thread:
    def put() -> None:
        for piece in PIECES:
            stream.put(piece)
        stream.put(END)

    thread = threading.Thread(target=put)
    thread.start()
    return thread


def test_a_thread_reads_all_events_in_order():
    stream = EventStream("r")
    fill(stream)
    assert list(stream) == [*PIECES, END]
    assert stream.take() == []


def test_a_task_reads_all_events_in_order():
    async def read() -> list[Event]:
        stream = EventStream("r")
        fill(stream)
        return [event async for event in stream]

    assert asyncio.run(read()) == [*PIECES, END]


def test_what_is_there_comes_at_once():
    stream = EventStream("r")
    stream.put(*PIECES[:5])
    assert stream.take() == PIECES[:5]
    with pytest.raises(TimeoutError, match="request r"):
        stream.take(timeout_s=0.01)


def test_many_tasks_wait_in_one_loop():
    async def read() -> list[list[Event]]:
        streams = [EventStream(str(number)) for number in range(8)]

        async def whole(stream: EventStream) -> list[Event]:
            return [event async for events in stream.batches() for event in events]

        tasks = [asyncio.create_task(whole(stream)) for stream in streams]
        await asyncio.sleep(0)
        for stream in streams:
            fill(stream)
        return await asyncio.gather(*tasks)

    assert asyncio.run(read()) == [[*PIECES, END]] * 8


def test_a_cancelled_stream_ends_for_its_reader_and_tells_the_engine():
    told: list[bool] = []
    stream = EventStream("r", lambda: told.append(True))
    stream.put(PIECES[0])
    reader = threading.Thread(target=lambda: told.append(list(stream) in ([], [PIECES[0]])))
    reader.start()
    stream.cancel()
    reader.join(10)
    stream.put(END)
    stream.cancel()
    assert told == [True, True]
    assert stream.cancelled
    assert stream.take() == []


def test_after_its_end_a_stream_takes_nothing_and_cannot_be_cancelled():
    told: list[bool] = []
    stream = EventStream("r", lambda: told.append(True))
    stream.put(END)
    stream.put(PIECES[0])
    stream.cancel()
    assert list(stream) == [END]
    assert not stream.cancelled
    assert not told


def test_a_reader_whose_loop_was_closed_counts_as_gone():
    stream = EventStream("r")

    async def begin() -> None:
        waiting = asyncio.ensure_future(stream.atake())
        await asyncio.sleep(0)
        waiting.cancel()

    asyncio.run(begin())
    stream.put(PIECES[0])
    assert stream.cancelled
