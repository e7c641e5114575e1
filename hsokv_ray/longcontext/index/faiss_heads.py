"""One FAISS index per key-value head, read-only once made, and what searches them side by side.

Shapes: K key-value heads, Q queries per head, N tokens, D head dim, C candidates per query.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Self

import numpy as np
import torch

from hsokv_ray.errors import StoreError
from hsokv_ray.longcontext.index.devices import MOST_CANDIDATES, GpuSearcher
from hsokv_ray.longcontext.index.faiss_library import load_faiss

PAIRS_WORTH_THREADS = 2**20
"""Of a query and a token, over all heads; fewer take less time than handing them to another thread."""


class FaissHeads:
    """FAISS indexes of the same N tokens, one per head, whose ids are token numbers. Searched, never changed."""

    def __init__(self, heads: list[Any], num_trained_tokens: int, gpu: GpuSearcher | None = None) -> None:
        self.num_tokens: int = heads[0].ntotal
        self.num_trained_tokens = num_trained_tokens
        """Tokens there were when the codebooks were made."""
        self._gpu = gpu
        self._heads = heads if gpu is None else [gpu.put(head) for head in heads]

    def on_cpu(self) -> list[Any]:
        """Return the indexes in main memory, to be copied from or stored."""
        return self._heads if self._gpu is None else [self._gpu.take(head) for head in self._heads]

    def search(self, queries_KQD: np.ndarray, num_candidates: int) -> np.ndarray:
        """Return the tokens with the largest estimates, int64 [K, Q, C]; -1 where fewer were found."""
        queries_KQD = np.ascontiguousarray(queries_KQD, np.float32)
        if self._gpu is None:
            return self._search_cpu(queries_KQD, num_candidates)
        num_candidates = min(num_candidates, MOST_CANDIDATES)
        with self._gpu.lock:
            found = [
                head.search(queries, num_candidates)[1] for head, queries in zip(self._heads, queries_KQD, strict=True)
            ]
        return np.stack(found)

    def _search_cpu(self, queries_KQD: np.ndarray, num_candidates: int) -> np.ndarray:
        K, Q, _ = queries_KQD.shape
        scores_KQC = np.empty((K, Q, num_candidates), np.float32)
        tokens_KQC = np.empty((K, Q, num_candidates), np.int64)
        pointer = load_faiss().swig_ptr

        def search(head: int) -> None:
            # the wrapper's checks would take a tenth of a short search
            self._heads[head].search_c(
                Q, pointer(queries_KQD[head]), num_candidates, pointer(scores_KQC[head]), pointer(tokens_KQC[head])
            )

        over_heads(search, K, parallel=K * Q * self.num_tokens >= PAIRS_WORTH_THREADS)
        return tokens_KQC

    def state(self) -> dict[str, np.ndarray]:
        """Return one blob per head and the number of trained tokens."""
        blobs = {f"head_{number}": load_faiss().serialize_index(head) for number, head in enumerate(self.on_cpu())}
        return blobs | {"num_trained_tokens": np.array(self.num_trained_tokens, np.int64)}

    @classmethod
    def restored(
        cls, state: dict[str, np.ndarray], *, num_heads: int, head_dim: int, gpu: GpuSearcher | None = None
    ) -> Self:
        """Return the indexes of a `state`; raises `StoreError` where it is damaged."""
        faiss = load_faiss()
        try:
            blobs = [np.ascontiguousarray(state[f"head_{number}"], np.uint8) for number in range(num_heads)]
            heads = [faiss.deserialize_index(blob) for blob in blobs]
            num_trained_tokens = int(state["num_trained_tokens"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise StoreError(f"the stored index is damaged ({error!r}); encode the text again") from error
        if len({(head.ntotal, head.d == head_dim) for head in heads} | {(heads[0].ntotal, True)}) > 1:
            sizes = [(head.ntotal, head.d) for head in heads]
            raise StoreError(f"the stored index has (tokens, dim) {sizes}, not dim {head_dim}; encode the text again")
        return cls(heads, num_trained_tokens, gpu)


def head_vectors(keys_KND: torch.Tensor, head: int) -> np.ndarray:
    """Return one head's keys as FAISS takes them: float32, contiguous, in main memory."""
    return keys_KND[head].detach().to("cpu", torch.float32).contiguous().numpy()


def over_heads(call: Callable[[int], None], num_heads: int, *, parallel: bool) -> None:
    """Run `call(head)` for every head, over as many threads as torch uses.

    FAISS works on one query in one thread, so heads are what can go side by side; its calls release the GIL.
    """
    faiss = load_faiss()
    num_threads = min(num_heads, torch.get_num_threads()) if parallel else 1
    shares = [range(start, num_heads, num_threads) for start in range(num_threads)]

    def run(share: range) -> None:
        # FAISS keeps the number per calling thread, and other users of the thread may count on theirs
        before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            for head in share:
                call(head)
        finally:
            faiss.omp_set_num_threads(before)

    others = [_pool(num_threads - 1).submit(run, share) for share in shares[1:]]
    run(shares[0])
    for other in others:
        other.result()


# a process forked from this one has none of its threads
os.register_at_fork(after_in_child=lambda: _pool.cache_clear())


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="longcontext-index")
