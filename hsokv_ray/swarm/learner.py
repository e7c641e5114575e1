"""What a swarm trains: a task makes learners, a learner trains one model at a time under one strategy.

    learner = task.learner()                              # reads its data once; then used for many models
    learner.configure(strategy, seed=7)
    learner.reset()                                       # or learner.load(state of another learner)
    learner.train(100)
    learner.evaluate()["score"]                           # on validation data, higher is better
    state = learner.state()

Any class with these methods will do; nothing has to be inherited.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from hsokv_ray.swarm.space import Space, Strategy


@dataclass(frozen=True)
class State:
    """A model between two orders: all that training on needs, and nothing of who trains it."""

    tensors: dict[str, Tensor]
    """By name, on the CPU: weights, moments of the optimiser, arrays of the memory. Not changed in place by readers."""
    values: dict[str, Any] = field(default_factory=dict)
    """JSON: the step, the memory's entries, the state of random number generators."""


@runtime_checkable
class Learner(Protocol):
    """Trains models of one task, one after the other."""

    def configure(self, strategy: Strategy, *, seed: int) -> None:
        """Train by `strategy` from now on; the model stays.

        Args:
            seed: of the next fresh model, and of what is drawn anew in each order. A model may carry the order in
                which it sees its examples in its state.
        """
        ...

    def reset(self) -> None:
        """Begin a fresh model, at step 0, from the seed of `configure`."""
        ...

    def load(self, state: State) -> None:
        """Take over a model that `state` describes. Raises `CheckpointError`: it does not fit."""
        ...

    def train(self, num_steps: int) -> None:
        """Train that many steps. Raises `RunError`: the loss is no finite number."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Return "score" on validation data, higher is better, and further figures. Changes nothing."""
        ...

    def state(self) -> State:
        """Return the model; later training must not change what was returned."""
        ...

    @property
    def flops(self) -> int:
        """FLOPs of all that this learner did since it was made: training, writing, evaluation."""
        ...


@runtime_checkable
class Task(Protocol):
    """What is to be learned. It travels to the workers, so it holds configuration, not data."""

    @property
    def name(self) -> str:
        """A word for logs and files."""
        ...

    @property
    def space(self) -> Space:
        """The strategies a swarm may choose from."""
        ...

    def learner(self) -> Learner:
        """Make a learner: read the data, build the model. Called once per worker.

        Raises:
            DataError: the data is missing or damaged; says how to get it.
        """
        ...

    def cost(self, strategy: Strategy) -> int:
        """Return the FLOPs of one step under `strategy`, evaluation not included."""
        ...
