"""Cross attention over the hidden states of a long text, exact over the blocks that each query fetches.

A query q and a hidden state h meet as q . (W_k h) = (W_k^T q) . h, so one index over hidden states serves every layer
and head, and what is attended to is summed before it is projected: W_v (sum_i a_i h_i) + b_v (after Bertsch et al.
2023, "Unlimiformer", which projects every fetched state).

Every query (row, head, token) fetches blocks of its own: one choice for all heads of a layer copies less, but catches
as little as half of the attention at the same budget (benchmarks/longcontext_encoder_decoder.py). What a row sees
depends neither on its batch nor on how many tokens come at once. The blocks of queries that are treated together are
copied once, so heads that agree cost no more than one, and masked for each.

Shapes: Q queries, M model width, N tokens, B blocks, S tokens per block, U blocks that some query fetched.
"""

import torch

from hsokv_ray.longcontext.encoder_decoder.text import EncodedText
from hsokv_ray.longcontext.report import Stopwatch

_QUERIES_AT_ONCE = 32
"""Bounds what is copied: at most this many budgets of hidden states."""


def attend_hidden(
    queries_QM: torch.Tensor, text: EncodedText, num_blocks: int, watch: Stopwatch | None = None
) -> torch.Tensor:
    """Return for each query the attention-weighted sum of hidden states of its `num_blocks` best blocks, [Q, M].

    Args:
        queries_QM: queries in the space of hidden states, scaled.
        text: what is attended to.
        num_blocks: blocks fetched per query; all there are makes it exact.
        watch: entered while blocks are chosen and fetched.
    """
    watch = watch or Stopwatch()
    if num_blocks >= text.num_blocks:
        return attend_states(queries_QM, text.first(len(text)))
    tiles = queries_QM.split(_QUERIES_AT_ONCE)
    outputs = [_attend_fetched(tile, text, num_blocks, watch) for tile in tiles]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def attend_states(queries_QM: torch.Tensor, parts: list[torch.Tensor]) -> torch.Tensor:
    """Return for each query the attention-weighted sum of all hidden states, given in parts [n, M]; [Q, M]."""
    parts = [part.to(queries_QM) for part in parts]
    weights = _weights(torch.cat([_logits(queries_QM, part) for part in parts], dim=1))
    summed = [share @ part for share, part in zip(weights.split([len(p) for p in parts], dim=1), parts, strict=True)]
    return torch.stack(summed).sum(0)


def choose(queries_QM: torch.Tensor, text: EncodedText, num_blocks: int) -> torch.Tensor:
    """Return the numbers of the `num_blocks` best blocks of each query, [Q, num_blocks] int64, best first."""
    logits_QB = text.block_logits(queries_QM.detach(), num_blocks)
    return logits_QB.topk(num_blocks, dim=1).indices


def _attend_fetched(queries_QM: torch.Tensor, text: EncodedText, num_blocks: int, watch: Stopwatch) -> torch.Tensor:
    with watch:
        chosen = choose(queries_QM, text, num_blocks)
        ids_U, place = torch.unique(chosen, return_inverse=True)
        states_USM = text.blocks(ids_U).to(queries_QM)
    logits_QUS = _logits(queries_QM, states_USM.flatten(0, 1)).unflatten(1, states_USM.shape[:2])
    others = torch.ones(logits_QUS.shape[:2], dtype=torch.bool, device=place.device).scatter_(1, place, False)
    logits_QUS = logits_QUS.masked_fill(others.to(queries_QM.device)[:, :, None], float("-inf"))
    num_last = len(text) % text.block_size
    if num_last and int(ids_U[-1]) == text.num_blocks - 1:
        logits_QUS[:, -1, num_last:] = float("-inf")
    return _weights(logits_QUS.flatten(1)) @ states_USM.flatten(0, 1)


def _logits(queries_QM: torch.Tensor, states_NM: torch.Tensor) -> torch.Tensor:
    # for few queries this order of the factors is the faster one
    return (states_NM @ queries_QM.T).T


def _weights(logits: torch.Tensor) -> torch.Tensor:
    return logits.softmax(dim=-1, dtype=torch.float32).to(logits.dtype)
