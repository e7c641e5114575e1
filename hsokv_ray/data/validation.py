"""What a loss is measured on and compared with: fixed held-out blocks, and the loss of counting single tokens."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from hsokv_ray.data.batches import Batch, make_batch
from hsokv_ray.data.packing import PartReader
from hsokv_ray.data.plan import ShardPlan
from hsokv_ray.data.sampling import sample_tokens
from hsokv_ray.data.stream import Blocks
from hsokv_ray.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The validation text, read once for a run; its blocks share one token with the next and are never shuffled."""

    blocks: Blocks

    @property
    def num_blocks(self) -> int:
        """Blocks, the last one possibly padded."""
        return len(self.blocks.tokens)

    @property
    def num_targets(self) -> int:
        """Tokens to predict in all blocks."""
        return int(self.blocks.num_targets.sum())

    def batches(self, batch_size: int, *, document_mask: bool, eos_id: int) -> Iterator[Batch]:
        """Yield all blocks in batches of `batch_size`, the last one possibly smaller."""
        for start in range(0, self.num_blocks, batch_size):
            blocks = Blocks(
                tokens=self.blocks.tokens[start : start + batch_size],
                num_targets=self.blocks.num_targets[start : start + batch_size],
                first_index=start,
            )
            yield make_batch(blocks, document_mask=document_mask, eos_id=eos_id)

    def save(self, path: str | Path) -> None:
        """Write the blocks as safetensors; the file is complete or absent."""
        temporary = f"{path}.tmp"
        save_file({"tokens": self.blocks.tokens, "num_targets": self.blocks.num_targets}, temporary)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | Path) -> "HeldOut":
        """Read what `save` wrote. Raises `DataError` where it is missing or damaged."""
        try:
            arrays = load_file(path)
            return cls(blocks=Blocks(tokens=arrays["tokens"], num_targets=arrays["num_targets"], first_index=0))
        except Exception as error:  # safetensors has an exception of its own beside OSError
            raise DataError(f"{path}: not the held-out blocks of a run ({error}); start the run again") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnigramBaseline:
    """The best a model without context can do, in nats per token.

    Attributes:
        entropy: of the tokens of the training sample.
        cross_entropy: of the held-out tokens under the sample's counts, each count raised by one; None without any.
        num_sample_tokens, num_held_out_tokens: tokens each was taken over.
    """

    entropy: float
    cross_entropy: float | None
    num_sample_tokens: int
    num_held_out_tokens: int


def read_held_out(plan: ShardPlan, reader: PartReader, *, seq_len: int, max_tokens: int, pad_id: int = 0) -> HeldOut:
    """Read the first held-out documents in the order of the plan's first pass.

    Args:
        plan: of the validation file, or of the training text.
        reader: yields the held-out documents (`split="val"`, or `"all"` of a validation file).
        seq_len: targets in a full block.
        max_tokens: targets in all blocks, at most.
        pad_id: token that fills up the last block.

    Raises `DataError` where fewer than two tokens are held out.
    """
    tokens = sample_tokens(plan, reader, max_tokens=max_tokens + 1)
    if len(tokens) < 2:
        raise DataError(
            f"{plan.uri}: no document is held out for validation; raise --val-split, give --val-file, or use more text"
        )
    num_blocks = -(-(len(tokens) - 1) // seq_len)
    padded = np.full(num_blocks * seq_len + 1, pad_id, dtype=np.int64)
    padded[: len(tokens)] = tokens
    windows = np.lib.stride_tricks.sliding_window_view(padded, seq_len + 1)[::seq_len]
    num_targets = np.full(num_blocks, seq_len, dtype=np.int64)
    num_targets[-1] = len(tokens) - 1 - (num_blocks - 1) * seq_len
    return HeldOut(blocks=Blocks(tokens=windows.copy(), num_targets=num_targets, first_index=0))


def training_sample(plan: ShardPlan, reader: PartReader, *, seq_len: int, max_tokens: int) -> np.ndarray:
    """Return the first `max_tokens` training tokens, 1-D. Raises `DataError` where all of them do not fill a block."""
    tokens = sample_tokens(plan, reader, max_tokens=max(max_tokens, seq_len + 1))
    if len(tokens) < seq_len + 1:
        raise DataError(
            f"{plan.uri}: the training text has {len(tokens)} tokens, one block needs {seq_len + 1}; "
            "lower --seq-len or give more text"
        )
    return tokens[:max_tokens]


def unigram_baseline(sample: np.ndarray, held_out: HeldOut, *, vocab_size: int) -> UnigramBaseline:
    """Count the tokens of `sample` (1-D) and predict the held-out ones by these counts."""
    counts = np.bincount(sample, minlength=vocab_size).astype(np.float64)
    shares = counts[counts > 0] / counts.sum()
    log_smoothed = np.log((counts + 1) / (counts.sum() + vocab_size))
    targets = held_out.blocks.tokens[:, 1:]
    targets = targets[np.arange(targets.shape[1]) < held_out.blocks.num_targets[:, None]]
    return UnigramBaseline(
        entropy=float(-(shares * np.log(shares)).sum()),
        cross_entropy=float(-log_smoothed[targets].mean()) if len(targets) else None,
        num_sample_tokens=len(sample),
        num_held_out_tokens=len(targets),
    )
