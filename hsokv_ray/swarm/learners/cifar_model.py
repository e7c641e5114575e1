"""The model of Split-CIFAR-10 that a learner has in hand: all that is trained, kept, drawn and counted."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hsokv_ray.swarm.learner import State
from hsokv_ray.swarm.learners import packing
from hsokv_ray.swarm.learners.class_memory import ClassMemory
from hsokv_ray.swarm.learners.recipe import Recipe
from hsokv_ray.swarm.learners.replay import ImageReplay, generator_of, generator_state
from hsokv_ray.swarm.learners.small_net import SmallNet

if TYPE_CHECKING:
    from hsokv_ray.swarm.learners.cifar import CifarTask

_NET = "net"


class CifarModel:
    """A fresh model, before its first step.

    Args:
        task: variant and sizes.
        recipe: makes the optimiser; its `gate_init` is the gate's.
        seed: decides weights, the order of images and what is kept of them.
        image_shape: [height, width, channels] of the images a replay keeps.
    """

    def __init__(self, task: "CifarTask", recipe: Recipe, seed: int, image_shape: tuple[int, ...]) -> None:
        self.task, self.seed = task, seed
        self.rng = np.random.default_rng((seed, 1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = SmallNet(task.net_config(recipe.gate_init))
        learns = task.variant != "kv_only"
        self.optimizer = recipe.optimizer(self.net.parameters()) if learns else None
        self.memory: ClassMemory | None = None
        self.replay: ImageReplay | None = None
        if task.has_memory:
            threshold, num_labels = task.confidence_threshold, self.net.config.num_labels
            self.memory = ClassMemory(task.memory_bytes, task.key_dim, num_labels, threshold=threshold)
        if task.variant == "experience_replay":
            self.replay = ImageReplay(task.memory_bytes, image_shape)
        self.step = 0
        """Steps trained."""
        self.task_step = 0
        """Steps trained of the task that the last step belongs to: the learning rate's schedule begins with each."""
        self.num_shown = 0
        """Images shown of the task that the last step belongs to."""
        self.rows: dict[str, list[dict[str, list[float]]]] = {"validation": [], "test": []}
        """Accuracies before the first step and at the end of each task."""

    @property
    def num_entries(self) -> int:
        """Entries of the memory."""
        return 0 if self.memory is None else len(self.memory)

    @property
    def memory_bytes(self) -> int:
        """Bytes of what is kept of the stream, besides weights."""
        return sum(kept.num_bytes for kept in (self.memory, self.replay) if kept is not None)

    def state(self) -> State:
        """Return everything, copied."""
        tensors = packing.module_tensors(_NET, self.net)
        values: dict[str, Any] = {
            "task": self.task.name,
            "step": self.step,
            "task_step": self.task_step,
            "num_shown": self.num_shown,
            "seed": self.seed,
            "rng": generator_state(self.rng),
            "rows": {split: [dict(row) for row in rows] for split, rows in self.rows.items()},
            "optimizer": None if self.optimizer is None else type(self.optimizer).__name__,
        }
        if self.optimizer is not None:
            tensors |= packing.optimizer_tensors(self.optimizer)
        if self.memory is not None:
            tensors |= self.memory.tensors()
            values["memory"] = self.memory.values()
        if self.replay is not None:
            tensors |= self.replay.tensors()
            values["replay"] = {"num_seen": self.replay.reservoir.num_seen}
        return State(tensors, values)

    def load(self, state: State) -> None:
        """Become what `state` describes; of an optimiser of another kind the moments are left behind.

        Raises:
            CheckpointError: it is of another task, or damaged.
        """
        tensors, values = state.tensors, state.values
        kept = [name for name, part in (("memory", self.memory), ("replay", self.replay)) if part is not None]
        needed = ("step", "task_step", "num_shown", "seed", "rng", "rows", "optimizer", *kept)
        packing.check_values(values, task=self.task.name, needed=needed)
        packing.load_module(_NET, self.net, tensors)
        if self.optimizer is not None and values["optimizer"] == type(self.optimizer).__name__:
            packing.load_optimizer(self.optimizer, tensors)
        if self.memory is not None:
            self.memory.load(tensors, values["memory"])
        if self.replay is not None:
            self.replay.load(tensors, values["replay"]["num_seen"])
        self.step, self.task_step, self.num_shown = (values[name] for name in ("step", "task_step", "num_shown"))
        self.seed = values["seed"]
        self.rng = generator_of(values["rng"])
        self.rows = {split: [dict(row) for row in rows] for split, rows in values["rows"].items()}
