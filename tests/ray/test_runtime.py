"""The runtime against a real cluster: what it reads, what it refuses, what it says while a group waits."""

import subprocess
import sys
from collections.abc import Iterator

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


OTHER_JOB = """
import ray, sys
from ray.util import placement_group
ray.init(address=sys.argv[1], namespace="other", logging_level="ERROR")
group = placement_group([{"CPU": 2}], name="the-other-run")
assert group.wait(30)
@ray.remote(num_cpus=1)
class Squatter:
    def ready(self):
        return True
squatter = Squatter.remote()
assert ray.get(squatter.ready.remote())
print("holding", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_job() -> Iterator[None]:
    """Another driver on the same cluster: a placement group of 2 CPUs and an actor of 1."""
    words = [sys.executable, "-c", OTHER_JOB, ray.get_runtime_context().gcs_address]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holding\n"
        yield
        process.communicate("")


def explanation(demand: Demand) -> str:
    said: list[str] = []
    now = iter([0.0, 19.9, 20.0, 40.0])
    watch = PendingWatch(demand, say=said.append, clock=lambda: next(now))
    watch.poll()
    assert said == []
    watch.poll()
    watch.poll()
    [text] = said
    return text


@pytest.mark.usefixtures("other_job")
def test_a_waiting_job_is_told_who_holds_the_cpus() -> None:
    text = explanation(Demand(3, 1.0, data_cpus=1))
    assert "3 workers of 1 CPU, 1 CPU for data (4 CPUs)" in text
    assert "1 of 4 CPUs free" in text
    assert "placement group the-other-run: 2 CPUs" in text
    assert "actor Squatter of job" in text
    assert "lower --num-workers" in text


def test_a_job_whose_workers_have_their_cpus_is_told_that_they_are_starting() -> None:
    group = placement_group([{"CPU": 1}] * 3)
    try:
        assert group.wait(30)
        text = explanation(Demand(3, 1.0, data_cpus=1))
    finally:
        remove_placement_group(group)
    assert "the workers have their CPUs and are starting" in text
    assert "nobody else" in text
