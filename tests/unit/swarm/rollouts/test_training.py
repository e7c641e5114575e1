"""The asynchronous loop: whatever order results come in, and whoever dies, work counts once."""

import json
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.errors import ConfigError, RunError
from hsokv_ray.swarm.rollouts.config import RolloutConfig
from hsokv_ray.swarm.rollouts.environment import play
from hsokv_ray.swarm.rollouts.local import LocalBackend
from hsokv_ray.swarm.rollouts.messages import Done, Lost, Order, Place, Result
from hsokv_ray.swarm.rollouts.policy import make_policy
from hsokv_ray.swarm.rollouts.seeds import episode_seeds
from hsokv_ray.swarm.rollouts.training import Training
from hsokv_ray.swarm.rollouts.worker import Worker, here

TINY: dict[str, Any] = {"pairs_per_order": 2, "evaluation_episodes": 5, "max_staleness": 9}


class Unruly:
    """Carries orders out for real, but answers in any order, loses some with their worker, and answers some twice."""

    def __init__(self, config: RolloutConfig, num_workers: int, luck: random.Random, *, losses: int) -> None:
        self.num_workers, self.luck, self.losses = num_workers, luck, losses
        self.worker = Worker(config, 0)
        self.orders: list[tuple[Order, np.ndarray]] = []
        self.lost: list[Order] = []
        self.answered: list[Result] = []
        self.twice = Counter[int]()

    @property
    def places(self) -> tuple[Place, ...]:
        return (here(),) * self.num_workers

    def submit(self, order: Order, parameters_P: np.ndarray) -> None:
        self.orders.append((order, parameters_P))

    def wait(self, timeout_s: float) -> list[Done | Lost]:
        kind = self.luck.random()
        if self.losses and self.orders and kind < 0.3:
            self.losses -= 1
            taken = [self.take()[0] for _ in range(min(2, len(self.orders)))]
            self.lost += taken
            return [Lost(tuple(taken), 0, "unruly")]
        if self.answered and kind > 0.8:
            again = self.luck.choice(self.answered)
            self.twice[again.number] += 1
            return [Done(again, 0)]
        if not self.orders:
            return []
        self.answered.append(self.worker.run(*self.take()))
        return [Done(self.answered[-1], 0)]

    def take(self) -> tuple[Order, np.ndarray]:
        return self.orders.pop(self.luck.randrange(len(self.orders)))

    def kill(self, worker: int) -> None:
        raise AssertionError

    def close(self) -> None:
        pass


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), num_workers=st.integers(1, 4), losses=st.integers(0, 5))
def test_fixed_work_counts_the_same_whatever_is_late_lost_or_answered_twice(seed: int, num_workers: int, losses: int):
    config = RolloutConfig(**TINY)
    unruly = Unruly(config, num_workers, random.Random(seed), losses=losses)
    ours = Training(config, unruly, seed=0, num_orders=12).run()
    plain = Training(config, LocalBackend(config, 0), seed=0, num_orders=12).run()
    assert (ours.orders, ours.steps.used, ours.returns_sum) == (12, plain.steps.used, plain.returns_sum)
    by_number = {result.number: result.steps for result in unruly.answered}
    assert sorted(by_number) == list(range(12))
    assert len(unruly.answered) == 12
    assert ours.steps.repeated == sum(by_number[number] for number in {order.number for order in unruly.lost})
    assert ours.steps.duplicate == sum(by_number[number] * times for number, times in unruly.twice.items())
    assert [recovery.orders for recovery in ours.recoveries] or not unruly.lost
    for recovery in ours.recoveries:
        assert recovery.seconds is not None
        assert recovery.seconds >= 0
    assert plain.steps.wasted == 0
    total = ours.steps.used + ours.steps.repeated + ours.steps.duplicate
    assert ours.steps.wasted_share == pytest.approx(1 - ours.steps.used / total)


class Slow(LocalBackend):
    """Keeps the first order back until the run has gone on for a while."""

    def __init__(self, config: RolloutConfig, keep_for: int) -> None:
        super().__init__(config, 0)
        self.kept: list[tuple[Order, np.ndarray]] = []
        self.keep_for = keep_for

    def submit(self, order: Order, parameters_P: np.ndarray) -> None:
        if order.number == 0:
            self.kept.append((order, parameters_P))
        else:
            super().submit(order, parameters_P)

    def wait(self, timeout_s: float) -> list[Done | Lost]:
        self.keep_for -= 1
        if self.keep_for < 0 and self.kept:
            super().submit(*self.kept.pop())
        return super().wait(timeout_s)


