"""A task whose fresh models begin from a saved one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsokv_ray.errors import CheckpointError, ConfigError
from hsokv_ray.swarm.execution import Closes, HearsOrders
from hsokv_ray.swarm.learner import Learner, Task
from hsokv_ray.swarm.messages import Order
from hsokv_ray.swarm.space import Space, Strategy


@dataclass(frozen=True)
class PretrainedTask:
    """`task`, whose models begin with the weights and the memory in `folder`.

    Raises:
        CheckpointError: `folder` is none.
        ConfigError: learners of the task cannot load a saved model.
    """

    task: Task
    folder: str

    def __post_init__(self) -> None:
        if not Path(self.folder).is_dir():
            raise CheckpointError(f"--load-pretrained: {self.folder!r} is no folder; give one of --save-pretrained")

    @property
    def name(self) -> str:
        """The task's own."""
        return self.task.name

    @property
    def space(self) -> Space:
        """The task's own."""
        return self.task.space

    def learner(self) -> Learner:
        """Make a learner whose `reset` loads the folder."""
        learner = self.task.learner()
        if not hasattr(learner, "load_pretrained"):
            raise ConfigError(f"--load-pretrained: {type(learner).__name__} cannot load a saved model; leave it out")
        return PretrainedLearner(learner, self.folder)  # pyright: ignore[reportReturnType]

    def cost(self, strategy: Strategy) -> int:
        """The task's own."""
        return self.task.cost(strategy)


class PretrainedLearner:
    """A learner that differs from `learner` in what a fresh model is.

    Args:
        learner: has `load_pretrained`.
        folder: what that reads.
    """

    def __init__(self, learner: Any, folder: str) -> None:
        self.learner, self.folder = learner, folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)

    # Protocols are checked without `__getattr__` from Python 3.12 on, so what they ask for is passed on by name.
    def begins(self, order: Order) -> None:
        """Let the learner hear which order follows, where it wants to."""
        if isinstance(self.learner, HearsOrders):
            self.learner.begins(order)

    def close(self) -> None:
        """Let the learner give back what it holds, where it holds something."""
        if isinstance(self.learner, Closes):
            self.learner.close()

    def reset(self) -> None:
        """Begin with the saved model, at step 0."""
        self.learner.reset()
        self.learner.load_pretrained(self.folder)
