"""The comparison of worker counts: what it counts, what it writes, and what it refuses to claim."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from hsokv_ray.errors import ConfigError, RunError
from hsokv_ray.swarm.rollouts.account import Steps
from hsokv_ray.swarm.rollouts.config import RolloutConfig
from hsokv_ray.swarm.rollouts.distributed import run_distributed, share_cores, worker_counts
from hsokv_ray.swarm.rollouts.local import LocalBackend
from hsokv_ray.swarm.rollouts.messages import Place
from hsokv_ray.swarm.rollouts.reports import Evaluation, TrainingReport
from hsokv_ray.swarm.rollouts.tables import Run, plain, scaling_row, training_row
from hsokv_ray.swarm.rollouts.training import Training

SMALL: dict[str, Any] = {
    "pairs_per_order": 2, "evaluation_episodes": 10, "max_training_steps": 4000, "num_seeds": 2, "scaling_orders": 10,
    "kill_after": 3, "random_episodes": 5,
}  # fmt: skip


def report(num_workers: int, seed: int, seconds: float, reached_s: float | None = None) -> TrainingReport:
    reached = None if reached_s is None else Evaluation(2, reached_s, 70, 7, 480.0)
    steps = Steps(used=100, evaluation=20, stale=30, left_over=50)
    return TrainingReport(num_workers, seed, seconds, steps, 9, 10, 2, (), reached, (), 0, 0.5, 100.0, (0.0,))


def run(num_workers: int, seed: int, seconds: float, *, shares: bool = False, reached_s: float | None = None) -> Run:
    return Run(report(num_workers, seed, seconds, reached_s), (), shares, test_return=400.0 + seed)


def test_speed_up_is_the_mean_over_seeds_of_the_ratio_of_times():
    runs = [run(1, 0, 8.0), run(2, 0, 5.0), run(2, 1, 3.0), run(1, 1, 6.0)]
    row = scaling_row(runs, 2)
    assert row.speed_up is not None
    assert row.efficiency is not None
    assert row.speed_up.mean == pytest.approx((8 / 5 + 6 / 3) / 2)
    half = stats.t.ppf(0.975, 1) * (0.4 / 2)
    assert row.speed_up.high - row.speed_up.mean == pytest.approx(half)
    assert row.efficiency.mean == pytest.approx(row.speed_up.mean / 2)
    assert row.steps_per_s.mean == pytest.approx((150 / 5 + 150 / 3) / 2)


def test_no_speed_up_is_claimed_for_workers_that_share_a_core():
    row = scaling_row([run(1, 0, 8.0), run(4, 0, 5.0, shares=True)], 4)
    assert row.speed_up is None
    assert row.efficiency is None
    here, there = Place("a", 2, 1), Place("b", 1, 1)
    assert not share_cores([here, here, there])
    assert share_cores([here, here, here])
    assert share_cores([here, there, there])


def test_time_to_the_target_is_over_the_seeds_that_reached_it_and_says_how_many_did():
    runs = [run(1, 0, 9.0, reached_s=3.0), run(1, 1, 9.0, reached_s=5.0), run(1, 2, 9.0)]
    row = training_row(runs, 1)
    assert (row.reached.mean, row.reached.n) == (pytest.approx(2 / 3), 3)
    assert row.seconds_to_target is not None
    assert row.seconds_to_target.mean == 4.0
    assert row.test_return.mean == 401.0
    assert row.wasted_share.mean == pytest.approx(80 / 200)
    assert training_row(runs[2:], 1).seconds_to_target is None


def test_worker_counts_end_where_cores_would_be_shared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    counts, notes = worker_counts(RolloutConfig(), "multiprocessing")
    assert counts == (1, 2)
    assert notes == ["3 CPUs: left out [4] workers, which would share cores"]
    assert worker_counts(RolloutConfig(num_workers=(3, 8)), "multiprocessing") == ((1, 3, 8), [])
    assert worker_counts(RolloutConfig(num_workers=(3, 8)), "local")[0] == (1,)


def test_wrong_worker_counts_are_refused():
    for wrong in ((0, 1), (2, 1), (2, 2)):
        with pytest.raises(ConfigError, match="rising numbers of at least 1"):
            RolloutConfig(num_workers=wrong)


def test_too_many_workers_for_the_staleness_are_refused_before_anything_starts(tmp_path: Path):
    config = RolloutConfig(num_workers=(1, 64), max_staleness=1)
    with pytest.raises(ConfigError, match="with 64 workers"):
        run_distributed(config, folder=tmp_path / "run", backend="multiprocessing")
    assert not (tmp_path / "run").exists()


def test_the_file_holds_what_is_returned(tmp_path: Path):
    lines: list[str] = []
    done = run_distributed(RolloutConfig(**SMALL), folder=tmp_path / "run", backend="local", on_progress=lines.append)
    written = json.loads((tmp_path / "run" / "distributed.json").read_text())
    assert done.seeds == (0, 1)
    assert done.recovery is None
    assert written["recovery"] is None
    assert written["config"]["num_seeds"] == 2
    assert written["scaling"][0]["steps"] == list(done.scaling[0].steps)
    assert written["scaling"][0]["speed_up"]["mean"] == 1.0
    assert [len(curve) for curve in written["training"][0]["curves"]] == [len(c) for c in done.training[0].curves]
    assert len(written["random_search"]) == 2
    assert "no speed-up to measure" in done.notes[0]
    assert len(lines) == 6


def test_random_search_has_as_many_episodes_as_the_training(tmp_path: Path):
    config = RolloutConfig(**{**SMALL, "num_seeds": 1})
    done = run_distributed(config, folder=tmp_path, backend="local")
    training = Training(config, LocalBackend(config, 0), seed=0).run()
    assert done.random_search[0].episodes == training.episodes // 5 * 5
    assert done.training[0].steps[0] == training.steps


def test_processes_do_the_same_steps_for_every_number_of_workers_also_when_one_is_killed(tmp_path: Path):
    config = RolloutConfig(**{**SMALL, "num_seeds": 1, "num_workers": (2,)})
    done = run_distributed(config, folder=tmp_path, backend="multiprocessing")
    one, two = done.scaling
    assert (one.num_workers, two.num_workers) == (1, 2)
    assert one.steps == two.steps
    assert done.recovery is not None
    assert done.recovery.counted_once
    assert done.recovery.seconds is not None
    assert done.recovery.seconds.mean > 0
    assert [len(each) for each in done.recovery.recoveries] == [1]
    assert (two.speed_up is None) == (done.num_cpus < 2)


def test_the_local_worker_cannot_be_killed():
    with pytest.raises(RunError, match="cannot be killed"):
        LocalBackend(RolloutConfig(), 0).kill(0)


def test_what_json_does_not_know_is_null():
    assert plain({"a": (1.0, float("nan")), "b": [float("inf"), "x"]}) == {"a": [1.0, None], "b": [None, "x"]}