@pytest.mark.parametrize(("keep_for", "is_used"), [(1, True), (12, False)])
def test_the_slowest_is_not_waited_for_and_what_comes_too_late_is_dropped(keep_for: int, is_used: bool):
    config = RolloutConfig(
        pairs_per_order=1, orders_per_update=2, max_staleness=1, max_training_steps=6000, evaluate_every=1000
    )
    report = Training(config, Slow(config, keep_for), seed=0).run()
    zeroth = Worker(config, 0).run(Order(0, "training", 0), np.zeros(4))
    assert report.orders > 14
    assert report.steps.stale == (0 if is_used else zeroth.steps)
    num_used = report.orders - 1 - (not is_used)  # the one under way at the end is left over
    assert report.updates == num_used // 2


@pytest.mark.parametrize("algorithm", ["es", "reinforce"])
@pytest.mark.parametrize("policy", ["linear", "mlp"])
def test_training_reaches_475_on_episodes_it_never_saw(algorithm: Any, policy: Any):
    config = RolloutConfig(algorithm=algorithm, policy=policy, learning_rate=0.1 if algorithm == "es" else 0.05)
    report = Training(config, LocalBackend(config, 1), seed=1).run()
    assert report.reached is not None
    assert report.reached.mean_return >= 475
    assert report.curve[0].mean_return < 475
    parameters, seeds = np.array([report.parameters]), episode_seeds(1, 0, 100, "test")
    test = play(make_policy(config), parameters, seeds, num_envs=100)
    assert test.returns_E.mean() > 450
    assert report.reached.steps < report.steps.used + report.steps.stale
    assert report.steps.total > report.steps.used + report.steps.evaluation > 0


def test_one_worker_repeats_exactly():
    config = RolloutConfig(**{**TINY, "max_training_steps": 3000})
    first, second = (Training(config, LocalBackend(config, 6), seed=6).run() for _ in range(2))
    assert timeless(first) == timeless(second)
    other = Training(config, LocalBackend(config, 7), seed=7).run()
    assert other.parameters != first.parameters


def timeless(report: Any) -> Any:
    curve = tuple(replace(each, seconds=0.0) for each in report.curve)
    reached = report.reached and replace(report.reached, seconds=0.0)
    return replace(report, seconds=0.0, driver_cpu_s=0.0, curve=curve, reached=reached)


def test_limits_end_a_run_that_does_not_reach_the_target():
    by_steps = RolloutConfig(**TINY, target_return=501, max_training_steps=2000)
    report = Training(by_steps, LocalBackend(by_steps, 0), seed=0).run()
    assert report.reached is None
    assert report.steps.used >= 2000
    ticks = iter(range(10**6))
    by_time = RolloutConfig(**TINY, target_return=501, max_seconds=50)
    report = Training(by_time, LocalBackend(by_time, 0), seed=0, clock=lambda: float(next(ticks))).run()
    assert report.orders < 50


class Silent(LocalBackend):
    """Never answers."""

    def wait(self, timeout_s: float) -> list[Done | Lost]:
        return []


def test_silence_of_all_workers_is_an_error():
    config, ticks = RolloutConfig(**TINY, worker_timeout_s=30), iter(range(10**6))
    with pytest.raises(RunError, match="no sign of any worker for 30 s"):
        Training(config, Silent(config, 0), seed=0, clock=lambda: float(next(ticks))).run()


def test_a_staleness_that_would_drop_most_work_is_refused_with_the_lag():
    config = RolloutConfig(orders_per_update=2, in_flight_per_worker=2, max_staleness=1)
    config.check_staleness(1)
    with pytest.raises(ConfigError, match="results lag 4 versions"):
        config.check_staleness(4)


def test_messages_survive_json():
    order, result = Order(3, "training", 2, attempt=2), Result(3, (1 / 3, 2.0), 5, 2, 0.1, gradient=(0.1, -1e-17))
    assert Order.from_json(json.loads(json.dumps(order.to_json()))) == order
    assert Result.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert Result.from_json(replace(result, gradient=None).to_json()).gradient is None
