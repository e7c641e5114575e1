"""Modules, optimisers, memories and random generators as tensors and JSON, and back: the parts of a `State`.

    tensors = {**module_tensors("model", model), **optimizer_tensors(optimizer), **memory_tensors(memory)}
    load_module("model", model, state.tensors)

What is returned is a copy: later training does not change it.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hsokv_ray.errors import CheckpointError
from hsokv_ray.memory import key_value_state
from hsokv_ray.memory.config import KeyValueConfig
from hsokv_ray.memory.key_value import KeyValueMemory

OPTIMIZER, MEMORY = "optimizer", "memory"


def module_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Return the weights and buffers of `module` by name."""
    return {f"{prefix}.{name}": tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}


def load_module(prefix: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give `module` what `module_tensors` returned. Raises `CheckpointError`: names or shapes differ."""
    try:
        module.load_state_dict(_under(prefix, tensors))
    except RuntimeError as error:
        cause = " ".join(str(error).split())[:200]
        raise CheckpointError(f"state: it does not fit the model ({cause}); give a state of the same task") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the moments of each parameter, by its number and theirs."""
    states = optimizer.state_dict()["state"]
    return {
        f"{OPTIMIZER}.{number}.{name}": value.detach().cpu().clone()
        for number, moments in states.items()
        for name, value in moments.items()
        if isinstance(value, Tensor)  # SGD names a moment that it has not made yet
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give `optimizer`, of the same kind and parameters, what `optimizer_tensors` returned.

    Raises:
        CheckpointError: a number is that of no parameter.
    """
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under(OPTIMIZER, tensors).items():
        number, moment = name.split(".", 1)
        states.setdefault(int(number), {})[moment] = tensor.clone()
    whole = optimizer.state_dict()
    if states and max(states) >= sum(len(group["params"]) for group in whole["param_groups"]):
        raise CheckpointError(f"state: it has moments of parameter {max(states)}, which the model does not have")
    optimizer.load_state_dict({"state": states, "param_groups": whole["param_groups"]})


def memory_tensors(memory: KeyValueMemory) -> dict[str, Tensor]:
    """Return the arrays of `memory`; `memory_values` has the rest."""
    arrays, _ = key_value_state.dump(memory)
    return {f"{MEMORY}.{name}": torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def memory_values(memory: KeyValueMemory) -> dict[str, Any]:
    """Return what of `memory` is JSON."""
    return key_value_state.dump(memory)[1]


def load_memory(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> KeyValueMemory:
    """Return the memory that both came from. Raises `CheckpointError`: it is not sound."""
    arrays = {name: tensor.numpy().copy() for name, tensor in _under(MEMORY, tensors).items()}
    with key_value_state.refuse_what_does_not_fit("state"):
        memory = KeyValueMemory(KeyValueConfig(**values["config"]), encoder_id=values["encoder_id"])
        key_value_state.fill(memory, arrays, dict(values))
    return memory


def check_values(values: Mapping[str, Any], *, task: str, needed: Collection[str]) -> None:
    """Raise `CheckpointError` where a state's values are another task's, or one that is `needed` is missing."""
    if values.get("task") != task:
        raise CheckpointError(f"state: got one of {values.get('task')!r}; this learner trains {task!r}")
    if missing := sorted(set(needed) - values.keys()):
        raise CheckpointError(f"state: {', '.join(missing)} is missing; give a whole state")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
