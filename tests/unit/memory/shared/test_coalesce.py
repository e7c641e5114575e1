"""Coalescer: many threads, few calls, everyone gets their own answer."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hsokv_ray.errors import Overloaded
from hsokv_ray.memory.shared.coalesce import Coalescer, _Call


def test_every_caller_of_many_gets_its_own_answer_and_calls_are_joined():
    sizes = []

    def send(key: str, queries: np.ndarray) -> list[tuple[str, float]]:
        sizes.append(len(queries))
        return [(key, float(value)) for value in queries[:, 0]]

    joined = Coalescer(send, max_queries=16)

    def ask(i: int) -> None:
        key = f"k{i % 2}"
        queries = np.full((1 + i % 3, 2), i, np.float32)
        assert joined.call(key, queries) == [(key, float(i))] * len(queries)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(ask, range(2000)))
    assert sum(sizes) == sum(1 + i % 3 for i in range(2000))
    assert max(sizes) <= 16
    assert joined.num_calls == len(sizes)


def test_what_waits_while_a_call_is_under_way_goes_out_as_one():
    entered, leave = threading.Event(), threading.Event()
    sizes = []

    def send(key: int, queries: np.ndarray) -> list[int]:
        sizes.append(len(queries))
        if len(sizes) == 1:
            entered.set()
            assert leave.wait(10)
        return [0] * len(queries)

    joined = Coalescer(send, depth=1)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(joined.call, 0, np.zeros((1, 2), np.float32))
        assert entered.wait(10)
        others = [pool.submit(joined.call, 0, np.zeros((1, 2), np.float32)) for _ in range(8)]
        while len(joined._waiting) < 8:
            pass
        leave.set()
        assert first.result(10) == [0]
        assert [other.result(10) for other in others] == [[0]] * 8
    assert sizes == [1, 8]


def test_a_failed_call_fails_for_all_who_were_in_it_and_the_next_one_works():
    broken = True

    def send(key: int, queries: np.ndarray) -> list[int]:
        if broken:
            raise ValueError("shard is away")
        return [7] * len(queries)

    joined = Coalescer(send)
    with pytest.raises(ValueError, match="shard is away"):
        joined.call(0, np.zeros((3, 2), np.float32))
    broken = False
    assert joined.call(0, np.zeros((3, 2), np.float32)) == [7, 7, 7]


def test_a_full_queue_refuses_and_says_when_to_come_back():
    entered, leave = threading.Event(), threading.Event()

    def send(key: int, queries: np.ndarray) -> list[int]:
        entered.set()
        assert leave.wait(10)
        return [0] * len(queries)

    joined = Coalescer(send, depth=1, limit_bytes=100)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(joined.call, 0, np.zeros((1, 20), np.float32))
        assert entered.wait(10)
        second = pool.submit(joined.call, 0, np.zeros((1, 20), np.float32))
        while not joined._waiting:
            pass
        with pytest.raises(Overloaded, match="try again") as caught:
            joined.call(0, np.zeros((1, 20), np.float32))
        leave.set()
        assert first.result(10) == second.result(10) == [0]
    assert caught.value.retry_after_s > 0


def test_an_interruption_concerns_nobody_but_the_thread_that_was_interrupted():
    entered, leave = threading.Event(), threading.Event()
    interrupts = True

    def send(key: int, queries: np.ndarray) -> list[int]:
        entered.set()
        assert leave.wait(10)
        if interrupts and len(queries) > 1:
            raise KeyboardInterrupt
        return [0] * len(queries)

    joined = Coalescer(send, depth=1)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(joined.call, 0, np.zeros((1, 2), np.float32))
        assert entered.wait(10)
        others = [pool.submit(joined.call, 0, np.zeros((1, 2), np.float32)) for _ in range(3)]
        while len(joined._waiting) < 3:
            pass
        leave.set()
        assert first.result(10) == [0]
        errors = sorted(type(other.exception(10)).__name__ for other in others)
    assert errors == ["KeyboardInterrupt", "StoreError", "StoreError"]
    interrupts = False
    assert joined.call(0, np.zeros((2, 2), np.float32)) == [0, 0]


def test_a_waiting_caller_that_gives_up_leaves_the_way_free(monkeypatch: pytest.MonkeyPatch):
    entered, leave = threading.Event(), threading.Event()

    def send(key: int, queries: np.ndarray) -> list[int]:
        entered.set()
        assert leave.wait(10)
        return [0] * len(queries)

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

    joined = Coalescer(send, depth=1)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(joined.call, 0, np.zeros((1, 2), np.float32))
        assert entered.wait(10)
        call = _Call(0, np.zeros((1, 2), np.float32), turn=Interrupted())
        monkeypatch.setattr("hsokv_ray.memory.shared.coalesce._Call", lambda *args: call)
        with pytest.raises(KeyboardInterrupt):
            joined.call(0, call.queries)
        monkeypatch.undo()
        assert not joined._waiting
        leave.set()
        assert first.result(10) == [0]
        assert pool.submit(joined.call, 0, np.zeros((1, 2), np.float32)).result(10) == [0]
