"""The runtime against a real cluster: what it reads, what it refuses, what it says while a group waits."""

import pytest
import ray
from ray.util import placement_group, remove_placement_group

from hsokv_ray import runtime
from hsokv_ray.errors import RunError
from hsokv_ray.runtime import Demand, PendingWatch

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_connecting_twice_keeps_the_cluster_that_is_connected() -> None:
    before = ray.get_runtime_context().get_job_id()
    runtime.connect()
    assert ray.get_runtime_context().get_job_id() == before


def test_supply_is_what_ray_says_the_cluster_has() -> None:
    supply = runtime.read_supply()
    assert supply.limit_cpus == ray.cluster_resources()["CPU"] == sum(node.cpus for node in supply.nodes)
    assert supply.limit_gpus == 0
    assert not supply.can_grow


def test_a_demand_that_passes_preflight_can_be_placed() -> None:
    demand = runtime.preflight(Demand(num_workers=6, data_cpus=1))
    bundles = [{"CPU": demand.cpus_per_worker}] * demand.num_workers + [{"CPU": demand.data_cpus}]
    group = placement_group(bundles)
    try:
        assert group.wait(30)
    finally:
        remove_placement_group(group)


def test_preflight_refuses_with_the_numbers() -> None:
    with pytest.raises(RunError, match=r"5 CPUs, there are 4.*--num-workers.*--cpus-per-worker.*--data-cpus"):
        runtime.preflight(Demand(num_workers=2, cpus_per_worker=2, data_cpus=1))


def test_a_waiting_job_is_told_who_holds_the_cpus() -> None:
    @ray.remote(num_cpus=1)
    class Squatter:
        def ready(self) -> bool:
            return True

    group = placement_group([{"CPU": 2}], name="the-other-run")
    squatter = Squatter.remote()
    try:
        assert group.wait(30)
        assert ray.get(squatter.ready.remote())
        said: list[str] = []
        now = iter([0.0, 19.9, 20.0, 40.0])
        watch = PendingWatch(Demand(3, 1.0, data_cpus=1), say=said.append, clock=lambda: next(now))
        watch.poll()
        assert said == []
        watch.poll()
        watch.poll()
        [text] = said
    finally:
        remove_placement_group(group)
        ray.kill(squatter)
    assert "3 workers of 1 CPU, 1 CPU for data (4 CPUs)" in text
    assert "1 of 4 CPUs free" in text
    assert "placement group the-other-run: 2 CPUs" in text
    assert "actor Squatter" in text
    assert "lower --num-workers" in text
