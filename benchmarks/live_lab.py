"""A place where searches train for real: one learner, a budget of steps, and a record of what was found when.

lab = Lab(task, total_steps=300, budget_steps=2400)
score, model = lab.train(strategy, seed=0, begin=0, end=100)
score, model = lab.train(strategy, seed=1, begin=100, end=200, source=model)
lab.found()                                     # test figures of the model that was best on validation data
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from hsokv_ray.swarm.comparison import headline
from hsokv_ray.swarm.execution import Execution
from hsokv_ray.swarm.learner import Learner, State
from hsokv_ray.swarm.messages import Order
from hsokv_ray.swarm.space import Space, Strategy

FAILED = -math.inf


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    validation: float
    test: float
    flops: int
    """Of training and of all evaluations on validation data."""
    steps: int
    curve: list[tuple[int, float]]
    """(steps spent so far, best score on validation data so far), one entry per improvement."""


@dataclass(frozen=True)
class EqualSteps:
    """A task whose steps cost the same under every strategy: the batch is the default one and not searched over."""

    task: Any

    def of_steps(self, total_steps: int) -> "EqualSteps":
        """Return the same task with another length of a whole training."""
        return EqualSteps(dataclasses.replace(self.task, total_steps=total_steps))

    @property
    def space(self) -> Space:
        """The task's, without the batch size."""
        return Space({name: domain for name, domain in self.task.space.domains.items() if name != "batch_size"})

    def learner(self) -> Any:
        """Make the task's learner."""
        return self.task.learner()


class Lab:
    """Trains what a search asks for, and refuses what is beyond the budget.

    Args:
        task: what is learnt.
        total_steps: steps of one whole training, over which schedules are laid.
        budget_steps: steps of everything together.
    """

    def __init__(self, task: EqualSteps, *, total_steps: int, budget_steps: int) -> None:
        task = task.of_steps(total_steps)
        self.space, self.total_steps, self.budget_steps = task.space, total_steps, budget_steps
        self._learner: Learner = task.learner()
        self._execution = Execution(self._learner)
        self._count = 0
        self.steps = 0
        self.best: tuple[float, State | None] = (FAILED, None)
        self.curve: list[tuple[int, float]] = []

    @property
    def remaining(self) -> int:
        """Steps that may still be spent."""
        return self.budget_steps - self.steps

    def train(
        self, strategy: Strategy, *, seed: int, begin: int, end: int, source: State | None = None
    ) -> tuple[float, State | None]:
        """Train from `source` (None: a fresh model) and return score and model; a failure scores -infinity."""
        assert begin < end <= begin + self.remaining, (begin, end, self.remaining)
        self._count += 1
        name = None if source is None else "source"
        order = Order(f"a0.{self._count}", 0, 0, strategy, begin, end, name, seed % 2**32)
        outcome, model = self._execution.run(order, source)
        self.steps += order.num_steps
        score = FAILED if outcome.failure or outcome.score is None else outcome.score
        if not math.isfinite(score):
            return FAILED, None
        if score > self.best[0]:
            self.best = (score, model)
            self.curve.append((self.steps, score))
        return score, model

    def found(self) -> Found:
        """Return the best model's figures; only here is the test data looked at."""
        validation, model = self.best
        assert model is not None, "every training failed"
        flops = self._learner.flops
        self._learner.load(model)
        return Found(validation, headline(self._learner.test())[1], flops, self.steps, self.curve)  # pyright: ignore
