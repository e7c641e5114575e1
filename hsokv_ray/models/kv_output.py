"""What goes into and comes out of a key-value transformer's forward pass, and its loss.

Shapes: B batch, T time, D hidden size, L labels (or the vocabulary).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor
from transformers.utils import ModelOutput

from hsokv_ray.errors import DataError
from hsokv_ray.memory.retrieval import Retrieval
from hsokv_ray.models.configuration_kv_transformer import KVTransformerConfig
from hsokv_ray.models.kv_encoder import States
from hsokv_ray.models.loss import IGNORE_INDEX, shift_left


class Batch(NamedTuple):
    """The encoder's arguments."""

    input_ids: Tensor | None
    attention_mask: Tensor | None
    vectors: Tensor | None


@dataclass
class KVOutput(ModelOutput):
    """What a forward pass gives; for the language model [B, T] stands for [B] in `mixed`, `gate` and `retrieval`."""

    loss: Tensor | None = None
    """Mean cross entropy in nats; None without labels."""
    logits: Tensor | None = None
    """[B, L], or [B, T, L] for the language model; None for head "none"."""
    pooled: Tensor | None = None
    """[B, D] states before the read; None for the language model."""
    hidden: Tensor | None = None
    """[B, T, D] states of the tokens before the read; None for ready vectors."""
    mixed: Tensor | None = None
    """[B, D] states after the read, which the head reads."""
    gate: Tensor | None = None
    """[B] share of the memory, 0 where nothing hit; None where it was not read."""
    retrieval: Retrieval | None = None
    """What the memory answered; None where it was not read."""


def num_outputs(config: KVTransformerConfig) -> int:
    """Return L, 0 where there is no head."""
    if config.head == "none":
        return 0
    return config.vocab_size if config.head == "language_model" else config.num_labels or 0


def targets_of(labels: Tensor, states: States, config: KVTransformerConfig) -> Tensor:
    """Return what each row of the logits should say, [B] or [B, T], IGNORE_INDEX where nothing.

    Args:
        labels: int [B]; for the language model [B, T] token ids, shifted here.

    Raises:
        DataError: there is no head, or the labels do not fit.
    """
    if config.head == "none":
        raise DataError("labels: this model has no head; leave them out, or build it with a head")
    lead, size = list(states.read_with.shape[:-1]), num_outputs(config)
    if list(labels.shape) != lead or labels.is_floating_point():
        raise DataError(f"labels: got {labels.dtype} {list(labels.shape)}; whole numbers {lead} are needed")
    wrong = (labels != IGNORE_INDEX) & ((labels < 0) | (labels >= size))
    if wrong.any():
        raise DataError(f"labels: got {int(labels[wrong][0])}; 0 to {size - 1} (or {IGNORE_INDEX}) is needed")
    if config.head != "language_model":
        return labels.long()
    assert states.mask_BT is not None, "a language model reads tokens"
    return shift_left(labels.long().masked_fill(~states.mask_BT, IGNORE_INDEX))


def losses_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy of each target in fp32 nats, of its shape; 0 at IGNORE_INDEX."""
    rows = F.cross_entropy(
        logits.float().flatten(0, -2), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return rows.view(targets.shape)
