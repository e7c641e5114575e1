"""Exact products of queries and keys, best of each block. Holds nothing: the keys are the store's.

Shapes: K key-value heads, Q queries per head, N tokens, D head dim, B blocks of S tokens.
"""

from copy import copy

import numpy as np
import torch

from hsokv_ray.longcontext.index.base import BlockIndex, count_new_tokens, counts, restored_count

# products at once, so that many queries over many tokens need no [K, Q, N]
TILE_PRODUCTS = {"cpu": 2**22, "cuda": 2**27}
# numbers turned to float32 at once: 2 MiB stays in a core's cache, where a whole copy goes through memory twice
TILE_CONVERTED = {"cpu": 2**19, "cuda": 2**27}


def exact_block_logits(queries_KQD: torch.Tensor, keys_KND: torch.Tensor, block_size: int) -> torch.Tensor:
    """Return the largest product per block [K, Q, B] in float32; `keys_KND` are whole blocks and are not copied."""
    K, N, D = keys_KND.shape
    queries_KQD = queries_KQD.to(keys_KND.device, torch.float32)
    num_queries, device = queries_KQD.shape[1], keys_KND.device.type
    tile = TILE_PRODUCTS.get(device, 2**22) // max(1, K * num_queries)
    if keys_KND.dtype != torch.float32:
        tile = min(tile, TILE_CONVERTED.get(device, 2**22) // (K * D))
    tile = max(1, tile // block_size) * block_size
    if tile >= N:
        return _best_of_blocks(queries_KQD, keys_KND, block_size)
    out_KQB = queries_KQD.new_empty(K, num_queries, N // block_size)
    for start in range(0, N, tile):
        best_KQb = _best_of_blocks(queries_KQD, keys_KND[:, start : start + tile], block_size)
        out_KQB[:, :, start // block_size : start // block_size + best_KQb.shape[2]] = best_KQb
    return out_KQB


def _best_of_blocks(queries_KQD: torch.Tensor, keys_KnD: torch.Tensor, block_size: int) -> torch.Tensor:
    logits_KQn = torch.bmm(queries_KQD, keys_KnD.float().transpose(1, 2))
    # amax of a view is an order of magnitude faster than max, which keeps the places too
    return logits_KQn if block_size == 1 else logits_KQn.unflatten(2, (-1, block_size)).amax(3)


class FlatIndex(BlockIndex):
    """Scores every token exactly."""

    def __init__(self, *, num_heads: int, head_dim: int, block_size: int, name: str = "flat") -> None:
        self.name, self.num_heads, self.head_dim, self.block_size = name, num_heads, head_dim, block_size
        self.num_tokens = 0

    @property
    def nbytes(self) -> int:
        return 0

    def add(self, keys_KND: torch.Tensor, all_keys_KND: torch.Tensor) -> None:
        self.num_tokens += count_new_tokens(
            keys_KND, num_heads=self.num_heads, head_dim=self.head_dim, block_size=self.block_size
        )

    @torch.no_grad()
    def block_logits(self, queries_KQD: torch.Tensor, keys_KND: torch.Tensor, num_blocks: int) -> torch.Tensor:
        assert keys_KND.shape[1] <= self.num_tokens, (tuple(keys_KND.shape), self.num_tokens)
        return exact_block_logits(queries_KQD, keys_KND, self.block_size).to(queries_KQD.device)

    def fork(self) -> "FlatIndex":
        return copy(self)

    def first(self, keys_KND: torch.Tensor) -> "FlatIndex":
        other = copy(self)
        other.num_tokens = keys_KND.shape[1]
        return other

    def state(self) -> dict[str, np.ndarray]:
        return counts(self.num_tokens, self.block_size)

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.num_tokens = restored_count(state, self.name, self.block_size)
