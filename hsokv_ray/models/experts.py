"""Experts as fast as a dense feed-forward: tokens sorted by expert, one matrix product per expert, nothing padded.

Registered with transformers as the experts implementation `hmst_sorted`. Forward and backward are two opaque operators:
so they compile without graph breaks, write each expert's weight gradient in place into one [E, ...] buffer, and keep
little more than the pre-activations. There is no atomic addition: a run repeats exactly.

Shapes: N tokens, K experts per token, S slots (N times K), D hidden size, E experts, F expert width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from hsokv_ray.errors import ConfigError

SORTED = "hmst_sorted"

_FASTEST = {("cpu", torch.float32): SORTED, ("cpu", torch.bfloat16): SORTED, ("cpu", torch.float64): SORTED}
"""From benchmarks/results/moe_block.json (`python benchmarks/moe_block.py`); fp64 because grouped_mm refuses it."""


def fastest_experts_implementation(device_type: str, dtype: torch.dtype) -> str:
    """Return the experts implementation that trains fastest on a device ("cpu", "cuda", ...) in a dtype.

    Devices and dtypes without a measurement of ours keep transformers' default, grouped_mm.
    """
    return _FASTEST.get((device_type, dtype), "grouped_mm")


def sorted_experts_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Return the weighted sum [N, D] of each token's SwiGLU experts, in the dtype of `hidden_states`.

    Args:
        self: experts with `gate_up_proj` [E, 2F, D], `down_proj` [E, D, F] and SiLU as `act_fn`.
        hidden_states: [N, D].
        top_k_index: [N, K] int64, the experts of each token; E marks a slot to leave out.
        top_k_weights: [N, K].

    Raises:
        ConfigError: the experts have another activation than SiLU.
    """
    check_activation(self, SORTED)
    return swiglu_experts(
        hidden_states, index=top_k_index, weights=top_k_weights, gate_up=self.gate_up_proj, down=self.down_proj
    )


def check_activation(experts: nn.Module, implementation: str) -> None:
    """Raise `ConfigError` unless `experts` use SiLU, the one activation whose gradient is written out here."""
    if not isinstance(experts.act_fn, nn.SiLU | SiLUActivation):
        raise ConfigError(
            f"experts_implementation {implementation}: got {type(experts.act_fn).__name__}, allowed is SiLU; "
            "set hidden_act to silu or experts_implementation to grouped_mm"
        )


