"""Muon for matrices and for 3-D expert weights, AdamW for the rest, in one optimiser with one state dict.

Muon is Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon), its update scaled to the size of AdamW's as in
Liu et al. 2025 (arXiv 2502.16982), so that both parts share one learning rate. `torch.optim.Muon` refuses 3-D tensors.

Shape legend: B = matrices (experts), R = rows, C = columns.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.optim.adamw import adamw

NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic whose slope at 0 is largest; singular values end in about 0.7 to 1.2, not at 1 (Jordan et al. 2024)."""


class Muon(torch.optim.Optimizer):
    """Muon for the groups with `matrices=True`, AdamW for those with `matrices=False`.

    A 3-D parameter [B, R, C] is B separate matrices, orthogonalised in one batch. DTensors work: a matrix is gathered
    for its update, experts that are sharded by expert are not.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        num_iterations: int = 5,
        fused: bool = True,
    ) -> None:
        """Group parameters.

        Args:
            params: parameters, or groups that may set `matrices` and any argument below.
            lr: learning rate of both parts.
            weight_decay: decoupled decay of both parts.
            momentum: Muon's Nesterov momentum.
            betas: AdamW's decay rates.
            eps: AdamW's denominator term.
            num_iterations: Newton-Schulz iterations.
            fused: use the fused AdamW kernel.

        Raises:
            ValueError: a group with `matrices=True` holds a tensor that is neither 2-D nor 3-D.
        """
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
            "num_iterations": num_iterations,
            "fused": fused,
            "matrices": True,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for param in group["params"]:
                if group["matrices"] and param.ndim not in (2, 3):
                    raise ValueError(f"Muon takes 2-D and 3-D parameters, got {tuple(param.shape)}; set matrices=False")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if group["matrices"]:
                for param in params:
                    self._update_matrix(param, group)
            elif params:
                self._update_rest(params, group)
        return loss

    def _update_matrix(self, param: Tensor, group: dict[str, Any]) -> None:
        grad, state, momentum = param.grad, self.state[param], group["momentum"]
        assert grad is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        buffer = state["momentum_buffer"].lerp_(grad, 1 - momentum)
        update = _orthogonalize_maybe_sharded(grad.lerp(buffer, momentum), group["num_iterations"])
        rms_of_adamw = 0.2 * math.sqrt(max(param.shape[-2:]))
        param.mul_(1 - group["lr"] * group["weight_decay"])
        param.add_(update.to(param.dtype), alpha=-group["lr"] * rms_of_adamw)

    def _update_rest(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for param in params:
            state = self.state[param]
            if not state:
                state["step"] = torch.zeros((), device=param.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
        states = [self.state[param] for param in params]
        beta1, beta2 = group["betas"]
        adamw(
            params,
            [param.grad for param in params if param.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalize(matrices: Tensor, num_iterations: int = 5) -> Tensor:
    """Return bfloat16 matrices near to U V^T of each matrix U S V^T, by Newton-Schulz.

    Args:
        matrices: [R, C] or [B, R, C], any float dtype.
        num_iterations: iterations of the quintic; 5 in the source.
    """
    rows, columns = matrices.shape[-2:]
    x_BRC = matrices.bfloat16().reshape(-1, rows, columns)
    if rows > columns:
        x_BRC = x_BRC.mT
    x_BRC = x_BRC / x_BRC.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    for _ in range(num_iterations):
        gram_BRR = x_BRC @ x_BRC.mT
        step_BRR = torch.baddbmm(gram_BRR, gram_BRR, gram_BRR, beta=b, alpha=c)
        x_BRC = torch.baddbmm(x_BRC, step_BRR, x_BRC, beta=a)
    return (x_BRC.mT if rows > columns else x_BRC).reshape(matrices.shape)


def _orthogonalize_maybe_sharded(update: Tensor, num_iterations: int) -> Tensor:
    if not isinstance(update, DTensor):
        return orthogonalize(update, num_iterations)
    mesh, placements = update.device_mesh, update.placements
    if update.ndim == 3 and all(placement in (Shard(0), Replicate()) for placement in placements):
        local = orthogonalize(update.to_local(), num_iterations)
        return DTensor.from_local(local, mesh, placements, run_check=False, shape=update.shape, stride=update.stride())
    whole = orthogonalize(update.full_tensor(), num_iterations)
    return distribute_tensor(whole, mesh, placements, src_data_rank=None)
