"""FLOPs of a lesson: writing the support, reading with the queries, and the loss on keys, forward and backward.

Matrix products alone, as in `hsokv_ray.models.kv_flops`; the same numbers as torch's FLOP counter.
"""

from copy import copy
from typing import TYPE_CHECKING, Literal

from hsokv_ray.memory.config import KeyValueConfig
from hsokv_ray.models.configuration_kv_transformer import KVTransformerConfig
from hsokv_ray.models.kv_flops import GATE_HIDDEN_SIZE, forward_flops, step_flops, write_flops
from hsokv_ray.models.kv_writing import WritePolicy

if TYPE_CHECKING:
    from hsokv_ray.swarm.learners.lessons import Lesson


def writing_flops(
    config: KVTransformerConfig, policy: WritePolicy, num_examples: int, num_tokens: int, num_entries: int
) -> int:
    """Return the FLOPs of one `TransformerWithKV.write` of a classifier with live keys.

    Args:
        num_examples: candidates, whether they are chosen or not.
        num_tokens: of each, padding included.
        num_entries: in the memory before; surprise and novelty look at them.
    """
    if policy.name == "surprise":  # what the model would have said
        return forward_flops(config, num_examples, num_tokens, num_entries)
    flops = write_flops(config, num_examples, num_tokens)
    if policy.name == "always":
        return flops
    memory = KeyValueConfig(**(config.memory or {}))  # the nearest entry, and its value
    return flops + 2 * num_examples * (max(num_entries, 1) * memory.key_dim + memory.value_dim)


def asking_flops(
    config: KVTransformerConfig, num_queries: int, num_tokens: int, num_entries: int | None, *, forced_gate: bool
) -> int:
    """Return the FLOPs of a classifier's forward pass.

    Args:
        num_entries: in the memory; None where it is not read.
        forced_gate: whether the gate is given, and so not computed.
    """
    if num_entries is None:
        return forward_flops(_without(config, head=config.head), num_queries, num_tokens)
    flops = forward_flops(config, num_queries, num_tokens, num_entries)
    if forced_gate:
        flops -= 2 * num_queries * GATE_HIDDEN_SIZE * (2 * config.hidden_size + 1)
    return flops


def retrieval_loss_flops(config: KVTransformerConfig, num_support: int, num_tokens: int, num_queries: int) -> int:
    """Return the FLOPs of `retrieval_loss`, forward and backward: keys of the support, and of the queries' states."""
    key_dim = KeyValueConfig(**(config.memory or {})).key_dim
    projections = 2 * (num_support + num_queries) * config.hidden_size * key_dim
    scores = 2 * num_queries * num_support * key_dim
    return step_flops(_without(config, head="none"), num_support, num_tokens) + 3 * (projections + scores)


def lesson_flops(
    config: KVTransformerConfig, lesson: "Lesson", policy: WritePolicy, num_entries: int, retrieval_weight: float
) -> int:
    """Return the FLOPs of `lesson_loss` and its backward pass.

    Args:
        num_entries: that the policy let into the memory.
        retrieval_weight: 0 leaves out the loss on keys.
    """
    support, queries = lesson.support, lesson.queries
    flops = step_flops(config, len(queries), queries.num_tokens, num_entries)
    if config.memory is None:
        return flops
    flops += writing_flops(config, policy, len(support), support.num_tokens, 0)
    if retrieval_weight:
        flops += retrieval_loss_flops(config, len(support), support.num_tokens, len(queries))
    return flops


def _without(
    config: KVTransformerConfig, *, head: Literal["classification", "language_model", "none"]
) -> KVTransformerConfig:
    """Return `config` without its memory, and with that head."""
    changed = copy(config)
    changed.memory, changed.head = None, head
    return changed
