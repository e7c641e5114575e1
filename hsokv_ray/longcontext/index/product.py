"""Product-quantised keys: 4 bits for two numbers of a key, all of them scanned by FAISS.

Unlike lists or graphs, a scan of every code does not depend on queries looking like keys, which in attention they do
not (RetrievalAttention, Liu et al. 2024, 2409.10516). A fast scan: André et al. 2017, "Accelerated nearest neighbor
search with quick ADC".
"""

from typing import Any

import numpy as np
import torch

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext.index.codes import Codes, evenly
from hsokv_ray.longcontext.index.devices import GpuSearcher
from hsokv_ray.longcontext.index.faiss_heads import FaissHeads
from hsokv_ray.longcontext.index.faiss_library import load_faiss

DIM_PER_CODE = 2
BITS = 4
TRAIN_TOKENS = 2048
TRAIN_ROUNDS = 6
"""Of k-means. 4096 tokens and 25 rounds, FAISS's defaults, take eight times as long for 4 % less squared error."""
LEAST_TOKENS = 39 * 2**BITS
"""FAISS warns when it trains on fewer."""


class ProductCodes(Codes):
    """D / 4 bytes per token and head, and 64 * D bytes of codebooks per head."""

    least_tokens = LEAST_TOKENS

    def __init__(self, head_dim: int, *, seed: int = 0, gpu: GpuSearcher | None = None) -> None:
        check_head_dim(head_dim, "pq")
        super().__init__(head_dim, seed=seed, gpu=gpu)

    def trained(self, vectors_ND: np.ndarray, seed: int) -> Any:
        index = _empty(self.head_dim)
        index.pq.cp.niter, index.pq.cp.seed = TRAIN_ROUNDS, seed
        index.train(evenly(vectors_ND, TRAIN_TOKENS))
        # a second layout of the codebooks, which encoding reads faster; stored indexes do not have it
        index.pq.sync_transposed_centroids()
        return index

    def copied(self, index: Any) -> Any:
        return self._copied(index, index.ntotal)

    def first(self, heads: FaissHeads, keys_KND: torch.Tensor) -> FaissHeads:
        copies = [self._copied(head, keys_KND.shape[1]) for head in heads.on_cpu()]
        return FaissHeads(copies, heads.num_trained_tokens)

    def _copied(self, index: Any, num_tokens: int) -> Any:
        """Return a copy of the first tokens, which may grow; codes lie in groups of `bbs` tokens."""
        # faiss.clone_index copies the unused room behind the codes too, which can be as much again
        faiss, copy = load_faiss(), _empty(self.head_dim)
        copy.pq, copy.is_trained = index.pq, True
        copy.pq.sync_transposed_centroids()
        padded = -(-num_tokens // index.bbs) * index.bbs
        num_bytes = padded * index.M2 // 2
        copy.codes.resize(num_bytes)
        faiss.memcpy(copy.codes.get(), index.codes.get(), num_bytes)
        copy.ntotal, copy.ntotal2 = num_tokens, padded
        return copy

    def nbytes(self, heads: FaissHeads) -> int:
        return sum(
            head.codes.size() + 4 * (head.pq.centroids.size() + head.pq.transposed_centroids.size())
            for head in heads.on_cpu()
        )


def check_head_dim(head_dim: int, name: str) -> None:
    """Raise `ConfigError` where keys cannot be cut into pairs of numbers."""
    if head_dim % DIM_PER_CODE:
        raise ConfigError(f"--index {name}: the head dim {head_dim} is odd, pairs of numbers are coded; use flat")


def _empty(head_dim: int) -> Any:
    faiss = load_faiss()
    return faiss.IndexPQFastScan(head_dim, head_dim // DIM_PER_CODE, BITS, faiss.METRIC_INNER_PRODUCT)
