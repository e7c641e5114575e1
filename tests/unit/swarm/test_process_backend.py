"""Workers as processes: the same search as in one process, and one that survives the death of any of them."""

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from search_audit import EXPLOITS, Recorder, audit, config, lines, told

from hsokv_ray.errors import DataError, RunError
from hsokv_ray.swarm.backends.local import LocalBackend
from hsokv_ray.swarm.backends.processes import ProcessBackend
from hsokv_ray.swarm.drive import Drive, Summary
from hsokv_ray.swarm.search import search
from hsokv_ray.swarm.simulated import SimulatedLearner, SimulatedTask, faults_of
from hsokv_ray.swarm.states import States

TASK = SimulatedTask()


def run(folder: Path, exploit: str, num_workers: int, task: SimulatedTask = TASK, **keywords: Any) -> Summary:
    backend = ProcessBackend(task, States(folder / "states"), num_workers)
    return Drive(task, config(exploit), folder, backend, seed=2, **keywords).run()


def in_one_process(folder: Path, exploit: str) -> Summary:
    return Drive(TASK, config(exploit), folder, LocalBackend(TASK, States(folder / "states")), seed=2).run()


@pytest.mark.parametrize("exploit", EXPLOITS)
def test_one_process_does_what_this_one_would(tmp_path: Path, exploit: str):
    summary = run(tmp_path / "processes", exploit, 1)
    audit(tmp_path / "processes", summary, TASK)
    here = in_one_process(tmp_path / "local", exploit)
    assert told(tmp_path / "processes") == told(tmp_path / "local")
    assert (summary.best, summary.flops, summary.test) == (here.best, here.flops, here.test)


def test_where_agents_do_not_depend_on_each_other_two_processes_come_to_the_same_outcomes(tmp_path: Path):
    summary = run(tmp_path / "processes", "none", 2, replace(TASK, step_s=0.01))
    audit(tmp_path / "processes", summary, TASK)
    in_one_process(tmp_path / "local", "none")
    workers = {record["worker"] for record in lines(tmp_path / "processes" / "journal.jsonl")}
    assert len(workers) == 2
    ours, theirs = told(tmp_path / "processes"), told(tmp_path / "local")
    first = {key: value for key, value in theirs.items() if value[0]["source"] is None and key.endswith(".1")}
    assert {key: ours[key] for key in first} == first


def test_a_process_that_kills_itself_costs_one_attempt_each_time(tmp_path: Path):
    (tmp_path / "faults").mkdir()
    faults = faults_of("kill", [0, 3], seed=2, orders=[1, 2])
    task = replace(TASK, faults=faults, faults_once=str(tmp_path / "faults"))
    summary = run(tmp_path / "run", "copy", 1, task)
    audit(tmp_path / "run", summary, task)
    assert summary.lost == 4
    assert all("was killed by signal 9" in failure for failure in summary.failures)
    in_one_process(tmp_path / "local", "copy")
    assert told(tmp_path / "run") == told(tmp_path / "local")


def test_an_order_that_kills_each_of_its_workers_has_failed_after_max_restarts(tmp_path: Path):
    task = replace(TASK, faults=faults_of("kill", [0], seed=2, orders=[1]))
    summary = run(tmp_path / "run", "copy", 1, task)
    audit(tmp_path / "run", summary, task)
    assert summary.lost == config("copy").max_restarts + 1
    failed = [event for event in lines(tmp_path / "run" / "events.jsonl") if event["what"] == "failed"]
    assert [event["order_id"] for event in failed] == ["a0.1"]
    assert "its worker was lost 4 times" in failed[0]["details"]["failure"]


def test_a_final_test_whose_worker_is_killed_is_done_again_and_charged_each_time(tmp_path: Path):
    (tmp_path / "faults").mkdir()
    task = replace(TASK, faults=((2, "kill_test"),), faults_once=str(tmp_path / "faults"))
    summary = run(tmp_path / "run", "copy", 1, task)
    audit(tmp_path / "run", summary, task)
    assert summary.test == {"score": summary.best.score}
    assert (summary.flops["evaluation"], summary.flops["repeated"]) == (TASK.step_flops, TASK.step_flops)


def test_a_final_test_that_kills_its_workers_ends_in_one_line_and_is_done_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "faults").mkdir()
    task = replace(TASK, faults=((2, "kill_test"),), faults_once=str(tmp_path / "faults"))
    monkeypatch.setattr("hsokv_ray.swarm.drive.MAX_TESTS", 1)
    with pytest.raises(RunError, match=r"run: 1 workers in a row were lost while they tested .* --resume --name run"):
        run(tmp_path / "run", "copy", 1, task)
    assert not multiprocessing.active_children()
    summary = run(tmp_path / "run", "copy", 1, task, resume=True)
    audit(tmp_path / "run", summary, task)
    assert (summary.flops["evaluation"], summary.flops["repeated"]) == (TASK.step_flops, TASK.step_flops)


def test_a_killed_worker_is_noticed_and_replaced_whatever_it_was_doing(tmp_path: Path):
    class Killer(Recorder):
        def told(self, record: dict[str, Any]) -> None:
            super().told(record)
            if len(self.records) in (2, 5, 9):
                os.kill(int(record["worker"].rpartition(":")[2]), signal.SIGKILL)

    summary = run(tmp_path / "run", "restart", 2, replace(TASK, step_s=0.005), watchers=[Killer()])
    audit(tmp_path / "run", summary, TASK)
    workers = {record["worker"] for record in lines(tmp_path / "run" / "journal.jsonl")}
    assert len(workers) >= 3
    assert not multiprocessing.active_children()


def test_missing_data_is_said_once_and_no_worker_is_started_again(tmp_path: Path):
    task = SimulatedTask(data=str(tmp_path / "absent"))
    with pytest.raises(DataError, match="simulated: .*/absent is no folder; make it"):
        run(tmp_path / "run", "copy", 2, task)
    assert not multiprocessing.active_children()


class DiesAtOnce(SimulatedTask):
    """Its learner ends the process."""

    def learner(self) -> SimulatedLearner:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_workers_that_end_while_starting_end_the_search(tmp_path: Path):
    with pytest.raises(RunError, match="3 workers in a row ended while starting; of the last, its process was killed"):
        run(tmp_path / "run", "copy", 1, DiesAtOnce())


def test_more_agents_than_workers_are_told_of_and_take_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    messages: set[str] = set()
    summary = search(
        TASK, config("copy"), folder=tmp_path / "run", backend="multiprocessing", num_workers=1,
        on_status=lambda status: messages.add(status.message),
    )  # fmt: skip
    audit(tmp_path / "run", summary, TASK)
    assert capsys.readouterr().err.startswith("6 agents share 1 workers; the others wait their turn")
    assert messages == {"6 agents share 1 workers; the others wait their turn"}