def swiglu_experts(hidden_ND: Tensor, *, index: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Return `sum_k weights[n, k] * expert(index[n, k])(hidden[n])`, [N, D].

    Differentiable once in `hidden_ND` [N, D], `weights` [N, K], `gate_up` [E, 2F, D] and `down` [E, D, F]; a second
    derivative raises RuntimeError (no autograd formula). `index` [N, K] holds 0 to E, where E leaves the slot out.
    Under autocast the matrix products run in its dtype.
    """
    dtype = matmul_dtype(hidden_ND)
    inputs = hidden_ND.to(dtype), index, weights, gate_up.to(dtype), down.to(dtype)
    return _swiglu_experts(*inputs)[0].to(hidden_ND.dtype)


def matmul_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype that a matrix product of `tensor` runs in: autocast's where it is on, else its own."""
    device = tensor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


@dataclass(frozen=True)
class _Order:
    """The slots in order of their expert: `slot` [S] is a permutation, `token` [S] the token of each."""

    slot: Tensor
    token: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, slot: Tensor, num_experts_per_token: int) -> "_Order":
        inverse = torch.empty_like(slot)
        inverse[slot] = torch.arange(slot.numel(), device=slot.device)
        return cls(slot, slot // num_experts_per_token, inverse)


def _runs(counts_E: Tensor) -> Iterator[tuple[int, slice]]:
    """Yield each expert that has rows, with the slice of them."""
    start = 0
    for expert, count in enumerate(counts_E.tolist()):
        if count:
            yield expert, slice(start, start + count)
        start += count


def _sum_slots(rows_SD: Tensor, order: _Order, like_NK: Tensor, weights_NK: Tensor | None = None) -> Tensor:
    """Sum each token's K rows, weighted; one pass, no [N, K, D] in between."""
    index_NK = order.inverse.view_as(like_NK)
    return F.embedding_bag(index_NK, rows_SD, mode="sum", per_sample_weights=weights_NK)


@torch.library.custom_op("hsokv::swiglu_experts", mutates_args=())
def _swiglu_experts(
    hidden: Tensor, index: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the output [N, D]; the rest is for the backward: slots by expert, counts, pre-activations, results."""
    num_experts = gate_up.shape[0]
    expert_S = index.flatten()
    order = _Order.of(torch.argsort(expert_S, stable=True), index.shape[1])
    counts_E = torch.bincount(expert_S, minlength=num_experts + 1)[:num_experts].cpu()
    num_used = int(counts_E.sum())

    hidden_SD = hidden.index_select(0, order.token)
    pre_S2F = hidden.new_empty(len(expert_S), gate_up.shape[1])
    result_SD = hidden.new_empty(len(expert_S), down.shape[1])
    pre_S2F[num_used:], result_SD[num_used:] = 0, 0  # left-out slots sort to the end
    for expert, rows in _runs(counts_E):
        gate, up = torch.mm(hidden_SD[rows], gate_up[expert].T, out=pre_S2F[rows]).chunk(2, dim=-1)
        torch.mm(F.silu(gate).mul_(up), down[expert].T, out=result_SD[rows])
    output = _sum_slots(result_SD, order, index, weights.to(hidden.dtype))
    return output, order.slot, counts_E, pre_S2F, result_SD


@_swiglu_experts.register_fake
def _(
    hidden: Tensor, index: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    num_slots = index.numel()
    return (
        torch.empty_like(hidden),
        index.new_empty(num_slots),
        torch.empty(gate_up.shape[0], dtype=torch.int64, device="meta" if hidden.is_meta else "cpu"),
        hidden.new_empty(num_slots, gate_up.shape[1]),
        hidden.new_empty(num_slots, down.shape[1]),
    )


@torch.library.custom_op("hsokv::swiglu_experts_backward", mutates_args=())
def _swiglu_experts_backward(
    grad: Tensor,
    hidden: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    slot: Tensor,
    counts: Tensor,
    pre: Tensor,
    result: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of hidden, weights, gate_up and down."""
    order = _Order.of(slot, weights.shape[1])
    grad_SD = grad.index_select(0, order.token)
    grad_weights_S = (grad_SD * result).sum(-1, dtype=weights.dtype)
    grad_SD *= weights.flatten()[slot].to(grad.dtype)[:, None]

    hidden_SD = hidden.index_select(0, order.token)
    grad_hidden_SD = torch.empty_like(hidden_SD)
    grad_hidden_SD[int(counts.sum()) :] = 0
    new_gradient = torch.empty_like if counts.all() else torch.zeros_like
    grad_gate_up, grad_down = new_gradient(gate_up), new_gradient(down)
    for expert, rows in _runs(counts):
        gate, up = pre[rows].chunk(2, dim=-1)
        silu = F.silu(gate)
        torch.mm(grad_SD[rows].T, silu * up, out=grad_down[expert])
        grad_act = torch.mm(grad_SD[rows], down[expert])
        grad_pre = torch.empty_like(pre[rows])
        grad_gate, grad_up = grad_pre.chunk(2, dim=-1)
        torch.mul(grad_act, silu, out=grad_up)
        torch.ops.aten.silu_backward(grad_act.mul_(up), gate, grad_input=grad_gate)
        torch.mm(grad_pre.T, hidden_SD[rows], out=grad_gate_up[expert])
        torch.mm(grad_pre, gate_up[expert], out=grad_hidden_SD[rows])
    grad_hidden = _sum_slots(grad_hidden_SD, order, weights)
    return grad_hidden, grad_weights_S[order.inverse].view_as(weights), grad_gate_up, grad_down


@_swiglu_experts_backward.register_fake
def _(
    grad: Tensor,
    hidden: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    slot: Tensor,
    counts: Tensor,
    pre: Tensor,
    result: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(weights), torch.empty_like(gate_up), torch.empty_like(down)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    hidden, _index, weights, gate_up, down = inputs
    _result, *for_backward = output
    ctx.mark_non_differentiable(*for_backward)
    # else autograd fills a gradient of zeros for each of them, the largest as large as the pre-activations
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, weights, gate_up, down, *for_backward)


def _backward(ctx: Any, grad: Tensor | None, *_unused: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:  # nothing downstream used the output
        return None, None, None, None, None
    hidden, weights, gate_up, down = _swiglu_experts_backward(grad.contiguous(), *ctx.saved_tensors)
    return hidden, None, weights, gate_up, down


_swiglu_experts.register_autograd(_backward, setup_context=_save)
ALL_EXPERTS_FUNCTIONS.register(SORTED, sorted_experts_forward)
