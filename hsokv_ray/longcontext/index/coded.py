"""An index of codes over most tokens, with exact products of the candidates it finds and of the newest tokens.

Shapes: K key-value heads, Q queries per head, N tokens, D head dim, B blocks, C candidates per query.
"""

from copy import copy

import numpy as np
import torch

from hsokv_ray.longcontext.index.base import BlockIndex, count_new_tokens, counts, restored_count
from hsokv_ray.longcontext.index.codes import Codes
from hsokv_ray.longcontext.index.faiss_heads import FaissHeads
from hsokv_ray.longcontext.index.flat import exact_block_logits

TAIL_TOKENS = 2048
"""Newest tokens that are scored exactly before they are encoded together."""
TAIL_SHARE = 64
"""Of a long text the tail may be this part: encoding it copies the codes there are."""
LEAST_CANDIDATES = 256
"""Of a query. With 64, and 6 blocks to choose at 131,072 tokens, a trained model found 92 of 100 single keys, with 256
98 (as with 1,024 and with exact search) in the same time."""
SCANNED_TOKENS_PER_QUERY = 640
"""Fewer codes per query and head are scanned no faster than the keys are multiplied, which is exact."""
SCANNED_TOKENS = 32768
"""So many are faster to scan for any number of queries."""


class CodedIndex(BlockIndex):
    """Exact while short; then codes of all but the newest tokens find candidates, which are scored exactly.

    Codes are replaced, never changed, so that forks and searches in other threads keep theirs.
    """

    def __init__(
        self, name: str, codes: Codes, *, num_heads: int, head_dim: int, block_size: int, exact_tokens: int = 0
    ) -> None:
        self.name, self.num_heads, self.head_dim, self.block_size = name, num_heads, head_dim, block_size
        self.num_tokens = 0
        self._codes, self._exact_tokens = codes, max(exact_tokens, codes.least_tokens - 1)
        self._heads: FaissHeads | None = None

    @property
    def num_coded_tokens(self) -> int:
        """Tokens behind codes; the rest is scored exactly."""
        return 0 if self._heads is None else self._heads.num_tokens

    @property
    def nbytes(self) -> int:
        return 0 if self._heads is None else self._codes.nbytes(self._heads)

    def add(self, keys_KND: torch.Tensor, all_keys_KND: torch.Tensor) -> None:
        self.num_tokens += count_new_tokens(
            keys_KND, num_heads=self.num_heads, head_dim=self.head_dim, block_size=self.block_size
        )
        assert all_keys_KND.shape[1] == self.num_tokens, (tuple(all_keys_KND.shape), self.num_tokens)
        coded = self.num_coded_tokens
        most_exact = max(TAIL_TOKENS, coded // TAIL_SHARE) if coded else self._exact_tokens
        if self.num_tokens - coded > most_exact:
            self._heads = self._codes.encode(self._heads, all_keys_KND)

    @torch.no_grad()
    def block_logits(self, queries_KQD: torch.Tensor, keys_KND: torch.Tensor, num_blocks: int) -> torch.Tensor:
        heads, num_tokens, device = self._heads, keys_KND.shape[1], queries_KQD.device
        assert num_tokens <= self.num_tokens, (num_tokens, self.num_tokens)
        candidates = num_candidates(num_blocks, self.block_size)
        if heads is None or heads.num_tokens < _least_scanned(queries_KQD.shape[1], candidates):
            return exact_block_logits(queries_KQD, keys_KND, self.block_size).to(device)
        queries_KQD = queries_KQD.to(keys_KND.device, torch.float32)
        out_KQB = queries_KQD.new_full((*queries_KQD.shape[:2], num_tokens // self.block_size), -torch.inf)
        if heads.num_tokens < num_tokens:
            tail_KQB = exact_block_logits(queries_KQD, keys_KND[:, heads.num_tokens :], self.block_size)
            out_KQB[:, :, heads.num_tokens // self.block_size :] = tail_KQB
        _score_candidates(heads, queries_KQD, keys_KND, candidates, self.block_size, out_KQB)
        return out_KQB.to(device)

    def fork(self) -> "CodedIndex":
        return copy(self)

    def first(self, keys_KND: torch.Tensor) -> "CodedIndex":
        other, num_tokens = copy(self), keys_KND.shape[1]
        other.num_tokens = num_tokens
        if num_tokens <= self._exact_tokens:
            other._heads = None
        elif self._heads is not None and num_tokens < self._heads.num_tokens:
            other._heads = self._codes.first(self._heads, keys_KND)
        return other

    def state(self) -> dict[str, np.ndarray]:
        return counts(self.num_tokens, self.block_size) | ({} if self._heads is None else self._heads.state())

    def restore(self, state: dict[str, np.ndarray]) -> None:
        self.num_tokens = restored_count(state, self.name, self.block_size)
        if "num_trained_tokens" in state:
            self._heads = FaissHeads.restored(
                state, num_heads=self.num_heads, head_dim=self.head_dim, gpu=self._codes.gpu
            )


def num_candidates(num_blocks: int, block_size: int) -> int:
    """Return how many tokens codes are asked for so that `num_blocks` blocks can be chosen among theirs.

    Neighbours share a block and codes misplace some: with 4 tokens per block wanted the chosen ones hold 1 to 2 %
    less attention than with 8, which matters for few blocks and costs for many. A token that is its own block has no
    neighbours.
    """
    wanted = 2 * num_blocks if block_size == 1 else min(8 * num_blocks, 4 * num_blocks + 128)
    return max(LEAST_CANDIDATES, wanted)


def _least_scanned(num_queries: int, candidates: int) -> int:
    return max(min(SCANNED_TOKENS_PER_QUERY * num_queries, SCANNED_TOKENS), 4 * candidates)


def _score_candidates(
    heads: FaissHeads,
    queries_KQD: torch.Tensor,
    keys_KND: torch.Tensor,
    candidates: int,
    block_size: int,
    out_KQB: torch.Tensor,
) -> None:
    """Raise `out_KQB` to the exact products of the tokens that the codes find."""
    found = heads.search(queries_KQD.detach().cpu().numpy(), candidates)
    tokens_KQC = torch.from_numpy(found).to(keys_KND.device)
    # a reader whose keys end earlier does not see what has been added since
    missing_KQC = (tokens_KQC < 0) | (tokens_KQC >= keys_KND.shape[1])
    tokens_KQC = tokens_KQC.masked_fill_(missing_KQC, 0)
    logits_KQC = torch.matmul(gather_keys(keys_KND, tokens_KQC), queries_KQD[..., None])[..., 0]
    logits_KQC.masked_fill_(missing_KQC, -torch.inf)
    out_KQB.scatter_reduce_(2, tokens_KQC // block_size, logits_KQC, "amax")


def gather_keys(keys_KND: torch.Tensor, tokens_KQC: torch.Tensor) -> torch.Tensor:
    """Return float32 keys [K, Q, C, D] of tokens; one gather over the store's rows where its layout allows."""
    K, N, D = keys_KND.shape
    by_head, by_token, by_dim = keys_KND.stride()
    if by_token != D or by_dim != 1 or by_head % D:
        keys_KND, by_head = keys_KND.contiguous(), N * D
    rows_per_head = by_head // D
    rows = keys_KND.as_strided(((K - 1) * rows_per_head + N, D), (D, 1))
    first_row_K = torch.arange(K, device=keys_KND.device) * rows_per_head
    row_numbers = (tokens_KQC + first_row_K[:, None, None]).flatten()
    return rows.index_select(0, row_numbers).float().view(*tokens_KQC.shape, D)
