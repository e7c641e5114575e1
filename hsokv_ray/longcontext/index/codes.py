"""How the keys of a head become a FAISS index: what product codes, inverted lists and plain vectors have in common.

Shapes: K key-value heads, N tokens, D head dim.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch

from hsokv_ray.longcontext.index.devices import GpuSearcher
from hsokv_ray.longcontext.index.faiss_heads import FaissHeads, head_vectors, over_heads


class Codes(ABC):
    """Makes indexes of keys and extends copies of them; a subclass says which."""

    least_tokens: int
    """Fewer are not enough to learn codebooks from."""

    def __init__(self, head_dim: int, *, seed: int = 0, gpu: GpuSearcher | None = None) -> None:
        self.head_dim, self.seed, self.gpu = head_dim, seed, gpu

    @abstractmethod
    def trained(self, vectors_ND: np.ndarray, seed: int) -> Any:
        """Return an empty index fit for such vectors."""

    @abstractmethod
    def copied(self, index: Any) -> Any:
        """Return a copy that may grow."""

    def is_outgrown(self, heads: FaissHeads, num_tokens: int) -> bool:
        """Return whether `num_tokens` want codebooks of their own."""
        return False

    def first(self, heads: FaissHeads, keys_KND: torch.Tensor) -> FaissHeads:
        """Return indexes of the first tokens alone, whose keys [K, n, D] these are."""
        return self.encode(None, keys_KND)

    @abstractmethod
    def nbytes(self, heads: FaissHeads) -> int:
        """Return the bytes that indexes take."""

    def encode(self, before: FaissHeads | None, keys_KND: torch.Tensor) -> FaissHeads:
        """Return indexes of all keys, grown from copies of those `before`, which cover the first of them."""
        num_tokens = keys_KND.shape[1]
        if before is not None and self.is_outgrown(before, num_tokens):
            before = None
        old = None if before is None else before.on_cpu()
        num_coded = 0 if before is None else before.num_tokens
        heads: list[Any] = [None] * keys_KND.shape[0]

        def encode(head: int) -> None:
            vectors_ND = head_vectors(keys_KND[:, num_coded:], head)
            heads[head] = self.trained(vectors_ND, self.seed + head) if old is None else self.copied(old[head])
            heads[head].add(vectors_ND)

        over_heads(encode, len(heads), parallel=True)
        return FaissHeads(heads, num_tokens if before is None else before.num_trained_tokens, self.gpu)


def evenly(vectors_ND: np.ndarray, most: int) -> np.ndarray:
    """Return `most` of the vectors, spread over all of them; all where there are fewer."""
    if len(vectors_ND) <= most:
        return np.ascontiguousarray(vectors_ND)
    return vectors_ND[np.linspace(0, len(vectors_ND) - 1, num=most).astype(np.int64)]
