"""What all learners of the key-value classifier share: one model at a time, its optimiser, its memory, its FLOPs.

Randomness is counted, not carried: everything random in step n comes from (seed, n). So a state needs no generators,
and a model that was loaded trains on exactly as one that was never put away.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hsokv_ray.errors import CheckpointError, DataError, RunError
from hsokv_ray.models import BaselineTransformer, KVTransformerConfig, TransformerWithKV
from hsokv_ray.models.kv_folder import Saves, SavesItself
from hsokv_ray.swarm.learner import State
from hsokv_ray.swarm.learners import packing
from hsokv_ray.swarm.learners.lessons import Lesson, lesson_loss
from hsokv_ray.swarm.learners.recipe import Recipe
from hsokv_ray.swarm.learners.saved_model import take_over
from hsokv_ray.swarm.space import Strategy

MODEL = "model"


class KVLearner(ABC):
    """A learner of `hsokv_ray.swarm.learner`; tasks say what a lesson is and how it is measured.

    Args:
        total_steps: of a whole training.
        use_kv: False: a model without a memory.
        retrieval_weight: of the loss on keys.
    """

    def __init__(self, *, total_steps: int, use_kv: bool, retrieval_weight: float) -> None:
        self.use_kv = use_kv
        self.retrieval_weight = retrieval_weight
        self.step = 0
        """Steps that the model has trained."""
        self._total_steps = total_steps
        self._flops = 0
        self._seed = 0
        self._recipe: Recipe | None = None
        self._model: TransformerWithKV | None = None
        self._optimizer: torch.optim.Optimizer | None = None

    @abstractmethod
    def model_config(self, recipe: Recipe) -> KVTransformerConfig:
        """Return the model that `recipe` begins with."""

    @abstractmethod
    def lessons(self, recipe: Recipe, rng: np.random.Generator) -> list[Lesson]:
        """Return what one step is trained on: `recipe.batch_size` queries in one or more lessons."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Return "score" and further figures, of validation data. Changes neither weights nor memory."""

    def configure(self, strategy: Strategy, *, seed: int) -> None:
        """Train by `strategy` from now on; see `Learner`. Raises `ConfigError`: no recipe has it."""
        if self._recipe is None or self._optimizer is None:
            self._recipe = Recipe(strategy, self._total_steps)
        else:
            self._optimizer = self._recipe.take_over(self._optimizer, strategy)
        self._seed = seed
        if self._model is not None:
            _set_top_k(self._model, self._recipe.top_k)

    def reset(self) -> None:
        """Begin a fresh model, at step 0."""
        with _seeded(self._seed):
            self._build()
        self.step = 0
        self.after_training()

    def load(self, state: State) -> None:
        """Take over a model. Raises `CheckpointError`: it is another task's or damaged."""
        values = state.values
        if missing := {"step", "optimizer", "memory"} - values.keys():
            raise CheckpointError(f"state: {', '.join(sorted(missing))} is missing; give a state of the same task")
        with _seeded(self._seed):
            model, optimizer = self._build()
        packing.load_module(MODEL, model, state.tensors)
        if values["optimizer"] == self.recipe.kind:  # moments of another kind mean nothing
            packing.load_optimizer(optimizer, state.tensors)
        if model.memory is not None and values["memory"] is not None:
            model.memory = packing.load_memory(state.tensors, values["memory"])
        _set_top_k(model, self.recipe.top_k)
        self.step = int(values["step"])

    def train(self, num_steps: int) -> None:
        """Train. Raises `RunError`: the loss or a weight is no finite number; the model is then spoilt."""
        self.model.train()
        for _ in range(num_steps):
            self._train_step()
        self.after_training()

    def after_training(self) -> None:
        """Bring up to date what hangs on the weights; nothing, unless a task has such a thing."""
        return

    def state(self) -> State:
        """Return a copy of the model: weights, moments, memory, and its step."""
        model, memory = self.model, self.model.memory
        tensors = packing.module_tensors(MODEL, model) | packing.optimizer_tensors(self._required_optimizer())
        values: dict[str, Any] = {"step": self.step, "optimizer": self.recipe.kind, "memory": None}
        if memory is not None:
            tensors |= packing.memory_tensors(memory)
            values["memory"] = packing.memory_values(memory)
        return State(tensors, values)

    def load_pretrained(self, folder: str | Path) -> None:
        """Begin with the weights and the memory that `save` wrote. Raises `CheckpointError`: they do not fit."""
        take_over(self.model, folder)

    def save(self, folder: str | Path) -> None:
        """Write the model, its memory and its tokenizer to a folder that `from_pretrained` reads."""
        self.model.save_pretrained(str(folder), tokenizer=self.tokenizer)

    @property
    def tokenizer(self) -> SavesItself | Saves | None:
        """What is saved beside the model; None: nothing, where texts become vectors elsewhere."""
        return None

    @property
    def flops(self) -> int:
        """FLOPs since the learner was made: training, writing, evaluation."""
        return self._flops

    @property
    def model(self) -> TransformerWithKV:
        """The model. Raises `RunError`: there is none yet."""
        if self._model is None:
            raise RunError("learner: it has no model yet; call configure(), then reset() or load()")
        return self._model

    @property
    def recipe(self) -> Recipe:
        """The strategy, read. Raises `RunError`: there is none yet."""
        if self._recipe is None:
            raise RunError("learner: it has no strategy yet; call configure()")
        return self._recipe

    def charge(self, flops: int) -> None:
        """Count FLOPs."""
        self._flops += flops

    def _build(self) -> tuple[TransformerWithKV, torch.optim.Optimizer]:
        config = self.model_config(self.recipe)
        self._model = TransformerWithKV(config) if self.use_kv else BaselineTransformer(config)
        self._optimizer = self.recipe.optimizer(self._model.parameters())
        return self._model, self._optimizer

    def _train_step(self) -> None:
        optimizer, rng = self._required_optimizer(), np.random.default_rng([self._seed, self.step])
        self.recipe.set_rate(optimizer, self.step)
        optimizer.zero_grad(set_to_none=True)
        lessons = self.lessons(self.recipe, rng)
        with _seeded(int(rng.integers(2**63))):  # dropout
            loss = self._backward(lessons)
        if not math.isfinite(loss):
            raise RunError(f"step {self.step}: the loss is {loss}; lower the learning rate")
        optimizer.step()
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            raise RunError(f"step {self.step}: a weight is no finite number any more; lower the learning rate")
        self.step += 1

    def _backward(self, lessons: list[Lesson]) -> float:
        total, whole = sum(len(lesson.queries) for lesson in lessons), 0.0
        for lesson in lessons:
            try:
                loss, flops = lesson_loss(
                    self.model,
                    lesson,
                    self.recipe.policy,
                    retrieval_weight=self.retrieval_weight,
                    encoder_id=f"step {self.step}",
                )
            except DataError as error:  # the data was looked at when it was read: keys are no finite numbers
                raise RunError(f"step {self.step}: {error}; lower the learning rate") from None
            self.charge(flops)
            loss = loss * (len(lesson.queries) / total)
            loss.backward()
            whole += loss.item()
        return whole

    def _required_optimizer(self) -> torch.optim.Optimizer:
        assert self.model is not None, "a model comes with its optimiser"
        assert self._optimizer is not None, "a model comes with its optimiser"
        return self._optimizer


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Give torch's own generator a seed inside the block: initialisation and dropout draw from no other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _set_top_k(model: TransformerWithKV, top_k: int) -> None:
    if model.memory is None:
        return
    model.memory.config = model.memory.config.model_copy(update={"top_k": top_k})
    model.config.memory = model.memory.config.model_dump(mode="json")
