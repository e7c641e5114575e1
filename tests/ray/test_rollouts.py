"""Rollouts by Ray actors: the same as in one process, and a killed actor costs time only."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hsokv_ray.errors import RunError
from hsokv_ray.swarm.rollouts.config import RolloutConfig
from hsokv_ray.swarm.rollouts.distributed import run_distributed, worker_counts
from hsokv_ray.swarm.rollouts.local import LocalBackend
from hsokv_ray.swarm.rollouts.messages import Done, Lost, Order
from hsokv_ray.swarm.rollouts.ray_actors import RayBackend
from hsokv_ray.swarm.rollouts.reports import TrainingReport
from hsokv_ray.swarm.rollouts.training import Training
from hsokv_ray.swarm.rollouts.worker import here

pytestmark = pytest.mark.usefixtures("ray_cluster")
CONFIG = RolloutConfig(pairs_per_order=4, evaluation_episodes=10, max_training_steps=8000, cpus_per_worker=0.1)


def timeless(report: TrainingReport) -> Any:
    curve = tuple(replace(each, seconds=0.0) for each in report.curve)
    return replace(report, seconds=0.0, driver_cpu_s=0.0, curve=curve, reached=None)


@pytest.mark.parametrize("algorithm", ["es", "reinforce"])
def test_one_actor_does_exactly_what_this_process_does(algorithm: Any):
    config = CONFIG.model_copy(update={"algorithm": algorithm})
    backend = RayBackend(config, 3, num_workers=1)
    try:
        theirs = Training(config, backend, seed=3).run()
    finally:
        backend.close()
    ours = Training(config, LocalBackend(config, 3), seed=3).run()
    assert timeless(theirs) == timeless(ours)
    assert len(ours.curve) > 0


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_work_of_a_killed_actor_is_done_once_more_and_counted_once(num_workers: int):
    backend = RayBackend(CONFIG, 0, num_workers=num_workers)
    try:
        killed = Training(CONFIG, backend, seed=0, num_orders=20, kill_after=3).run()
    finally:
        backend.close()
    whole = Training(CONFIG, LocalBackend(CONFIG, 0), seed=0, num_orders=20).run()
    assert (killed.orders, killed.steps.used, killed.returns_sum) == (20, whole.steps.used, whole.returns_sum)
    (recovery,) = killed.recoveries
    assert recovery.worker == 0
    assert 0 < len(recovery.orders) <= 2
    assert recovery.recovered_s is not None
    assert recovery.died_s <= recovery.noticed_s <= recovery.recovered_s
    assert killed.steps.repeated > 0
    assert killed.unanswered == 0


def test_an_actor_whose_process_is_killed_from_outside_is_replaced():
    backend = RayBackend(CONFIG, 0, num_workers=1)
    try:
        os.kill(backend.places[0].pid, signal.SIGKILL)
        orders = {number: Order(number, "training", 0) for number in range(3)}
        for order in orders.values():
            backend.submit(order, np.zeros(4))
        answered, deaths = {}, 0
        while len(answered) < 3:
            for happened in backend.wait(60):
                if isinstance(happened, Lost):
                    deaths += 1
                    for order in happened.orders:
                        backend.submit(order.again(), np.zeros(4))
                else:
                    assert isinstance(happened, Done)
                    answered[happened.result.number] = happened.result
    finally:
        backend.close()
    assert deaths == 1
    local = LocalBackend(CONFIG, 0)
    for number, order in orders.items():
        local.submit(order, np.zeros(4))
        (done,) = local.wait(0)
        assert isinstance(done, Done)
        assert replace(answered[number], seconds=0.0) == replace(done.result, seconds=0.0)


def test_an_error_in_an_actor_is_said_in_the_driver():
    backend = RayBackend(CONFIG, 0, num_workers=1)
    try:
        backend.submit(Order(0, "training", 0), np.full(4, np.inf))
        with pytest.raises(RunError, match=r"worker 0 failed: .*no finite number"):
            backend.wait(120)
    finally:
        backend.close()


def test_actors_for_which_there_are_no_cpus_are_refused_with_what_they_need():
    config = CONFIG.model_copy(update={"cpus_per_worker": 1000.0, "worker_timeout_s": 2.0})
    with pytest.raises(RunError, match="0 of 1 workers started within 2 s; each needs 1000 free CPU"):
        RayBackend(config, 0, num_workers=1)


def test_worker_counts_follow_the_real_cpus_not_those_ray_was_told_of():
    counts, _ = worker_counts(CONFIG, "ray")
    assert max(counts) <= here().num_cpus


def test_the_report_of_a_run_on_ray(tmp_path: Path):
    settings = {"num_seeds": 1, "num_workers": (2,), "scaling_orders": 12, "kill_after": 3, "random_episodes": 5}
    config = CONFIG.model_copy(update=settings)
    done = run_distributed(config, folder=tmp_path, backend="ray")
    assert json.loads((tmp_path / "distributed.json").read_text())["backend"] == "ray"
    one, two = done.scaling
    assert one.steps == two.steps
    assert (two.speed_up is None) == (done.num_cpus < 2)
    assert done.recovery is not None
    assert done.recovery.counted_once
    assert [row.num_workers for row in done.training] == [1, 2]
