"""Blocks to model inputs."""

import hashlib
from dataclasses import dataclass

import numpy as np

from hsokv_ray.data.stream import Blocks

IGNORED = -100
"""Label of positions without a target, as torch's cross entropy has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one forward pass takes; B blocks of T tokens.

    Attributes:
        input_ids: int64 [B, T].
        labels: int64 [B, T], the next token at each position (already shifted), -100 where there is none.
        position_ids: int64 [B, T]; they restart at each document where documents are masked from one another.
        num_targets: labels that are not -100.
        first_index: global index of the first block.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    num_targets: int
    first_index: int

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """The three arrays by the names models take."""
        return {"input_ids": self.input_ids, "labels": self.labels, "position_ids": self.position_ids}

    @property
    def digest(self) -> str:
        """Sixteen hex digits that tell this batch's tokens and labels from any other's."""
        state = hashlib.blake2b(self.input_ids.tobytes(), digest_size=8)
        state.update(self.labels.tobytes())
        return state.hexdigest()


def make_batch(blocks: Blocks, *, document_mask: bool, eos_id: int) -> Batch:
    """Turn blocks into model inputs; with `document_mask`, positions restart after each end-of-text token."""
    input_ids, labels = blocks.tokens[:, :-1], blocks.tokens[:, 1:]
    seq_len = labels.shape[1]
    if (blocks.num_targets < seq_len).any():
        labels = np.where(np.arange(seq_len) < blocks.num_targets[:, None], labels, IGNORED)
    return Batch(
        input_ids=input_ids,
        labels=labels,
        position_ids=document_positions(input_ids, eos_id=eos_id) if document_mask else _positions(input_ids),
        num_targets=int(blocks.num_targets.sum()),
        first_index=blocks.first_index,
    )


def document_positions(tokens: np.ndarray, *, eos_id: int) -> np.ndarray:
    """Return for `tokens` [B, T] the distance of each from the start of its document in the row; int64 [B, T]."""
    index = np.arange(tokens.shape[1])
    starts = np.zeros(tokens.shape, dtype=np.int64)
    starts[:, 1:] = np.where(tokens[:, :-1] == eos_id, index[1:], 0)
    return index - np.maximum.accumulate(starts, axis=1)


def _positions(input_ids: np.ndarray) -> np.ndarray:
    return np.tile(np.arange(input_ids.shape[1]), (len(input_ids), 1))
