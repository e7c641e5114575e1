"""Planning and refusing by numbers alone, without a cluster."""

import math
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray import runtime
from hsokv_ray.errors import RunError
from hsokv_ray.runtime import Demand, Node, PendingWatch, Supply, plan_cpus, refuse_if_unplaceable


def supply(*cpus: float, gpus: float = 0, free: float = 0, can_grow: bool = False) -> Supply:
    nodes = tuple(Node(f"n{i}", cpus=c, gpus=gpus, free_cpus=free, free_gpus=gpus) for i, c in enumerate(cpus))
    return Supply(nodes, limit_cpus=sum(cpus), limit_gpus=gpus * len(cpus), can_grow=can_grow)


def test_each_worker_gets_one_cpu_where_there_is_room() -> None:
    assert plan_cpus(Demand(2, data_cpus=1), total_cpus=16).cpus_per_worker == 1


def test_on_a_small_machine_workers_share_what_the_data_leaves() -> None:
    assert plan_cpus(Demand(2, data_cpus=1), total_cpus=2).cpus_per_worker == 0.5
    assert plan_cpus(Demand(3, data_cpus=1), total_cpus=2).cpus_per_worker == 0.33


def test_cpus_that_were_given_are_kept() -> None:
    assert plan_cpus(Demand(2, 3.0), total_cpus=2).cpus_per_worker == 3.0


@given(
    workers=st.integers(1, 64),
    total=st.integers(1, 256),
    data=st.floats(0.1, 8).map(lambda value: round(value, 2)),
)
def test_a_planned_demand_fits_unless_less_than_a_tenth_is_left_for_each_worker(
    workers: int, total: int, data: float
) -> None:
    demand = plan_cpus(Demand(workers, data_cpus=data), total_cpus=total)
    assert demand.cpus_per_worker is not None
    assert 0.1 <= demand.cpus_per_worker <= 1
    if (total - data) / workers >= 0.1:
        assert math.fsum([demand.cpus_per_worker] * workers + [data]) <= total + 1e-6


def test_too_many_cpus_are_refused_with_the_numbers_and_the_flags() -> None:
    with pytest.raises(RunError) as caught:
        refuse_if_unplaceable(Demand(4, 1.0, data_cpus=1), supply(4))
    assert str(caught.value) == (
        "asked for 4 workers of 1 CPU, 1 CPU for data: 5 CPUs, there are 4; "
        "lower --num-workers or --cpus-per-worker or --data-cpus"
    )


def test_too_many_gpus_are_refused() -> None:
    with pytest.raises(RunError, match=r"3 GPUs, there are 2; lower --num-workers or drop --use-gpu"):
        refuse_if_unplaceable(Demand(3, 1.0, gpus_per_worker=1), supply(16, gpus=2))


def test_workers_larger_than_every_node_are_refused_though_the_total_would_do() -> None:
    with pytest.raises(RunError, match=r"only 0 such workers fit on the nodes \(n0 4 CPUs 0 GPUs, n1 4"):
        refuse_if_unplaceable(Demand(1, 6.0, data_cpus=1), supply(4, 4))


def test_what_fits_is_not_refused() -> None:
    refuse_if_unplaceable(Demand(2, 1.5, data_cpus=1), supply(2, 2))
    refuse_if_unplaceable(Demand(1, 6.0, data_cpus=1), supply(4, 4, can_grow=True))


def test_a_watch_is_silent_before_its_time_speaks_once_and_never_after_close() -> None:
    said: list[str] = []
    now = [0.0]

    def watch() -> PendingWatch:
        return PendingWatch(Demand(1, 1.0), after_s=5, supply=lambda: supply(1), say=said.append, clock=lambda: now[0])

    first, second = watch(), watch()
    now[0] = 4.9
    first.poll()
    assert said == []
    second.close()
    now[0] = 5.0
    for _ in range(3):
        first.poll()
        second.poll()
    assert len(said) == 1


def test_the_explanation_names_gpus_when_they_are_what_is_missing() -> None:
    demand = Demand(2, 1.0, gpus_per_worker=1, data_cpus=1)
    text = runtime.explain_pending(demand, supply(8, gpus=1, free=8), waited_s=20)
    assert "1 of 1 GPUs free" in text
    assert text.endswith("lower --num-workers, or wait until the others end")


def test_the_explanation_says_when_there_is_room_now() -> None:
    assert "there is room now" in runtime.explain_pending(Demand(1, 1.0), supply(4, free=4), waited_s=20)


def test_memory_that_is_not_there_is_refused_with_both_numbers() -> None:
    runtime.refuse_if_too_large(2**30, available_bytes=2**30, what="training", advice="lower --size")
    with pytest.raises(RunError, match=r"training needs about 3.0 GiB, there are 2.0 GiB; lower --size"):
        runtime.refuse_if_too_large(3 * 2**30, available_bytes=2 * 2**30, what="training", advice="lower --size")


@pytest.fixture
def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_an_address_where_nothing_answers_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port}")
    with pytest.raises(RunError, match="nothing answers"):
        runtime.head_address()


def test_a_recorded_head_that_is_gone_is_not_joined(monkeypatch: pytest.MonkeyPatch, tmp_path, free_port: int) -> None:
    record = tmp_path / "ray_current_cluster"
    monkeypatch.setattr(runtime, "_CURRENT_CLUSTER", record)
    assert runtime.head_address() is None
    record.write_text(f"127.0.0.1:{free_port}")
    assert runtime.head_address() is None
    with socket.create_server(("127.0.0.1", free_port)):
        assert runtime.head_address() == f"127.0.0.1:{free_port}"
