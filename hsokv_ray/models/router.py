"""Choice of experts: one fp32 linear layer, sigmoid or softmax scores, a bias that steers the choice only.

Shapes: N tokens (batch and time flattened), D hidden size, E experts, K experts per token.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from hsokv_ray.models.configuration_hmst import HMSTConfig


class Routing(NamedTuple):
    """Where each token goes, and with which weight."""

    logits_NE: torch.Tensor
    weights_NK: torch.Tensor
    index_NK: torch.Tensor


def router_scores(logits_NE: torch.Tensor, scoring: str) -> torch.Tensor:
    """Return the affinity of each token to each expert, in (0, 1)."""
    return logits_NE.softmax(dim=-1) if scoring == "softmax" else logits_NE.sigmoid()


class HMSTRouter(nn.Module):
    """Top-k router of DeepSeek-V3 (arXiv 2412.19437, equations 12 to 16).

    `expert_bias` [E] is added to the scores when experts are chosen and not when they are weighted, so it moves load
    without a gradient. `tokens_per_expert` [E] counts the tokens sent to each expert since `LoadBalancer` last looked.
    """

    expert_bias: torch.Tensor
    tokens_per_expert: torch.Tensor

    def __init__(self, config: "HMSTConfig") -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.scoring = config.router_scoring
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.register_buffer("expert_bias", torch.zeros(config.num_experts, dtype=torch.float32))
        # int64, so that casting the model to a lower precision leaves the counts exact
        counts = torch.zeros(config.num_experts, dtype=torch.int64)
        self.register_buffer("tokens_per_expert", counts, persistent=False)

    def forward(self, hidden_ND: torch.Tensor) -> Routing:
        """Return the routing of `hidden_ND` [N, D]; logits and weights are fp32, also under autocast."""
        with torch.autocast(hidden_ND.device.type, enabled=False):
            logits_NE = F.linear(hidden_ND.float(), self.weight.float())
        scores_NE = router_scores(logits_NE, self.scoring)
        index_NK = torch.topk(scores_NE.detach() + self.expert_bias.float(), self.top_k, dim=-1, sorted=False).indices
        weights_NK = scores_NE.gather(-1, index_NK)
        if self.top_k > 1:  # one weight divided by itself would leave the router without a gradient
            weights_NK = weights_NK / (weights_NK.sum(dim=-1, keepdim=True) + 1e-20)
        return Routing(logits_NE, weights_NK, index_NK)

    @torch.no_grad()
    def count(self, index_NK: torch.Tensor, valid_N: torch.Tensor | None = None) -> None:
        """Add the tokens sent to each expert to `tokens_per_expert`; `valid_N` [N] bool leaves padding out.

        The model calls this once per forward pass, outside the layers, because activation checkpointing runs a layer
        twice.
        """
        ones_NK = torch.ones_like(index_NK)
        if valid_N is not None:
            ones_NK = ones_NK * valid_N[:, None]
        self.tokens_per_expert.scatter_add_(0, index_NK.flatten(), ones_NK.flatten())
