"""Keys in lists around centroids, of which a search reads those nearest to the query."""

import math
from typing import Any

import numpy as np

from hsokv_ray.longcontext.index.codes import Codes, evenly
from hsokv_ray.longcontext.index.devices import GpuSearcher
from hsokv_ray.longcontext.index.faiss_heads import FaissHeads
from hsokv_ray.longcontext.index.faiss_library import load_faiss
from hsokv_ray.longcontext.index.product import DIM_PER_CODE, LEAST_TOKENS, check_head_dim

TOKENS_PER_LIST = 64
"""At least; FAISS wants 39 to train a centroid on."""
PROBED_SHARE = 4
"""One list in so many is read. Queries do not look like keys: lists near a query hold few of its best keys until about
a third is read (RetrievalAttention, Liu et al. 2024, 2409.10516)."""
TRAIN_ROUNDS = 6
RETRAIN_AT = 2
"""Times the tokens trained on."""


def num_lists(num_tokens: int) -> int:
    """Return the lists for so many tokens: twice the square root, none short of tokens to train on."""
    return max(1, min(2 * math.isqrt(num_tokens), num_tokens // TOKENS_PER_LIST))


class InvertedLists(Codes):
    """4-bit codes in lists on the CPU, plain vectors in lists on a GPU, where FAISS scans no 4-bit codes."""

    least_tokens = LEAST_TOKENS

    def __init__(self, head_dim: int, *, seed: int = 0, gpu: GpuSearcher | None = None) -> None:
        check_head_dim(head_dim, "ivf")
        super().__init__(head_dim, seed=seed, gpu=gpu)

    def trained(self, vectors_ND: np.ndarray, seed: int) -> Any:
        faiss, lists = load_faiss(), num_lists(len(vectors_ND))
        codes = f"PQ{self.head_dim // DIM_PER_CODE}x4fs" if self.gpu is None else "Flat"
        index = faiss.index_factory(self.head_dim, f"IVF{lists},{codes}", faiss.METRIC_INNER_PRODUCT)
        index.cp.niter, index.cp.seed, index.nprobe = TRAIN_ROUNDS, seed, -(-lists // PROBED_SHARE)
        index.train(evenly(vectors_ND, max(LEAST_TOKENS, TOKENS_PER_LIST * lists)))
        return index

    def copied(self, index: Any) -> Any:
        return load_faiss().clone_index(index)

    def is_outgrown(self, heads: FaissHeads, num_tokens: int) -> bool:
        return num_tokens >= RETRAIN_AT * heads.num_trained_tokens

    def nbytes(self, heads: FaissHeads) -> int:
        id_bytes = 8
        return sum(
            head.ntotal * (head.code_size + id_bytes) + 4 * head.nlist * self.head_dim for head in heads.on_cpu()
        )


class PlainVectors(Codes):
    """The keys themselves, for a GPU to search all of."""

    least_tokens = 1

    def trained(self, vectors_ND: np.ndarray, seed: int) -> Any:
        return load_faiss().IndexFlatIP(self.head_dim)

    def copied(self, index: Any) -> Any:
        return load_faiss().clone_index(index)

    def nbytes(self, heads: FaissHeads) -> int:
        return 4 * self.head_dim * sum(head.ntotal for head in heads.on_cpu())
