"""The optimisers of a run: which parameter goes where, and with which decay."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hsokv_ray.errors import ConfigError
from hsokv_ray.training.config import OptimConfig
from hsokv_ray.training.muon import Muon

BETAS = (0.9, 0.95)
FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


@dataclass(frozen=True)
class ParameterRoles:
    """The trainable parameters by how they are updated; each is in exactly one list."""

    matrices: list[Tensor]
    """Weights of linear maps: 2-D, and 3-D [experts, rows, columns]."""

    heads: list[Tensor]
    """The output head and the routers: matrices whose rows are classes, so not for Muon; decayed."""

    undecayed: list[Tensor]
    """Embeddings, norms, biases."""


def build_optimizer(model: nn.Module, config: OptimConfig, *, device_type: str) -> torch.optim.Optimizer:
    """Return the optimiser that `config` names, with betas (0.9, 0.95) and the peak learning rate in every group.

    Args:
        model: the model, its parameters on their final device; DTensors are fine for adamw and muon.
        config: the `optim` section.
        device_type: "cpu" or "cuda"; tells whether the fused AdamW kernel exists.

    Raises:
        ConfigError: the optimiser's package is not installed, or it cannot update sharded parameters.
    """
    roles = parameter_roles(model)
    decayed = [*roles.matrices, *roles.heads]
    fused = device_type in FUSED_DEVICES
    match config.optimizer_name:
        case "adamw":
            groups = _groups({"params": decayed}, {"params": roles.undecayed, "weight_decay": 0.0})
            return torch.optim.AdamW(
                groups, lr=config.learning_rate, betas=BETAS, weight_decay=config.weight_decay, fused=fused
            )
        case "muon":
            groups = _groups(
                {"params": roles.matrices},
                {"params": roles.heads, "matrices": False},
                {"params": roles.undecayed, "matrices": False, "weight_decay": 0.0},
            )
            return Muon(groups, lr=config.learning_rate, betas=BETAS, weight_decay=config.weight_decay, fused=fused)
        case "adamw8bit":
            groups = _groups({"params": decayed}, {"params": roles.undecayed, "weight_decay": 0.0})
            adamw8bit = _adamw8bit_class(sharded=any(isinstance(param, DTensor) for param in model.parameters()))
            return adamw8bit(groups, lr=config.learning_rate, betas=BETAS, weight_decay=config.weight_decay)


def parameter_roles(model: nn.Module) -> ParameterRoles:
    """Sort the trainable parameters of `model` by role; a head tied to the embedding is the embedding."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    heads = {id(param) for param in _head_parameters(model)}
    roles = ParameterRoles([], [], [])
    for name, param in model.named_parameters():
        if param.requires_grad:
            is_expert = param.ndim == 3 and "experts" in name.split(".")
            if id(param) in embeddings or param.ndim < 2:
                roles.undecayed.append(param)
            elif id(param) not in heads and (param.ndim == 2 or is_expert):
                roles.matrices.append(param)
            else:
                roles.heads.append(param)
    return roles


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Give every group the learning rate `value`."""
    for group in optimizer.param_groups:
        group["lr"] = value


def _head_parameters(model: nn.Module) -> Iterator[Tensor]:
    # Found through any wrapper (DDP, torch.compile), so by module and not by asking `model` itself.
    for name, module in model.named_modules():
        head = getattr(module, "get_output_embeddings", lambda: None)()
        if head is not None:
            yield from head.parameters()
        if name.rsplit(".", 1)[-1] in ("router", "gate"):
            yield from module.parameters(recurse=False)


def _groups(*groups: dict[str, Any]) -> list[dict[str, Any]]:
    # torch.distributed.checkpoint cannot flatten an empty group (IndexError in _unflatten_optim_state_dict).
    return [group for group in groups if group["params"]]


def _adamw8bit_class(*, sharded: bool) -> Any:
    if sharded:
        raise ConfigError(
            "--optimizer adamw8bit cannot update sharded parameters; use --parallel ddp, or adamw or muon"
        )
    try:
        base = importlib.import_module("bitsandbytes").optim.AdamW8bit
    except ImportError:
        raise ConfigError(
            "--optimizer adamw8bit needs bitsandbytes, which is not installed; "
            "pip install 'hsokv_ray[bitsandbytes]', or use --optimizer adamw"
        ) from None

    class AdamW8bit(base):
        # Its own form nests the quantised state one level deeper for FSDP1, which
        # torch.distributed.checkpoint.state_dict flattens but cannot read back.
        state_dict = torch.optim.Optimizer.state_dict

    return AdamW8bit
