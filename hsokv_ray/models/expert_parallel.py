"""Expert parallelism: each process of a group keeps some experts, and tokens travel to the experts they chose.

    shard_experts(model, group)      # once, on every process of the group; then train as before

Rows go out sorted by expert, so one uneven all-to-all sends them and one brings the results back; the router's weights
are applied at home. Every process has its own tokens. The gradient of an expert is the sum over the tokens of the
whole group.

Shapes: N tokens of this process, K experts per token, S slots (N times K), R rows received, D hidden size, E experts of
the whole group.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from hsokv_ray.errors import ConfigError
from hsokv_ray.models.experts import check_activation, matmul_dtype, swiglu_experts

EXPERT_PARALLEL = "hmst_expert_parallel"
EXPERT_PARAMETERS = ("gate_up_proj", "down_proj")
"""Parameters [E, ...] of an experts module, cut along their first dimension."""


def shard_experts(model: PreTrainedModel, group: dist.ProcessGroup) -> list[str]:
    """Keep this process' share of every layer's experts and send tokens over `group` from now on.

    Process r of n keeps experts r * E/n to (r + 1) * E/n - 1. The full weights must be equal on all processes before.

    Returns:
        The names of the parameters that were cut, as `model.named_parameters()` has them.

    Raises:
        ConfigError: the model has no experts, or their number is not a multiple of the size of the group.
    """
    modules = {name: module for name, module in model.named_modules() if _is_experts(module)}
    if not modules:
        raise ConfigError("--parallel ep: the model has no experts (num_experts is 1); use ddp or fsdp")
    for module in modules.values():
        check_activation(module, EXPERT_PARALLEL)
        vars(module)["expert_group"] = group
        for name in EXPERT_PARAMETERS:
            full = getattr(module, name)
            own = nn.Parameter(own_experts(full.detach(), group).clone(), requires_grad=full.requires_grad)
            setattr(module, name, own)
    model.set_experts_implementation(EXPERT_PARALLEL)
    return [f"{prefix}.{name}" for prefix in modules for name in EXPERT_PARAMETERS]


def own_experts(full: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return this process' part [E/n, ...] (a view) of a tensor [E, ...]. Raises `ConfigError` where n does not fit."""
    size = group.size()
    if full.shape[0] % size:
        raise ConfigError(
            f"--expert-parallel-size: got {size}, which does not divide the {full.shape[0]} experts; choose a divisor"
        )
    return full.chunk(size)[group.rank()]


def all_experts(own: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the tensor [E, ...] whose parts [E/n, ...] the processes of `group` hold; a collective."""
    full = own.new_empty(own.shape[0] * group.size(), *own.shape[1:])
    dist.all_gather(list(full.chunk(group.size())), own.contiguous(), group=group)
    return full


# lengths depend on the data and the collectives are not traceable
@torch.compiler.disable
def expert_parallel_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Return the weighted sum [N, D] of each token's experts, wherever they live; a collective over `expert_group`.

    Args:
        self: experts cut by `shard_experts`.
        hidden_states: [N, D], the tokens of this process; N may differ between processes and may be 0.
        top_k_index: [N, K] int64, 0 to E - 1 among the experts of the whole group; E leaves the slot out.
        top_k_weights: [N, K].
    """
    plan = _Plan.make(top_k_index, num_local_experts=self.gate_up_proj.shape[0], group=self.expert_group)
    num_tokens, top_k = top_k_index.shape
    hidden_SD = hidden_states.to(matmul_dtype(hidden_states))[:, None].expand(-1, top_k, -1).flatten(0, 1)
    sorted_SD = _Permute.apply(hidden_SD, plan.slot_S, plan.inverse_S)
    received_RD = _AllToAll.apply(sorted_SD[: plan.num_sent], plan.sent, plan.received, plan.group)
    local_RD = swiglu_experts(
        received_RD,
        index=plan.expert_R[:, None],
        weights=torch.ones_like(plan.expert_R, dtype=received_RD.dtype)[:, None],
        gate_up=self.gate_up_proj,
        down=self.down_proj,
    )
    returned_SD = _AllToAll.apply(local_RD, plan.received, plan.sent, plan.group)
    left_out = returned_SD.new_zeros(len(sorted_SD) - plan.num_sent, returned_SD.shape[1])
    result_SD = _Permute.apply(torch.cat([returned_SD, left_out]), plan.inverse_S, plan.slot_S)
    result_NKD = result_SD.unflatten(0, (num_tokens, top_k)) * top_k_weights[..., None]
    return result_NKD.sum(dim=1).to(hidden_states.dtype)


@dataclass(frozen=True)
class _Plan:
    """Who sends how many rows to whom, for one layer and one batch."""

    slot_S: Tensor
    """The slots in order of their expert; left-out slots last."""
    inverse_S: Tensor
    sent: list[int]
    """Rows to each process of the group."""
    received: list[int]
    """Rows from each process of the group."""
    expert_R: Tensor
    """The expert of each received row, counted among those of this process."""
    group: dist.ProcessGroup

    @property
    def num_sent(self) -> int:
        return sum(self.sent)

    @classmethod
    def make(cls, index_NK: Tensor, *, num_local_experts: int, group: dist.ProcessGroup) -> "_Plan":
        size = group.size()
        num_experts = num_local_experts * size
        expert_S = index_NK.flatten()
        slot_S = torch.argsort(expert_S, stable=True)
        inverse_S = torch.empty_like(slot_S)
        inverse_S[slot_S] = torch.arange(len(slot_S), device=slot_S.device)

        sent_E = torch.bincount(expert_S, minlength=num_experts + 1)[:num_experts]
        received_E = torch.empty_like(sent_E)
        dist.all_to_all_single(received_E, sent_E, group=group)
        # rows arrive by process, and from each process by expert
        expert_E = torch.arange(num_local_experts, device=slot_S.device).repeat(size)
        rows = torch.stack([sent_E, received_E]).view(2, size, num_local_experts).sum(-1).tolist()
        return cls(slot_S, inverse_S, rows[0], rows[1], expert_E.repeat_interleave(received_E), group)


class _Permute(torch.autograd.Function):
    """Rows in a new order; the backward is the inverse order, without atomic additions."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        return grads[0].index_select(0, *ctx.saved_tensors), None, None


class _AllToAll(torch.autograd.Function):
    """Send `sent[i]` rows to process i and get `received[i]` rows from it; the backward sends the gradients back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _exchange(rows, sent, received, group)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore
        return _exchange(grads[0], ctx.received, ctx.sent, ctx.group), None, None, None


def _exchange(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    output = rows.new_empty(sum(received), rows.shape[1])
    dist.all_to_all_single(output, rows.contiguous(), received, sent, group=group)
    return output


def _is_experts(module: nn.Module) -> bool:
    return all(getattr(getattr(module, name, None), "ndim", 0) == 3 for name in EXPERT_PARAMETERS)


ALL_EXPERTS_FUNCTIONS.register(EXPERT_PARALLEL, expert_parallel_forward)
