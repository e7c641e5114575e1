"""One manager that copies is population based training, step by step, whatever the scores and the order of arrival.

The reference follows Ray Tune 2.60's PopulationBasedTraining (asynchronous): `_quantiles`, `_explore`,
`on_trial_result` and `_exploit`, and draws from one generator. A trial has a checkpoint unless it has just taken over
another's (Ray also discards those of trials in the middle, to save disk).
"""

import math
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.messages import Outcome
from hsokv_ray.swarm.space import Choice, Float, Int, LogFloat, Space
from hsokv_ray.swarm.swarm import Swarm

SPACE = Space({"lr": LogFloat(1e-5, 1), "kind": Choice(("a", "b", "c")), "width": Int(1, 64), "rate": Float(0.0, 1.0)})


@dataclass
class Trial:
    config: dict[str, Any]
    step: int = 0
    score: float | None = None
    checkpoint: str | None = None
    source: str | None = None
    finished: bool = False


@dataclass
class PlainPBT:
    """Trials in a list; no shortcuts."""

    num_trials: int
    interval: int
    max_steps: int
    seed: int
    quantile: float = 0.25
    trials: list[Trial] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([self.seed, 0])
        self.trials = [Trial(self.sample()) for _ in range(self.num_trials)]

    def sample(self) -> dict[str, Any]:
        return {name: domain.sample(self.rng) for name, domain in SPACE.domains.items()}

    def quantiles(self) -> tuple[list[Trial], list[Trial]]:
        trials = [trial for trial in self.trials if trial.score is not None and not trial.finished]
        trials.sort(key=lambda trial: trial.score)
        if len(trials) <= 1:
            return [], []
        num = math.ceil(len(trials) * self.quantile)
        if num > len(trials) / 2:
            num = math.floor(len(trials) / 2)
        return trials[:num], trials[-num:]

    def explore(self, config: dict[str, Any]) -> dict[str, Any]:
        new = {}
        for name, domain in SPACE.domains.items():
            if self.rng.random() < 0.25:
                new[name] = domain.sample(self.rng)
            elif isinstance(domain, Choice):
                shift = [-1, 1][int(self.rng.integers(2))]
                new[name] = domain.options[min(max(domain.options.index(config[name]) + shift, 0), 2)]
            else:
                value = config[name] * (0.8, 1.2)[int(self.rng.integers(2))]
                value = int(round(value)) if isinstance(domain, Int) else value
                new[name] = min(max(value, domain.low), domain.high)
        return new

    def result(self, index: int, end: int, score: float, checkpoint: str) -> None:
        trial = self.trials[index]
        trial.step, trial.checkpoint, trial.source = end, checkpoint, checkpoint
        if end >= self.max_steps:
            trial.finished = True
            return
        trial.score = score
        lower, upper = self.quantiles()
        if any(trial is each for each in lower):
            donor = upper[int(self.rng.integers(len(upper)))]
            if donor.checkpoint is None:
                return
            trial.config = self.explore(donor.config)
            trial.step, trial.checkpoint, trial.source = donor.step, None, donor.checkpoint


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num=st.integers(1, 12),
    interval=st.integers(1, 7),
    distinct=st.sampled_from([2, 5, 10**9]),
)
def test_one_manager_that_copies_is_population_based_training_step_by_step(
    seed: int, num: int, interval: int, distinct: int
) -> None:
    config = SwarmConfig(
        num_managers=1, agents_per_manager=num, interval_steps=interval, max_steps=20, exploit="copy", min_diversity=0
    )
    swarm, plain = Swarm(SPACE, config, seed=seed), PlainPBT(num, interval, 20, seed)
    world = random.Random(seed)
    running = swarm.ask()
    assert [order.strategy for order in running] == [trial.config for trial in plain.trials]
    for _ in range(2000):
        if not running:
            break
        order = running.pop(world.randrange(len(running)))
        score = float(world.randrange(distinct))
        plain.result(order.agent, order.end_step, score, order.order_id)
        following = swarm.tell(Outcome(order.order_id, score, 1, 0.0))
        trial = plain.trials[order.agent]
        if trial.finished:
            assert following == []
            continue
        [new] = following
        assert (new.agent, new.strategy, new.begin_step, new.source) == (
            order.agent, trial.config, trial.step, trial.source,
        )  # fmt: skip
        assert new.end_step == min(trial.step + interval, 20)
        running.append(new)
    assert swarm.is_finished == all(trial.finished for trial in plain.trials)
