"""What left the local window: kept keys and values with the index that finds blocks of them.

Shapes: K key-value heads, Q queries, B blocks, N tokens, D head size.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from hsokv_ray.longcontext.growable import KVSpan
from hsokv_ray.longcontext.index import BlockIndex, make_index, restore_index, select_blocks


@dataclass(frozen=True)
class IndexKind:
    """Which index a layer has, and where."""

    name: str
    num_heads: int
    head_dim: int
    block_size: int
    device: torch.device
    gpu: int | None

    def make(self) -> BlockIndex:
        """Return an empty index."""
        return make_index(**vars(self))

    def restore(self, state: dict[str, np.ndarray]) -> BlockIndex:
        """Return the index whose `state` this is."""
        return restore_index(self.name, state, **{key: value for key, value in vars(self).items() if key != "name"})


@dataclass
class FarSegment:
    """Whole blocks of tokens, kept in the store's frame, and their index."""

    span: KVSpan
    index: BlockIndex
    kind: "IndexKind"

    @property
    def num_blocks(self) -> int:
        return len(self.span) // self.kind.block_size

    def add(self, keys_KND: torch.Tensor, values_KND: torch.Tensor) -> None:
        """Append whole blocks."""
        self.span.append(keys_KND, values_KND)
        self.index.add(self.span.keys[:, -keys_KND.shape[1] :], self.span.keys)

    def fork(self) -> "FarSegment":
        """Return a segment with the same tokens that grows on its own."""
        return replace(self, span=self.span.fork(), index=self.index.fork())

    def view(self) -> "FarSegment":
        """Return the segment as it is now, for reading only: it does not see what is added later."""
        return replace(self, span=self.span.fork())

    def empty(self) -> "FarSegment":
        """Return a segment for a request's own tokens: few, so codes are trained only once there are many."""
        kind = replace(self.kind, name="auto") if self.kind.name in ("pq", "ivf") else self.kind
        return replace(self, span=self.span.empty_like(), index=kind.make(), kind=kind)


def choose(segments: list[FarSegment], queries_KQD: torch.Tensor, num_blocks: int, scaling: float) -> torch.Tensor:
    """Return the numbers [K, B] of the blocks to fetch, ascending, counted through all segments.

    All of them where they fit into `num_blocks`; else the best ones of each head.
    """
    total = sum(segment.num_blocks for segment in segments)
    if total <= num_blocks:
        return torch.arange(total, device=queries_KQD.device).expand(queries_KQD.shape[0], -1)
    logits = [
        segment.index.block_logits(queries_KQD, segment.span.keys, num_blocks)
        for segment in segments
        if segment.num_blocks
    ]
    return select_blocks(logits[0] if len(logits) == 1 else torch.cat(logits, dim=-1), num_blocks, scaling)


def fetch(segments: list[FarSegment], blocks_KB: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return keys and values [K, B * block, D] of blocks that `choose` numbered."""
    first, *others = [segment for segment in segments if segment.num_blocks]
    num_heads, num_chosen = blocks_KB.shape
    heads_K1 = torch.arange(num_heads, device=blocks_KB.device)[:, None]
    keys, values = first.span.buffer.blocks(heads_K1, blocks_KB.clamp(max=first.num_blocks - 1))
    begin = first.num_blocks
    for segment in others:  # few of the blocks, so they are put in one by one
        end = begin + segment.num_blocks
        head, place = torch.nonzero((blocks_KB >= begin) & (blocks_KB < end), as_tuple=True)
        more_keys, more_values = segment.span.buffer.blocks(head, blocks_KB[head, place] - begin)
        where = (head * num_chosen + place).to(keys.device)
        keys.index_copy_(0, where, more_keys)
        values.index_copy_(0, where, more_values)
        begin = end
    head_dim = first.kind.head_dim
    return keys.view(num_heads, -1, head_dim), values.view(num_heads, -1, head_dim)
