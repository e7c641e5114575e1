"""A search from its first order to its summary: on disk first, nothing twice, and stopped at any point it goes on."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from search_audit import EXPLOITS, Recorder, audit, config, lines, recounted, told

from hsokv_ray.errors import CheckpointError, ConfigError, DataError, RunError
from hsokv_ray.swarm.backends.local import LocalBackend
from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.drive import Drive, Status, Summary
from hsokv_ray.swarm.messages import Outcome
from hsokv_ray.swarm.search import search
from hsokv_ray.swarm.simulated import SimulatedLearner, SimulatedTask, faults_of
from hsokv_ray.swarm.states import States
from hsokv_ray.swarm.swarm import Swarm

TASK = SimulatedTask()


def drive(folder: Path, options: SwarmConfig, task: SimulatedTask = TASK, **keywords: Any) -> Drive:
    return Drive(task, options, folder, LocalBackend(task, States(folder / "states")), seed=1, **keywords)


class StopAfter(Recorder):
    """Stops its drive after so many records."""

    def __init__(self, num_records: int) -> None:
        super().__init__()
        self.num_records, self.drive = num_records, None

    def told(self, record: dict[str, Any]) -> None:
        super().told(record)
        if len(self.records) == self.num_records and self.drive is not None:
            self.drive.stop()


def stopped(
    folder: Path, options: SwarmConfig, num_records: int, *, resume: bool = False, **keywords: Any
) -> StopAfter:
    watcher = StopAfter(num_records)
    watcher.drive = drive(folder, options, watchers=[watcher], resume=resume, **keywords)
    command = r"jobs/search_swarm.py --resume --name \w+ --output-dir \S+"
    with pytest.raises(RunError, match=f"was stopped; {command} goes on with it"):
        watcher.drive.run()
    return watcher


@pytest.mark.parametrize("exploit", EXPLOITS)
def test_a_search_ends_with_the_best_score_tested_saved_and_every_flop_accounted_for(tmp_path: Path, exploit: str):
    summary = drive(tmp_path / "run", config(exploit)).run()
    audit(tmp_path / "run", summary, TASK)
    assert summary.test == {"score": summary.best.score}
    assert json.loads((tmp_path / "run" / "best" / "model.json").read_text())["step"] == summary.best.step
    assert summary.failed == summary.lost == 0
    assert 0 < summary.utilisation <= 1


@pytest.mark.parametrize("exploit", EXPLOITS)
def test_what_is_told_is_on_disk_before_the_swarm_hears_it(
    tmp_path: Path, exploit: str, monkeypatch: pytest.MonkeyPatch
):
    tell, heard = Swarm.tell, []

    def checked(self: Swarm, outcome: Outcome) -> Any:
        last = lines(tmp_path / "run" / "journal.jsonl")[-1]
        assert last["outcome"] == json.loads(json.dumps(outcome.to_json()))
        assert States(tmp_path / "run" / "states").read(outcome.order_id).values["step"] == last["order"]["end_step"]
        heard.append(outcome.order_id)
        return tell(self, outcome)

    monkeypatch.setattr(Swarm, "tell", checked)
    summary = drive(tmp_path / "run", config(exploit)).run()
    assert len(heard) == summary.told > 0


@pytest.mark.parametrize("exploit", EXPLOITS)
def test_states_that_nobody_needs_are_dropped_while_the_search_runs(tmp_path: Path, exploit: str):
    states, stored, needs = States(tmp_path / "run" / "states"), [], []

    class Looker(Recorder):
        def told(self, record: dict[str, Any]) -> None:
            super().told(record)
            needed = drive_._history.swarm.needed() | drive_._history.orders.keys()
            assert needed & {each["order"]["order_id"] for each in self.records} <= states.names()
            needs.append(len(needed))
            stored.append(len(states.names()))

    options = config(exploit, max_steps=80, interval_steps=2, num_trials=60)
    drive_ = drive(tmp_path / "run", options, watchers=[Looker()])
    summary = drive_.run()
    assert summary.told > 80
    assert max(stored) <= 1.25 * max(needs) + 5 < summary.told


@pytest.mark.parametrize("exploit", EXPLOITS)
@pytest.mark.parametrize("with_snapshot", [True, False])
def test_a_search_stopped_again_and_again_is_the_search_that_never_was(
    tmp_path: Path, exploit: str, with_snapshot: bool
):
    options = config(exploit)
    whole = drive(tmp_path / "whole", options).run()
    first = stopped(tmp_path / "run", options, 3)
    recorders = [first]
    for num_records in (1, 5, 2):
        if not with_snapshot:
            (tmp_path / "run" / "swarm.json").unlink()
        recorders.append(stopped(tmp_path / "run", options, num_records, resume=True))
    last = Recorder()
    summary = drive(tmp_path / "run", options, resume=True, watchers=[last]).run()
    audit(tmp_path / "run", summary, TASK)
    assert told(tmp_path / "run") == told(tmp_path / "whole")
    assert (summary.best, summary.flops, summary.lost) == (whole.best, whole.flops, 0)
    events = [event.to_json() for each in [*recorders, last] for event in each.events]
    assert [{k: v for k, v in e.items() if k != "time"} for e in lines(tmp_path / "run" / "events.jsonl")] == events
    assert [r for each in [*recorders, last] for r in each.records] == lines(tmp_path / "run" / "journal.jsonl")
    assert all(each.is_closed for each in recorders)


def test_events_differ_in_nothing_but_time_after_stops(tmp_path: Path):
    options = config("copy")
    drive(tmp_path / "whole", options).run()
    stopped(tmp_path / "run", options, 7)
    drive(tmp_path / "run", options, resume=True).run()
    whole, run = ([{**e, "time": 0} for e in lines(tmp_path / n / "events.jsonl")] for n in ("whole", "run"))
    assert whole == run


def test_an_order_that_was_interrupted_is_charged_in_full_and_one_that_waited_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train, calls = SimulatedLearner.train, []

    def interrupted(self: SimulatedLearner, num_steps: int) -> None:
        calls.append(num_steps)
        if len(calls) in (4, 7, 8):
            raise KeyboardInterrupt
        train(self, num_steps)

    monkeypatch.setattr(SimulatedLearner, "train", interrupted)
    options = config("copy", interval_factor=1)
    for resume in (False, True, True):
        with pytest.raises(KeyboardInterrupt):
            drive(tmp_path / "run", options, resume=resume).run()
    summary = drive(tmp_path / "run", options, resume=True).run()
    audit(tmp_path / "run", summary, TASK)
    lost = [record for record in lines(tmp_path / "run" / "journal.jsonl") if record["what"] == "lost"]
    assert [(record["order"]["order_id"], record["order"]["attempt"]) for record in lost] == [
        ("a3.1", 1), ("a5.1", 1), ("a5.1", 2),
    ]  # fmt: skip
    assert summary.flops["wasted"] == 2 * 4 * TASK.step_flops
    drive(tmp_path / "whole", options).run()
    assert told(tmp_path / "run") == told(tmp_path / "whole")


@pytest.mark.parametrize("fault", ["nan", "raise"])
def test_a_failing_agent_costs_its_model_and_not_the_search(tmp_path: Path, fault: Any):
    task = replace(TASK, faults=faults_of(fault, [1, 4], seed=1, orders=range(1, 3)))
    summary = drive(tmp_path / "run", config("copy"), task).run()
    audit(tmp_path / "run", summary, task)
    assert summary.failed == 4
    assert all(failure.startswith(("a1.", "a4.")) for failure in summary.failures)
    assert ("nan" if fault == "nan" else "as it was told to") in summary.failures[0]
    failed = [event for event in lines(tmp_path / "run" / "events.jsonl") if event["what"] == "failed"]
    assert {event["agent"] for event in failed} == {1, 4}
    assert summary.flops["wasted"] == sum(
        record["outcome"]["flops"]
        for record in lines(tmp_path / "run" / "journal.jsonl")
        if record["outcome"]["failure"]
    )


def test_a_manager_whose_agents_all_fail_ends_the_search_in_one_line_and_keeps_everything(tmp_path: Path):
    task = replace(TASK, faults=faults_of("raise", range(3), seed=1, orders=range(1, 40)))
    for resume in (False, True):
        with pytest.raises(RunError, match="all 3 agents of manager 0 failed") as caught:
            drive(tmp_path / "run", config("copy"), task, resume=resume).run()
        assert "\n" not in str(caught.value)
    events = lines(tmp_path / "run" / "events.jsonl")
    assert [event["number"] for event in events] == list(range(len(events)))
    assert events[-1]["what"] == "failed"
    assert (tmp_path / "run" / "states").is_dir()
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_search_without_one_score_says_so(tmp_path: Path):
    task = replace(TASK, faults=faults_of("nan", range(6), seed=1, orders=range(1, 40)))
    with pytest.raises(RunError, match="got no score|all 3 agents"):
        drive(tmp_path / "run", config("none", num_trials=6, max_restarts=50, max_failures=3), task).run()


def test_a_budget_below_one_step_is_refused_and_nothing_is_created(tmp_path: Path):
    options = config("copy", flops_budget=TASK.step_flops - 1)
    for backend in ("local", "multiprocessing", "ray"):
        with pytest.raises(ConfigError, match="one step costs 1000: give at least 1000 FLOPs"):
            search(TASK, options, folder=tmp_path / "run", backend=backend)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("budget_steps", [1, 7, 50, 100])
def test_the_budget_holds_and_the_last_order_is_cut_to_it(tmp_path: Path, budget_steps: int):
    summary = drive(tmp_path / "run", config("copy", flops_budget=budget_steps * TASK.step_flops)).run()
    audit(tmp_path / "run", summary, TASK)
    assert summary.flops["useful"] == budget_steps * TASK.step_flops


def test_another_configuration_is_refused_and_the_fields_are_named(tmp_path: Path):
    stopped(tmp_path / "run", config("copy"), 2)
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=r"swarm\.quantile: 0\.25 -> 0\.5") as caught:
        drive(tmp_path / "run", config("copy", quantile=0.5), resume=True).run()
    assert "seed" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"task\.needed_steps: 20 -> 21"):
        drive(tmp_path / "run", config("copy"), replace(TASK, needed_steps=21), resume=True).run()
    with pytest.raises(ConfigError, match="holds a search already"):
        drive(tmp_path / "run", config("copy")).run()
    with pytest.raises(ConfigError, match="holds no search"):
        drive(tmp_path / "other", config("copy"), resume=True).run()
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == before
    assert not (tmp_path / "other").exists()


def test_a_second_driver_of_the_same_run_is_refused(tmp_path: Path):
    class Second(Recorder):
        def told(self, record: dict[str, Any]) -> None:
            super().told(record)
            if len(self.records) == 3:
                with pytest.raises(RunError, match=r"is being written by process \d+ on "):
                    drive(tmp_path / "run", config("copy"), resume=True).run()

    summary = drive(tmp_path / "run", config("copy"), watchers=[Second()]).run()
    audit(tmp_path / "run", summary, TASK)


def test_missing_data_ends_the_search_with_the_tasks_own_line(tmp_path: Path):
    with pytest.raises(DataError, match="simulated: .*/absent is no folder; make it"):
        drive(tmp_path / "run", config("copy"), SimulatedTask(data=str(tmp_path / "absent"))).run()
    (tmp_path / "absent").mkdir()
    task = SimulatedTask(data=str(tmp_path / "absent"))
    audit(tmp_path / "run", drive(tmp_path / "run", config("copy"), task, resume=True).run(), task)


def test_a_search_that_has_ended_returns_its_summary_again(tmp_path: Path):
    summary = drive(tmp_path / "run", config("copy")).run()
    assert drive(tmp_path / "run", config("copy"), resume=True).run() == summary


@pytest.mark.parametrize("damage", [lambda t: t[: len(t) // 2], lambda t: "{}", lambda t: t.replace('"rng"', '"gnr"')])
def test_a_damaged_snapshot_is_no_loss(tmp_path: Path, damage: Callable[[str], str]):
    whole = drive(tmp_path / "whole", config("copy")).run()
    stopped(tmp_path / "run", config("copy"), 9)
    snapshot = tmp_path / "run" / "swarm.json"
    snapshot.write_text(damage(snapshot.read_text()))
    summary = drive(tmp_path / "run", config("copy"), resume=True).run()
    audit(tmp_path / "run", summary, TASK)
    assert (summary.best, summary.flops) == (whole.best, whole.flops)


def test_a_journal_damaged_in_its_middle_is_refused(tmp_path: Path):
    stopped(tmp_path / "run", config("copy"), 9)
    journal = tmp_path / "run" / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"what"', '"what', 1))
    with pytest.raises(CheckpointError, match=r"journal.jsonl:1 is damaged .*; restore the file from a copy"):
        drive(tmp_path / "run", config("copy"), resume=True).run()


def test_a_lost_source_costs_the_agent_its_model_and_not_the_search(tmp_path: Path):
    stopped(tmp_path / "run", config("copy"), 8)
    for path in (tmp_path / "run" / "states").iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    summary = drive(tmp_path / "run", config("copy"), resume=True).run()
    assert summary.failed > 0
    assert all("damaged state" in failure for failure in summary.failures)
    assert summary.flops == {**recounted(tmp_path / "run", TASK), "evaluation": summary.flops["evaluation"]}


def test_the_status_adds_up_at_every_moment_from_another_thread(tmp_path: Path):
    seen: list[Status] = []
    search_ = drive(tmp_path / "run", config("copy", max_steps=200), replace(TASK, step_s=0.0005))
    assert search_.status().told == 0
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.002):
            seen.append(search_.status())

    thread = threading.Thread(target=look)
    thread.start()
    summary: Summary = search_.run()
    ended.set()
    thread.join()
    assert len(seen) > 5
    for a, b in zip(seen, seen[1:], strict=False):
        assert a.told <= b.told
        assert a.seconds <= b.seconds
        assert sum(a.flops.values()) <= sum(b.flops.values())
    for status in seen:
        assert status.running <= status.workers == 1
        assert len(status.agents) == 6
        assert sum(manager["agents"] for manager in status.managers) <= 6
        assert status.message == "6 agents share 1 workers; the others wait their turn"
    assert any(agent["doing"].startswith("training a") for status in seen for agent in status.agents)
    last = search_.status()
    assert (last.told, last.best, last.flops) == (summary.told, summary.best, summary.flops)
    assert {agent["doing"] for agent in last.agents} == {"ended"}


def test_on_status_is_called_to_the_end_and_its_error_ends_the_search(tmp_path: Path):
    seen: list[Status] = []
    summary = search(TASK, config("copy"), folder=tmp_path / "a", seed=1, backend="local", on_status=seen.append)
    assert seen[-1].best == summary.best

    def fail(status: Status) -> None:
        raise ValueError("no terminal")

    with pytest.raises(ValueError, match="no terminal"):
        search(replace(TASK, step_s=0.05), config("copy"), folder=tmp_path / "b", backend="local", on_status=fail)


@pytest.mark.parametrize(("name", "value"), [("num_workers", 0), ("cpus_per_agent", 0.0), ("backend", "threads")])
def test_impossible_arguments_are_refused_before_anything_is_made(tmp_path: Path, name: str, value: Any):
    with pytest.raises(ConfigError, match="got"):
        search(TASK, config("copy"), folder=tmp_path / "run", **{"backend": "local", name: value})
    assert not (tmp_path / "run").exists()
