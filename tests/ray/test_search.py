"""A search on a real cluster: actors train, states go by reference, and any of them may be killed."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ObjectLostError
from search_audit import Recorder, audit, config, lines, told

from hsokv_ray.errors import DataError, RunError
from hsokv_ray.runtime import NAMESPACE
from hsokv_ray.swarm.backends.base import Done, Lost
from hsokv_ray.swarm.backends.local import LocalBackend
from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.drive import Drive, Status, Summary
from hsokv_ray.swarm.messages import Best, Order
from hsokv_ray.swarm.ray_backend.agent_actor import AgentActor
from hsokv_ray.swarm.ray_backend.backend import RayBackend
from hsokv_ray.swarm.ray_backend.supervisor_actor import supervisor_name
from hsokv_ray.swarm.search import search
from hsokv_ray.swarm.simulated import SimulatedTask, faults_of
from hsokv_ray.swarm.states import States

pytestmark = pytest.mark.usefixtures("ray_cluster")

TASK = SimulatedTask()
STRATEGY = {"rate": 0.01, "decay": 0.5, "kind": "a"}
PATIENCE_S = 120


def on_ray(folder: Path, options: SwarmConfig, task: SimulatedTask = TASK, **keywords: Any) -> Summary:
    keywords = {"num_workers": 2, "cpus_per_agent": 0.25, "seed": 2, **keywords}
    return search(task, options, folder=folder, backend="ray", **keywords)


def in_this_process(folder: Path, options: SwarmConfig) -> Summary:
    return Drive(TASK, options, folder, LocalBackend(TASK, States(folder / "states")), seed=2).run()


def order(order_id: str, source: str | None = None, begin: int = 0, end: int = 3) -> Order:
    return Order(order_id, 0, 0, STRATEGY, begin, end, source, seed=1)


def reports_of(backend: RayBackend) -> list[Done | Lost]:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if reports := backend.wait(1.0):
            return reports
    raise AssertionError("no report came")


def test_one_actor_does_what_this_process_would(tmp_path: Path):
    summary = on_ray(tmp_path / "on-ray", config("copy"), num_workers=1)
    audit(tmp_path / "on-ray", summary, TASK)
    here = in_this_process(tmp_path / "local", config("copy"))
    assert told(tmp_path / "on-ray") == told(tmp_path / "local")
    assert (summary.best, summary.flops, summary.test) == (here.best, here.flops, here.test)


def test_where_agents_are_apart_two_actors_come_to_the_same_outcomes(tmp_path: Path):
    options = config("none", num_trials=6)
    summary = on_ray(tmp_path / "on-ray", options, replace(TASK, step_s=0.01))
    audit(tmp_path / "on-ray", summary, TASK)
    here = in_this_process(tmp_path / "local", options)
    assert told(tmp_path / "on-ray") == told(tmp_path / "local")
    assert (summary.best, summary.flops) == (here.best, here.flops)
    assert len({record["worker"] for record in lines(tmp_path / "on-ray" / "journal.jsonl")}) == 2


def test_killed_actors_cost_an_attempt_each_and_change_nothing_else(tmp_path: Path):
    (tmp_path / "faults").mkdir()
    faults = faults_of("kill", [0, 3], seed=2, orders=[1, 2])
    task = replace(TASK, faults=faults, faults_once=str(tmp_path / "faults"))
    summary = on_ray(tmp_path / "killed", config("copy"), task, num_workers=1)
    audit(tmp_path / "killed", summary, task)
    assert summary.lost == 4
    assert all("its actor was lost" in failure for failure in summary.failures)
    in_this_process(tmp_path / "local", config("copy"))
    assert told(tmp_path / "killed") == told(tmp_path / "local")


def test_a_final_test_whose_actor_is_killed_is_done_again_and_charged_each_time(tmp_path: Path):
    (tmp_path / "faults").mkdir()
    task = replace(TASK, faults=((2, "kill_test"),), faults_once=str(tmp_path / "faults"))
    summary = on_ray(tmp_path / "killed", config("copy"), task, num_workers=1)
    audit(tmp_path / "killed", summary, task)
    assert summary.test == {"score": summary.best.score}
    assert (summary.flops["evaluation"], summary.flops["repeated"]) == (TASK.step_flops, TASK.step_flops)


def kill(worker: str) -> None:
    """Kill the process of a worker, "host:pid"."""
    os.kill(int(worker.rpartition(":")[2]), signal.SIGKILL)


def ready_workers(backend: RayBackend, *, without: str = "") -> set[str]:
    """Wait until all workers are ready, `without` not among them; meanwhile nothing may be reported."""
    deadline = time.monotonic() + PATIENCE_S
    while len(backend._agents) < backend.num_workers or without in backend._agents:
        assert time.monotonic() < deadline, f"ready are {sorted(backend._agents)}"
        assert backend.wait(1.0) == []
    return set(backend._agents)


def test_an_idle_worker_that_dies_is_replaced_at_once_and_costs_no_order(tmp_path: Path):
    backend = RayBackend(TASK, States(tmp_path), 2, cpus_per_agent=0.25)
    try:
        backend.submit(order("a0.1"))
        assert isinstance(reports_of(backend)[0], Done)
        before = ready_workers(backend)
        assert backend.running() == {}
        holder = next(name for name, agent in backend._agents.items() if agent.holds == "a0.1")
        kill(holder)
        after = ready_workers(backend, without=holder)
        assert len(after & before) == 1
        for name in ("a0.2", "a1.1"):
            backend.submit(order(name, "a0.1", 3, 5))
        reports: list[Done | Lost] = []
        while len(reports) < 2:
            reports += reports_of(backend)
        assert {report.worker for report in reports} == after
        for report in reports:
            assert isinstance(report, Done)
            assert (report.order.attempt, report.outcome.failure) == (1, "")
        assert backend.wait(0) == []
    finally:
        backend.close()


def test_a_final_test_is_not_given_to_a_worker_that_died_idle(tmp_path: Path):
    backend = RayBackend(TASK, States(tmp_path / "states"), 2, cpus_per_agent=0.25)
    try:
        backend.submit(order("a0.1"))
        (report,) = reports_of(backend)
        assert isinstance(report, Done)
        assert report.outcome.score is not None
        ready_workers(backend)
        for name, agent in list(backend._agents.items()):
            kill(name)
            ray.wait([agent.life], timeout=PATIENCE_S)  # Ray knows, the backend has not looked yet
        best = Best("a0.1", STRATEGY, report.outcome.score, 3, agent=0, manager=0)
        assert backend.conclude(best, seed=0, folder=str(tmp_path)).test == {"score": report.outcome.score}
    finally:
        backend.close()


def test_a_worker_that_dies_at_work_is_reported_as_lost_once(tmp_path: Path):
    backend = RayBackend(replace(TASK, step_s=30), States(tmp_path), 1, cpus_per_agent=0.25)
    try:
        backend.submit(order("a0.1"))
        (worker,) = ready_workers(backend)
        while not backend.running():
            assert backend.wait(1.0) == []
        kill(worker)
        (lost,) = reports_of(backend)
        assert isinstance(lost, Lost)
        assert (lost.order.order_id, lost.worker) == ("a0.1", worker)
        assert lost.flops == 3 * TASK.step_flops
        ready_workers(backend, without=worker)
        assert backend.running() == {}
    finally:
        backend.close()


def run_aside(work: Callable[[], Summary]) -> Callable[[], Summary]:
    """Begin `work` in a thread; what is returned waits for its result."""
    results: list[Any] = []

    def keep() -> None:
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=keep)
    thread.start()

    def join() -> Summary:
        thread.join(PATIENCE_S)
        assert results, "the search did not end"
        if isinstance(results[0], Exception):
            raise results[0]
        return results[0]

    return join


def wait_for(path: Path, num_lines: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not (path.exists() and path.read_bytes().count(b"\n") >= num_lines):
        assert time.monotonic() < deadline, f"{path} has no {num_lines} lines"
        time.sleep(0.02)


def test_a_killed_supervisor_goes_on_by_itself_and_counts_nothing_twice(tmp_path: Path):
    folder, recorder, seen = tmp_path / "supervised", Recorder(), list[Status]()
    options, task = config("none", num_trials=12), replace(TASK, step_s=0.02)
    join = run_aside(lambda: on_ray(folder, options, task, watchers=[recorder], on_status=seen.append))
    pids = set()
    for num_told in (3, 10):
        wait_for(folder / "journal.jsonl", num_told)
        supervisor = ray.get_actor(supervisor_name(folder), namespace=NAMESPACE)
        pid: Any = ray.get(supervisor.pid.remote(), timeout=PATIENCE_S)
        pids.add(pid)
        os.kill(pid, signal.SIGKILL)
    summary = join()
    audit(folder, summary, task)
    assert len(pids) == 2
    assert summary.lost > 0
    in_this_process(tmp_path / "local", options)
    assert told(folder) == told(tmp_path / "local")
    assert recorder.records == lines(folder / "journal.jsonl")
    assert [event.number for event in recorder.events] == list(range(len(recorder.events)))
    assert len(recorder.events) == len(lines(folder / "events.jsonl"))
    assert recorder.is_closed
    assert seen[-1].best == summary.best
    with pytest.raises(ValueError, match="Failed to look up actor"):
        ray.get_actor(supervisor_name(folder), namespace=NAMESPACE)


def test_two_searches_of_one_name_in_two_output_folders_run_beside_each_other(tmp_path: Path):
    one, other = tmp_path / "one" / "words", tmp_path / "other" / "words"
    task = replace(TASK, step_s=0.05)
    join = run_aside(lambda: on_ray(one, config("none", num_trials=12), task, num_workers=1))
    wait_for(one / "journal.jsonl", 1)
    summary = on_ray(other, config("copy"), num_workers=1)
    assert not (one / "summary.json").exists()
    audit(other, summary, TASK)
    audit(one, join(), task)


def test_a_fresh_folder_whose_supervisor_is_at_work_can_be_searched_afterwards(tmp_path: Path):
    folder = tmp_path / "run"
    holder: Any = ray.remote(num_cpus=0)(type("Holder", (), {})).options(
        name=supervisor_name(folder), namespace=NAMESPACE
    )
    actor = holder.remote()
    with pytest.raises(RunError, match=f"^a supervisor of {folder} is at work on this cluster; wait for it"):
        on_ray(folder, config("copy"))
    assert not (folder / "search.json").exists()
    ray.kill(actor)
    audit(folder, on_ray(folder, config("copy")), TASK)


def test_a_stopped_search_says_how_to_go_on_and_does(tmp_path: Path):
    folder, options = tmp_path / "stopped", config("none", num_trials=12)
    join = run_aside(lambda: on_ray(folder, options, replace(TASK, step_s=0.02)))
    wait_for(folder / "journal.jsonl", 2)
    supervisor = ray.get_actor(supervisor_name(folder), namespace=NAMESPACE)
    with pytest.raises(RunError, match=r"is being written by process \d+"):
        on_ray(folder, options, replace(TASK, step_s=0.02), resume=True)
    ray.get(supervisor.stop.remote(), timeout=PATIENCE_S)
    with pytest.raises(
        RunError, match="stopped was stopped; jobs/search_swarm.py --resume --name stopped --output-dir .* goes on with"
    ):
        join()
    summary = on_ray(folder, options, replace(TASK, step_s=0.02), resume=True)
    audit(folder, summary, TASK)
    in_this_process(tmp_path / "local", options)
    assert told(folder) == told(tmp_path / "local")


def test_missing_data_ends_the_search_with_the_tasks_own_line(tmp_path: Path):
    with pytest.raises(DataError, match="^simulated: .*/absent is no folder; make it$"):
        on_ray(tmp_path / "run", config("copy"), SimulatedTask(data=str(tmp_path / "absent")))


def test_all_agents_of_a_manager_failing_is_one_line(tmp_path: Path):
    task = replace(TASK, faults=faults_of("raise", range(3), seed=2, orders=range(1, 40)))
    with pytest.raises(RunError, match=r"^swarm: all 3 agents of manager 0 failed, .* as it was told to$"):
        on_ray(tmp_path / "run", config("copy"), task)


def test_workers_that_can_never_fit_are_refused_with_the_numbers(tmp_path: Path):
    with pytest.raises(RunError, match="asked for 3 workers of 2 CPU.*: 6 CPUs, there are 4"):
        on_ray(tmp_path / "run", config("copy"), num_workers=3, cpus_per_agent=2)
    assert not (tmp_path / "run").exists()


def test_as_many_workers_as_fit_share_the_agents_and_one_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    summary = on_ray(tmp_path / "run", config("none"), num_workers=None, cpus_per_agent=2)
    audit(tmp_path / "run", summary, TASK)
    assert summary.workers == 2
    assert "6 agents share 2 workers; the others wait their turn" in capsys.readouterr().err


def test_an_agent_has_the_threads_it_was_given(tmp_path: Path):
    agent: Any = AgentActor.options(num_cpus=0.1).remote(TASK, str(tmp_path), 1)
    assert ray.get(agent.prepare.remote(), timeout=PATIENCE_S)["threads"] == 1
    ray.kill(agent)


def lost_reference() -> Any:
    """A reference to an object that is gone: its owner was killed."""

    @ray.remote(num_cpus=0.1)
    class Owner:
        def put(self) -> list[Any]:
            return [ray.put(bytes(1_000_000))]

    owner: Any = Owner.remote()
    (reference,) = ray.get(owner.put.remote(), timeout=PATIENCE_S)
    ray.kill(owner)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            ray.get(reference, timeout=PATIENCE_S)
        except ObjectLostError:
            return reference
        time.sleep(0.05)
    pytest.fail("the object outlived its owner")


def test_a_state_goes_by_reference_and_one_that_the_store_lost_comes_from_disk(tmp_path: Path):
    task = replace(TASK, state_size=100_000)  # above what Ray keeps beside the outcome
    backend = RayBackend(task, States(tmp_path), 2, cpus_per_agent=0.25)
    try:
        backend.submit(order("a0.1"))
        first = reports_of(backend)[0]
        while len(backend._agents) < 2:
            backend.wait(1.0)
        holder = next(agent for agent in backend._agents.values() if agent.holds == "a0.1")
        States(tmp_path).drop({"a0.1"})  # the other worker can have it from the store only
        backend.submit(order("a0.2", "a0.1", 3, 5))
        backend.submit(order("a1.1", "a0.1", 3, 6))
        reports = {}
        while len(reports) < 2:
            reports |= {report.order.order_id: report for report in reports_of(backend)}
        assert first.worker == holder.name == reports["a0.2"].worker != reports["a1.1"].worker
        assert not any(report.outcome.failure for report in reports.values())
        assert States(tmp_path).read("a1.1").values["step"] == 6
        backend._references["a1.1"] = lost_reference()
        backend.submit(order("a0.3", "a0.2", 5, 6))  # occupies the worker that holds a0.2
        backend.submit(order("a2.1", "a1.1", 6, 7))
        backend.submit(order("a3.1", "a1.1", 6, 8))
        reports = {}
        while len(reports) < 3:
            reports |= {report.order.order_id: report for report in reports_of(backend)}
        assert not any(report.outcome.failure for report in reports.values())
        assert States(tmp_path).read("a3.1").values["step"] == 8
        backend.forget({"a0.1", "a0.2"})
        assert backend._references.keys() == {"a0.3", "a1.1", "a2.1", "a3.1"}
    finally:
        backend.close()
