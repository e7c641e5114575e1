"""What a memory really did: was the right entry found, how far does the gate open, what is the memory worth.

    hit_rate(output.retrieval, model.memory.slots_of(right_ids))      # share whose nearest entry is the right one
    gate_statistics(output.gate)
    memory_utility(model, labels, input_ids=ids)                      # accuracy with minus without memory

A mean cosine is not a hit rate: it is high for a confident wrong entry.

Shapes: B queries (any leading dimensions in a retrieval), K retrieved entries, R right entries of a query.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hsokv_ray.errors import DataError
from hsokv_ray.memory.key_value import KeyValueMemory
from hsokv_ray.memory.retrieval import Retrieval

if TYPE_CHECKING:
    from hsokv_ray.models.kv_transformer import TransformerWithKV


@dataclass(frozen=True)
class HitRate:
    """How often the right entry was retrieved."""

    top_1: float
    """Share of queries whose nearest entry is a right one."""
    top_k: float
    """Share of queries with a right one among the K retrieved."""
    num_queries: int


@dataclass(frozen=True)
class GateStatistics:
    """How the gate behaved."""

    mean: float
    entropy_bits: float
    """Mean binary entropy: 0 where every gate is 0 or 1, 1 where every gate is one half."""
    num_reads: int


@dataclass(frozen=True)
class MemoryUtility:
    """Accuracy on the same inputs with and without the memory."""

    with_memory: float
    without_memory: float
    num_examples: int

    @property
    def gain(self) -> float:
        """What the memory adds; below 0 where it harms."""
        return self.with_memory - self.without_memory


def hit_rate(retrieval: Retrieval, right: Sequence[int | None] | Tensor) -> HitRate:
    """Return how often a right entry was retrieved, at or above the threshold.

    Args:
        retrieval: of B queries.
        right: slots, one per query or [B, R] where any of several will do; None and -1 match nothing, so a query whose
            entry was evicted is a miss.

    Raises:
        DataError: there are no queries, or not as many as `right`.
    """
    if not isinstance(right, Tensor):
        right = torch.tensor([-1 if slot is None else slot for slot in right], dtype=torch.long)
    found_BK = retrieval.indices.masked_fill(~retrieval.hits, -1).flatten(0, -2)
    right_BR = (right[:, None] if right.ndim == 1 else right).to(found_BK.device)
    if not len(right_BR) or len(right_BR) != len(found_BK):
        raise DataError(f"right: got {len(right_BR)} for {len(found_BK)} queries; one per query, and one at least")
    is_right_BK = ((found_BK[..., None] == right_BR[:, None, :]) & (found_BK[..., None] >= 0)).any(-1)
    top_1, top_k = is_right_BK[:, 0].double().mean(), is_right_BK.any(-1).double().mean()
    return HitRate(float(top_1), float(top_k), len(right_BR))


def gate_statistics(gate: Tensor, mask: Tensor | None = None) -> GateStatistics:
    """Return mean and binary entropy of `gate` in [0, 1], any shape; `mask` bool of its shape leaves reads out.

    Raises:
        DataError: nothing is left.
    """
    kept = (gate if mask is None else gate[mask.bool()]).detach().double().flatten()
    if not kept.numel():
        raise DataError("gate: got no reads; at least one is needed")
    entropy = -(torch.xlogy(kept, kept) + torch.xlogy(1 - kept, 1 - kept)) / math.log(2)
    return GateStatistics(float(kept.mean()), float(entropy.mean()), kept.numel())


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of `labels` [...] that are the largest of `logits` [..., L]. Raises `DataError`: none."""
    if logits.shape[:-1] != labels.shape or not labels.numel():
        raise DataError(f"labels: got {list(labels.shape)} for logits {list(logits.shape)}; one per row, at least one")
    return float((logits.argmax(-1) == labels.to(logits.device)).double().mean())


@torch.no_grad()
def memory_utility(model: "TransformerWithKV", labels: Tensor, **inputs: Any) -> MemoryUtility:
    """Return the accuracy of a classifier with and without its memory, which is not changed.

    Args:
        model: a classifier; put in evaluation meanwhile.
        labels: int [B].
        inputs: what the model's forward takes beside them.
    """
    was_training = model.training
    model.eval()
    try:
        with_memory = accuracy(model(**inputs).logits, labels)
        without = accuracy(model(**inputs, use_memory=False).logits, labels)
    finally:
        model.train(was_training)
    return MemoryUtility(with_memory, without, len(labels))


def memory_bytes(memory: KeyValueMemory) -> int:
    """Return the bytes of the keys and values that are held, without their metadata."""
    config = memory.config
    return len(memory) * (config.key_dim + config.value_dim) * memory.keys.element_size()
