"""Even load over experts without a loss: after each step the bias of a busy expert goes down, of an idle one up.

Call `LoadBalancer.step` once per optimiser step, before it, so that gradient accumulation counts as one batch.

Shapes: L sparse layers, E experts.
"""

import dataclasses
import math
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn

from hsokv_ray.models.router import HMSTRouter

FINAL_SHARE = 0.1
"""Rate at the end of training, as a share of the first: 1e-2 becomes 1e-3."""


@dataclasses.dataclass(frozen=True)
class RouterMetrics:
    """How evenly the experts were used since the last step, over all workers."""

    load: list[list[float]]
    """Share of the assignments each expert got, [layers][experts]; 1/experts is even."""
    entropy: float
    """Entropy of the load divided by its largest value, mean over layers; 1 is even."""
    max_violation: float
    """Largest load / mean load - 1, mean over layers (MaxVio of arXiv 2408.15664); 0 is even."""
    worst_violation: float
    """The same in the worst layer."""


class LoadBalancer:
    """Loss-free balancing of DeepSeek-V3 (arXiv 2408.15664, algorithm 1), with torchtitan's centred step.

    Args:
        model: any module that holds `HMSTRouter`s.
        rate: first step of the bias; falls linearly to a tenth of it over training.
        kind: `bias` moves the biases; `switch` and `none` only measure.
    """

    def __init__(
        self, model: nn.Module, *, rate: float = 1e-2, kind: Literal["bias", "switch", "none"] = "bias"
    ) -> None:
        self.routers = [module for module in model.modules() if isinstance(module, HMSTRouter)]
        self.rate = rate
        self.kind = kind

    @torch.no_grad()
    def step(self, progress: float, group: dist.ProcessGroup | None = None) -> RouterMetrics | None:
        """Move the biases by the load counted since the last call, and set the counts to zero.

        Args:
            progress: share of training done, 0 to 1.
            group: workers whose counts are added up; None: all of them, where torch.distributed is initialised.

        Returns:
            The load, or None for a model without routers and where no token was counted.
        """
        if not self.routers:
            return None
        counts_LE = torch.stack([router.tokens_per_expert for router in self.routers])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts_LE, group=group)
        load_LE = counts_LE.double()
        if self.kind == "bias":
            self._move_biases(load_LE, self.rate * (1 - (1 - FINAL_SHARE) * min(max(progress, 0.0), 1.0)))
        for router in self.routers:
            router.tokens_per_expert.zero_()
        return _metrics(load_LE.cpu()) if counts_LE.any() else None

    def _move_biases(self, load_LE: torch.Tensor, rate: float) -> None:
        step_LE = rate * torch.sign(load_LE.mean(dim=-1, keepdim=True) - load_LE)
        step_LE -= step_LE.mean(dim=-1, keepdim=True)
        for router, step_E in zip(self.routers, step_LE, strict=True):
            router.expert_bias += step_E.to(router.expert_bias.dtype)


def _metrics(load_LE: torch.Tensor) -> RouterMetrics:
    share_LE = load_LE / load_LE.sum(dim=-1, keepdim=True)
    num_experts = load_LE.shape[-1]
    violation_L = share_LE.amax(dim=-1) * num_experts - 1
    entropy_L = torch.special.entr(share_LE).sum(dim=-1) / math.log(num_experts)
    return RouterMetrics(
        load=share_LE.tolist(),
        entropy=entropy_L.mean().item(),
        max_violation=violation_L.mean().item(),
        worst_violation=violation_L.max().item(),
    )
