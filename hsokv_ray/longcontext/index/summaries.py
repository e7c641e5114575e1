"""One summary per block instead of its keys: small and fast, and blind to a single token that stands out.

Shapes: K key-value heads, Q queries per head, n new tokens, D head dim, B blocks, F numbers of a summary.
"""

from abc import abstractmethod
from copy import copy
from typing import Self

import numpy as np
import torch

from hsokv_ray.errors import StoreError
from hsokv_ray.longcontext.index.base import BlockIndex, count_new_tokens, counts, restored_count

FIRST_CAPACITY = 64  # blocks


class SummaryIndex(BlockIndex):
    """Scores a block by the product of a query's and the block's features; a subclass says which.

    Summaries lie in a buffer that grows by a quarter. A fork reads the buffer up to where it was forked and moves to
    one of its own before it appends, so that the two never write to the same place.
    """

    features_per_dim: int

    def __init__(self, *, num_heads: int, head_dim: int, block_size: int, device: torch.device | str = "cpu") -> None:
        self.num_heads, self.head_dim, self.block_size = num_heads, head_dim, block_size
        self.num_tokens = 0
        self._buffer_KBF = torch.empty(num_heads, 0, head_dim * self.features_per_dim, device=device)
        self._owns_buffer = True

    @abstractmethod
    def of_blocks(self, keys_KBSD: torch.Tensor) -> torch.Tensor:
        """Return the features [K, B, F] of blocks of float32 keys [K, B, S, D]."""
        ...

    @abstractmethod
    def of_queries(self, queries_KQD: torch.Tensor) -> torch.Tensor:
        """Return the features [K, Q, F] of float32 queries."""
        ...

    @property
    def num_blocks(self) -> int:
        return self.num_tokens // self.block_size

    @property
    def nbytes(self) -> int:
        return self._buffer_KBF.nbytes

    @torch.no_grad()
    def add(self, keys_KND: torch.Tensor, all_keys_KND: torch.Tensor) -> None:
        num_new = count_new_tokens(
            keys_KND, num_heads=self.num_heads, head_dim=self.head_dim, block_size=self.block_size
        )
        new_KBF = self.of_blocks(keys_KND.float().unflatten(1, (num_new // self.block_size, self.block_size)))
        end = self.num_blocks + new_KBF.shape[1]
        if end > self._buffer_KBF.shape[1] or not self._owns_buffer:
            self._move(max(end, FIRST_CAPACITY, end * 5 // 4))
        self._buffer_KBF[:, self.num_blocks : end] = new_KBF
        self.num_tokens += num_new

    @torch.no_grad()
    def block_logits(self, queries_KQD: torch.Tensor, keys_KND: torch.Tensor, num_blocks: int) -> torch.Tensor:
        summaries_KBF = self._buffer_KBF[:, : keys_KND.shape[1] // self.block_size]
        features_KQF = self.of_queries(queries_KQD.to(summaries_KBF.device, torch.float32))
        return torch.bmm(features_KQF, summaries_KBF.transpose(1, 2)).to(queries_KQD.device)

    def fork(self) -> Self:
        other = copy(self)
        other._owns_buffer = False
        return other

    def first(self, keys_KND: torch.Tensor) -> Self:
        other = self.fork()
        other.num_tokens = keys_KND.shape[1]
        return other

    def state(self) -> dict[str, np.ndarray]:
        summaries = self._buffer_KBF[:, : self.num_blocks].cpu().numpy().copy()
        return counts(self.num_tokens, self.block_size) | {"summaries": summaries}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.num_tokens = restored_count(state, self.name, self.block_size)
        summaries = state.get("summaries")
        shape = None if summaries is None else summaries.shape
        expected = (self.num_heads, self.num_blocks, self._buffer_KBF.shape[2])
        if shape != expected:
            raise StoreError(f"the stored {self.name} index is {shape}, expected {expected}; encode the text again")
        self._buffer_KBF = torch.tensor(summaries, dtype=torch.float32, device=self._buffer_KBF.device)
        self._owns_buffer = False

    def _move(self, capacity: int) -> None:
        # what is made in inference mode cannot be written to outside
        with torch.inference_mode(False):
            buffer_KBF = self._buffer_KBF.new_empty(self.num_heads, capacity, self._buffer_KBF.shape[2])
        buffer_KBF[:, : self.num_blocks] = self._buffer_KBF[:, : self.num_blocks]
        self._buffer_KBF, self._owns_buffer = buffer_KBF, True


class BlockMeanIndex(SummaryIndex):
    """The product with the mean of the block's keys."""

    name = "block_mean"
    features_per_dim = 1

    def of_blocks(self, keys_KBSD: torch.Tensor) -> torch.Tensor:
        return keys_KBSD.mean(2)

    def of_queries(self, queries_KQD: torch.Tensor) -> torch.Tensor:
        return queries_KQD


class BlockMinMaxIndex(SummaryIndex):
    """An upper bound of the block's products from its smallest and largest key values: sum_d max(q_d min_d, q_d max_d).

    Source: Quest, query-aware sparsity (Tang et al. 2024, 2406.10774), section 3.3.
    """

    name = "block_minmax"
    features_per_dim = 2

    def of_blocks(self, keys_KBSD: torch.Tensor) -> torch.Tensor:
        low_KBD, high_KBD = keys_KBSD.aminmax(dim=2)
        return torch.cat([low_KBD, high_KBD], dim=2)

    def of_queries(self, queries_KQD: torch.Tensor) -> torch.Tensor:
        return torch.cat([queries_KQD.clamp(max=0), queries_KQD.clamp(min=0)], dim=2)
