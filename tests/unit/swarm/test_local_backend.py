"""Which worker gets which order, and one order at a time in this process."""

from collections import deque
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.swarm.backends.base import Done
from hsokv_ray.swarm.backends.local import LocalBackend
from hsokv_ray.swarm.backends.queue import OrderQueue
from hsokv_ray.swarm.messages import Order
from hsokv_ray.swarm.simulated import SimulatedTask
from hsokv_ray.swarm.states import States

STRATEGY = {"rate": 0.01, "decay": 0.5, "kind": "a"}


def order(order_id: str, source: str | None = None, attempt: int = 1, begin: int = 0, end: int = 3) -> Order:
    return Order(order_id, 0, 0, STRATEGY, begin, end, source, seed=int(order_id.partition(".")[2]), attempt=attempt)


def test_an_order_goes_to_the_worker_that_holds_its_source():
    queue = OrderQueue()
    for worker, holds in (("w0", "a0.1"), ("w1", "a1.1"), ("w2", None)):
        queue.free(worker, holds)
    queue.add(order("a1.2", "a1.1"))
    queue.add(order("a2.2", "a2.1"))
    queue.add(order("a0.2", "a0.1"))
    given_ = {}
    for _ in range(3):
        worker, each = queue.next() or ("", order("a9.9"))
        given_[each.order_id] = worker
    assert given_ == {"a1.2": "w1", "a2.2": "w2", "a0.2": "w0"}
    assert queue.next() is None


def test_an_order_never_waits_for_the_worker_that_holds_its_source():
    queue = OrderQueue()
    queue.free("w1", "a7.7")  # w0 holds a0.1 and is busy
    queue.add(order("a0.2", "a0.1"))
    assert queue.next() == ("w1", order("a0.2", "a0.1"))


SOURCES = st.sampled_from([None, "a0.1", "a1.1", "a2.1"])


@given(
    steps=st.lists(
        st.tuples(st.just("add"), SOURCES, st.integers(1, 2))
        | st.tuples(st.just("free"), st.integers(0, 3), SOURCES)
        | st.tuples(st.just("remove"), st.integers(0, 3), st.none()),
        max_size=40,
    )
)
def test_no_order_waits_while_a_worker_is_free_and_repeated_ones_come_first_in_their_order(steps: list[tuple]):
    queue, waiting, free = OrderQueue(), deque[Order](), {}
    for number, (what, a, b) in enumerate(steps):
        if what == "add":
            queue.add(order(f"a5.{number}", a, b))
            waiting.append(order(f"a5.{number}", a, b))
        elif what == "free":
            queue.free(f"w{a}", b)
            free[f"w{a}"] = b
        else:
            queue.remove(f"w{a}")
            free.pop(f"w{a}", None)
        while pair := queue.next():
            worker, each = pair
            assert each == min(waiting, key=lambda o: (o.attempt == 1, waiting.index(o)))
            assert worker in free
            if each.source in free.values():
                assert each.source is None or free[worker] == each.source
            waiting.remove(each)
            del free[worker]
        assert not (waiting and free)
        assert len(queue) == len(waiting)


def test_orders_are_carried_out_in_the_order_given_and_states_lie_on_disk(tmp_path: Path):
    states = States(tmp_path / "states")
    backend = LocalBackend(SimulatedTask(), states)
    assert backend.wait(0) == []
    first, other, second = order("a0.1"), order("a1.1", end=5), order("a0.2", "a0.1", begin=3, end=9)
    for each in (first, other, second):
        backend.submit(each)
    assert list(backend.running()) == ["a0.1"]
    reports = [report for _ in range(3) for report in backend.wait(0)]
    assert [report.order for report in reports] == [first, other, second]
    assert all(isinstance(report, Done) and not report.outcome.failure for report in reports)
    assert backend.running() == {}
    assert {name: states.read(name).values["step"] for name in states.names()} == {"a0.1": 3, "a1.1": 5, "a0.2": 9}
    once = LocalBackend(SimulatedTask(), States(tmp_path / "once"))
    once.submit(order("a0.1", end=9))
    once.wait(0)
    assert torch.equal(
        states.read("a0.2").tensors["weights"], States(tmp_path / "once").read("a0.1").tensors["weights"]
    )
