"""Losses of the language model, as sums over tokens so that micro-batches and workers add up exactly.

Shapes: B batch, T time, N tokens (B times T), D hidden size, E experts, V vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from hsokv_ray.models.presets import LOSS_CHUNK_TOKENS
from hsokv_ray.models.router import router_scores

if TYPE_CHECKING:
    from hsokv_ray.models.configuration_hmst import HMSTConfig

IGNORE_INDEX = -100
"""Target of a position that has no loss."""


def shift_left(labels_BT: torch.Tensor) -> torch.Tensor:
    """Return next-token targets [B, T]: `labels_BT` moved by one, the last position ignored."""
    return F.pad(labels_BT, (0, 1), value=IGNORE_INDEX)[:, 1:]


def cross_entropy_sum(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy summed over the targets, in fp32 nats."""
    return F.cross_entropy(logits_NV.float(), targets_N, ignore_index=IGNORE_INDEX, reduction="sum")


def fused_cross_entropy_sum(hidden_ND: torch.Tensor, head: nn.Module, targets_N: torch.Tensor) -> torch.Tensor:
    """Return `cross_entropy_sum(head(hidden_ND), targets_N)` without ever holding the logits [N, V].

    Uses torch's chunked linear cross entropy in fp32. Elsewhere (bf16, where that function rounds the loss to bf16;
    a torch without it; a head that is not a plain linear layer) the head is applied to chunks of tokens that are
    computed again in the backward pass.
    """
    in_fp32 = hidden_ND.dtype == torch.float32 and not torch.is_autocast_enabled(hidden_ND.device.type)
    has_fused = hasattr(nn, "LinearCrossEntropyOptions")
    if has_fused and in_fp32 and type(head) is nn.Linear and head.bias is None and head.weight.dtype == torch.float32:
        # chunks of torch's own choice are a few tokens where V is much larger than D: 2.5 times slower on CPU
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=LOSS_CHUNK_TOKENS, chunking_method=None)
        return F.linear_cross_entropy(
            hidden_ND, head.weight, targets_N, reduction="sum", ignore_index=IGNORE_INDEX, options=options
        )
    chunks = zip(hidden_ND.split(LOSS_CHUNK_TOKENS), targets_N.split(LOSS_CHUNK_TOKENS), strict=True)
    losses = [checkpoint(_chunk_loss, head, h, t, use_reentrant=False) for h, t in chunks]
    return torch.stack(losses).sum()


def router_z_loss_sum(router_logits: Sequence[torch.Tensor], valid_N: torch.Tensor) -> torch.Tensor:
    """Return the sum over valid tokens of logsumexp(logits)^2, averaged over layers (ST-MoE, arXiv 2202.08906, eq. 5).

    Args:
        router_logits: one [N, E] fp32 tensor per sparse layer.
        valid_N: [N] bool.
    """
    per_layer = [(logits_NE.logsumexp(dim=-1).square() * valid_N).sum() for logits_NE in router_logits]
    return torch.stack(per_layer).mean()


def switch_loss(logits_NE: torch.Tensor, valid_N: torch.Tensor, *, top_k: int, scoring: str) -> torch.Tensor:
    """Return E * sum_e(share of assignments to e * mean normalised score of e) over valid tokens; 1 when even.

    The balance loss of Switch Transformer (arXiv 2101.03961, eq. 4 to 6) for top-k. Not a sum over tokens, so the
    losses of two halves of a batch do not add up to that of the whole.
    """
    scores_NE = router_scores(logits_NE, scoring)
    num_valid = valid_N.sum().clamp(min=1)
    index_NK = scores_NE.detach().topk(top_k, dim=-1).indices
    chosen_NE = torch.zeros_like(scores_NE).scatter(-1, index_NK, 1.0) * valid_N[:, None]
    share_E = chosen_NE.sum(dim=0) / (num_valid * top_k)
    normalised_NE = scores_NE / scores_NE.sum(dim=-1, keepdim=True) * valid_N[:, None]
    return logits_NE.shape[-1] * (share_E * normalised_NE.sum(dim=0) / num_valid).sum()


def auxiliary_loss(
    router_logits: Sequence[torch.Tensor],
    *,
    targets_N: torch.Tensor,
    num_items: torch.Tensor | int,
    config: "HMSTConfig",
) -> torch.Tensor:
    """Return the weighted router losses of this micro-batch, its share of a batch of `num_items` targets.

    Tokens that have a target count, so that padding does not.
    """
    valid_N = targets_N.ne(IGNORE_INDEX)
    loss = torch.zeros((), dtype=torch.float32, device=targets_N.device)
    if router_logits and config.router_z_loss_coef:
        loss = loss + config.router_z_loss_coef * router_z_loss_sum(router_logits, valid_N) / num_items
    if router_logits and config.router_aux_loss_coef:
        top_k, scoring = config.num_experts_per_tok, config.router_scoring
        layers = [switch_loss(logits, valid_N, top_k=top_k, scoring=scoring) for logits in router_logits]
        loss = loss + config.router_aux_loss_coef * torch.stack(layers).mean() * valid_N.sum() / num_items
    return loss


def _chunk_loss(head: nn.Module, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    return cross_entropy_sum(head(hidden_ND), targets_N)
