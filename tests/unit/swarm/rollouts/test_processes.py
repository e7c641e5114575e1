"""Rollouts in processes: the same as in one process, and a killed one costs time only."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hsokv_ray.errors import RunError
from hsokv_ray.swarm.rollouts.config import RolloutConfig
from hsokv_ray.swarm.rollouts.local import LocalBackend
from hsokv_ray.swarm.rollouts.messages import Lost, Order
from hsokv_ray.swarm.rollouts.processes import ProcessBackend
from hsokv_ray.swarm.rollouts.reports import TrainingReport
from hsokv_ray.swarm.rollouts.roster import MAX_DEATHS, Roster
from hsokv_ray.swarm.rollouts.training import Training

CONFIG = RolloutConfig(pairs_per_order=4, evaluation_episodes=10, max_training_steps=8000)


def timeless(report: TrainingReport) -> Any:
    curve = tuple(replace(each, seconds=0.0) for each in report.curve)
    return replace(report, seconds=0.0, driver_cpu_s=0.0, curve=curve, reached=None)


def answers(backend: ProcessBackend) -> None:
    while True:
        backend.wait(60)


def kill_for_ever(backend: ProcessBackend) -> None:
    while True:
        backend.kill(0)
        assert all(isinstance(each, Lost) for each in backend.wait(60))


@pytest.mark.parametrize("algorithm", ["es", "reinforce"])
def test_one_process_does_exactly_what_this_one_does(algorithm: Any):
    config = CONFIG.model_copy(update={"algorithm": algorithm})
    backend = ProcessBackend(config, 3, num_workers=1)
    try:
        theirs = Training(config, backend, seed=3).run()
    finally:
        backend.close()
    ours = Training(config, LocalBackend(config, 3), seed=3).run()
    assert timeless(theirs) == timeless(ours)
    assert len(ours.curve) > 0


def test_the_work_of_a_killed_process_is_done_once_more_and_counted_once():
    backend = ProcessBackend(CONFIG, 0, num_workers=2)
    try:
        killed = Training(CONFIG, backend, seed=0, num_orders=20, kill_after=3).run()
    finally:
        backend.close()
    whole = Training(CONFIG, LocalBackend(CONFIG, 0), seed=0, num_orders=20).run()
    assert (killed.orders, killed.steps.used, killed.returns_sum) == (20, whole.steps.used, whole.returns_sum)
    (recovery,) = killed.recoveries
    assert recovery.worker == 0
    assert "exit code -9" in recovery.why
    assert 0 < len(recovery.orders) <= 2
    assert recovery.seconds is not None
    assert recovery.died_s <= recovery.noticed_s <= recovery.recovered_s  # pyright: ignore
    assert killed.steps.repeated > 0


def test_the_only_process_is_started_again_when_it_dies():
    backend = ProcessBackend(CONFIG, 0, num_workers=1)
    try:
        killed = Training(CONFIG, backend, seed=0, num_orders=8, kill_after=2).run()
    finally:
        backend.close()
    assert killed.orders == 8
    assert len(killed.recoveries) == 1


def test_an_error_in_a_process_is_said_in_the_driver():
    backend = ProcessBackend(CONFIG, 0, num_workers=1)
    try:
        backend.submit(Order(0, "training", 0), np.full(4, np.inf))
        with pytest.raises(RunError, match=r"worker 0 failed: .*no finite number"):
            answers(backend)
    finally:
        backend.close()


def test_close_ends_the_processes():
    backend = ProcessBackend(CONFIG, 0, num_workers=1)
    process = backend._workers[0].process
    backend.close()
    assert process.exitcode == 0


def test_orders_wait_for_a_living_worker_and_three_deaths_of_all_are_an_error():
    roster, orders = Roster(2), [Order(number, "training", 0) for number in range(6)]
    assert [roster.assign(order) for order in orders[:3]] == [0, 1, 0]
    assert roster.died(0) == (orders[0], orders[2])
    assert [roster.assign(order) for order in orders[3:5]] == [1, 1]
    assert roster.died(1) == (orders[1], orders[3], orders[4])
    assert roster.assign(orders[5]) is None
    assert roster.lives(0) == [orders[5]]
    assert roster.assign(orders[5]) == 0
    roster.done(0, 5)  # a result: the deaths before it are forgiven
    for _ in range(MAX_DEATHS):
        roster.died(0)
    assert not roster.may_restart(0)
    roster.died(1)
    with pytest.raises(RunError, match="every worker died 3 times in a row"):
        roster.died(1)


def test_a_process_that_dies_again_and_again_ends_the_run():
    backend = ProcessBackend(CONFIG, 0, num_workers=1)
    try:
        with pytest.raises(RunError, match="every worker died 3 times"):
            kill_for_ever(backend)
    finally:
        backend.close()
