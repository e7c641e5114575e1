"""One step over a stream of images, in each variant.

Shapes: B images shown, R rehearsed, K key_dim, L labels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hsokv_ray.errors import RunError
from hsokv_ray.memory.retrieval import Retrieval
from hsokv_ray.models.kv_writing import choose
from hsokv_ray.swarm.learners.cifar_model import CifarModel
from hsokv_ray.swarm.learners.class_memory import ClassMemory
from hsokv_ray.swarm.learners.recipe import Recipe
from hsokv_ray.swarm.learners.replay import ImageReplay
from hsokv_ray.swarm.learners.stream import Shown

_TINY = 1e-6
"""Added to the memory's votes before the logarithm: a class without a vote has a finite loss."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of a step."""

    images: np.ndarray
    """uint8 [B, H, W, C]."""
    keys: Callable[[np.ndarray | None], Tensor]
    """The keys [B (+ R), K] of the images and of further ones, with a gradient where the extractor learns."""
    labels_B: Tensor
    shown: Shown


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model says to keys."""

    logits_BL: Tensor
    """Of the memory alone: the logarithm of its votes."""
    gate_B: Tensor | None = None
    retrieval: Retrieval | None = None


def answer(
    model: CifarModel,
    keys_BK: Tensor,
    top_k: int,
    *,
    but: list[int | None] | None = None,
    use_memory: bool = True,
) -> Answer:
    """Return what the model says.

    Args:
        but: see `ClassMemory.read`.
        use_memory: False: the net answers alone, as at gate 0.
    """
    if model.memory is None or not use_memory:
        return Answer(model.net(keys_BK, None).logits_BL)
    retrieval = model.memory.read(keys_BK, top_k, but=but or ())
    if model.optimizer is None:
        return Answer((retrieval.values + _TINY).log(), None, retrieval)
    scored = model.net(keys_BK, retrieval)
    return Answer(scored.logits_BL, scored.gate_B, retrieval)


def take_step(model: CifarModel, recipe: Recipe, batch: Batch) -> int:
    """Learn and keep what the variant does; return how many examples were rehearsed.

    Raises:
        RunError: the loss is no finite number.
    """
    if model.memory is not None:
        return _step_with_memory(model, model.memory, recipe, batch)
    if model.replay is not None:
        return _step_with_replay(model, model.replay, recipe, batch)
    _descend(model, recipe, F.cross_entropy(model.net(batch.keys(None), None).logits_BL, batch.labels_B))
    return 0


def _step_with_replay(model: CifarModel, replay: ImageReplay, recipe: Recipe, batch: Batch) -> int:
    images, old_R = replay.sample(len(batch.labels_B), model.rng)
    labels = torch.cat([batch.labels_B, torch.from_numpy(old_R)])
    keys = batch.keys(images if len(old_R) else None)
    _descend(model, recipe, F.cross_entropy(model.net(keys, None).logits_BL, labels))
    new = batch.shown.is_new_B
    replay.offer(batch.images[new], batch.labels_B.numpy()[new], model.rng)
    return len(old_R)


def _step_with_memory(model: CifarModel, memory: ClassMemory, recipe: Recipe, batch: Batch) -> int:
    num, ids = len(batch.labels_B), batch.shown.ids
    slots = memory.sample(num, model.rng) if model.optimizer is not None else []
    own_BK = batch.keys(None)
    keys = torch.cat([own_BK, memory.entries.keys[slots]])
    labels = torch.cat([batch.labels_B, memory.labels()[slots]])
    # Nobody finds itself: the gate would learn to trust what no other image will ever find.
    said = None
    if model.optimizer is not None or recipe.policy.name != "always":
        said = answer(model, keys, recipe.top_k, but=[*memory.slots_of(ids), *slots])
    if model.optimizer is not None:
        assert said is not None, "a net was asked"
        _descend(model, recipe, F.cross_entropy(said.logits_BL, labels))
    _write(model, memory, recipe, batch, own_BK.detach(), said)
    return len(slots)


def _write(
    model: CifarModel, memory: ClassMemory, recipe: Recipe, batch: Batch, keys_BK: Tensor, said: Answer | None
) -> None:
    """Offer what is new and passes the policy, and renew the keys of what is held, made before this step's update."""
    num, ids = len(batch.labels_B), batch.shown.ids
    losses_B = nearest_B = None
    if said is not None and said.retrieval is not None:
        losses_B = F.cross_entropy(said.logits_BL[:num].detach(), batch.labels_B, reduction="none")
        nearest_B = said.retrieval.scores[:num, 0].detach()
    chosen_B = choose(recipe.policy, num, losses_N=losses_B, nearest_N=nearest_B).numpy()
    held = [row for row, slot in enumerate(memory.slots_of(ids)) if slot is not None]
    if model.task.key_features == "live":
        memory.write(keys_BK, batch.labels_B, ids, held)
    rows = np.flatnonzero(chosen_B & batch.shown.is_new_B)
    memory.offer(keys_BK[rows], batch.labels_B[rows], [ids[row] for row in rows], model.rng)


def _descend(model: CifarModel, recipe: Recipe, loss: Tensor) -> None:
    if not torch.isfinite(loss):
        raise RunError(f"step {model.step}: the loss is {loss.item()}; train with a lower learning rate")
    assert model.optimizer is not None, "what descends has an optimiser"
    recipe.set_rate(model.optimizer, model.task_step)
    model.optimizer.zero_grad()
    loss.backward()
    model.optimizer.step()
