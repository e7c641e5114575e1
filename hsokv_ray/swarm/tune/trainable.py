"""Any task of the swarm as a class Trainable of Ray Tune.

    tuner = tune.Tuner(
        task_trainable(RareWordTask(), steps=10),
        tune_config=tune.TuneConfig(metric="score", mode="max", search_alg=SwarmSearcher(task.space, config), ...,
                                    scheduler=SwarmScheduler(), num_samples=-1, reuse_actors=True),
    )

One iteration trains `steps` steps and evaluates. A reused actor keeps its learner, so that data is read once per
process; checkpoints are safetensors with JSON in the header.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from ray import tune

from hsokv_ray.errors import CheckpointError, ConfigError
from hsokv_ray.swarm.execution import Closes
from hsokv_ray.swarm.learner import Task
from hsokv_ray.swarm.sharing import shares
from hsokv_ray.swarm.states import pack, unpack

STATE_FILE = "state.safetensors"


class TaskTrainable(tune.Trainable):
    """Trains what a `Task` describes; made by `task_trainable`. Reports what `evaluate` returns, and "flops"."""

    def setup(self, config: dict[str, Any], task: Task, steps: int, seed: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make the learner: the data is read here, once per process."""
        self._task, self._steps, self._seed = task, steps, seed
        self._learner = task.learner()
        self._has_model = False

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in this process."""
        self._has_model = False
        return True

    def step(self) -> dict[str, Any]:
        """Train and evaluate. Raises `RunError`: the loss is no finite number."""
        before = self._learner.flops
        if not self._has_model:
            self._configure(0)
            self._learner.reset()
            self._has_model = True
        self._learner.train(self._steps)
        metrics = dict(self._learner.evaluate())
        return {**metrics, "flops": self._learner.flops - before}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the model."""
        (Path(checkpoint_dir) / STATE_FILE).write_bytes(pack(self._learner.state()))

    def load_checkpoint(self, checkpoint: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take over a model, its own or another trial's. Raises `CheckpointError`: it is missing, damaged or no fit."""
        path = Path(checkpoint) / STATE_FILE
        if not path.is_file():
            raise CheckpointError(f"{checkpoint} holds no {STATE_FILE}; give a checkpoint that TaskTrainable wrote")
        self._configure(self.iteration)
        self._learner.load(unpack(path.read_bytes()))
        self._has_model = True

    def cleanup(self) -> None:
        """Let the learner give back what it holds."""
        if isinstance(self._learner, Closes):
            self._learner.close()

    def _configure(self, iteration: int) -> None:
        strategy = {name: self.config[name] for name in self._task.space.domains}
        self._learner.configure(strategy, seed=_seed(self._seed, strategy, iteration))


def task_trainable(task: Task, *, steps: int = 1, seed: int = 0) -> type[tune.Trainable]:
    """Return the Trainable of `task`.

    Args:
        task: travels to the workers, so it holds configuration, not data.
        steps: training steps of one iteration; a `SwarmConfig` beside it counts iterations.
        seed: with strategy and iteration, decides everything random.

    Raises:
        ConfigError: agents of the task share a memory. That needs an agent's orders to be numbered upwards, and the
            iterations of a trial fall back where it takes over another's model.
    """
    if shares(task):
        raise ConfigError("task_trainable: Tune's trials cannot share a memory; search by hsokv_ray.swarm.search")
    return tune.with_parameters(TaskTrainable, task=task, steps=steps, seed=seed)


def _seed(seed: int, strategy: dict[str, Any], iteration: int) -> int:
    """Return a seed in [0, 2**32) that differs between strategies, and between takers of one state."""
    text = json.dumps([seed, strategy, iteration], sort_keys=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
