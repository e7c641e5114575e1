"""From a strategy to what trains: optimiser, learning rate of each step, batch, and the settings of the memory.

recipe = Recipe(strategy, total_steps=300)
optimizer = recipe.optimizer(model.parameters())
for step in range(300):
    recipe.set_rate(optimizer, step)
    ...
optimizer = recipe.take_over(optimizer, another_strategy)
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from hsokv_ray.errors import ConfigError
from hsokv_ray.models.kv_writing import PolicyName, WritePolicy, policy_of
from hsokv_ray.swarm.space import Space, Strategy
from hsokv_ray.swarm.strategy import KV_SPACE

WARMUP_SHARE = 0.05
"""Share of all steps in which the learning rate rises to its peak."""
SGD_MOMENTUM = 0.9
OPTIMIZERS = ("adamw", "sgd", "rmsprop")
SCHEDULES = ("constant", "linear", "cosine")

DEFAULT_STRATEGY: Strategy = {
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "weight_decay": 1e-4,
    "schedule": "cosine",
    "batch_size": 32,
    "memory_top_k": 4,
    "write_policy": "always",
    "gate_init": 0.0,
}
"""A strategy of `KV_SPACE` to begin with; what a strategy does not name is taken from here."""

PLAIN_SPACE = Space(
    {name: KV_SPACE.domains[name] for name in ("optimizer", "learning_rate", "weight_decay", "schedule", "batch_size")}
)
"""`KV_SPACE` less what only a memory has: a model without one is searched over nothing that does not move it."""


def space_of(*, use_kv: bool) -> Space:
    """Return the strategies of a model with, or without, a memory."""
    return KV_SPACE if use_kv else PLAIN_SPACE


class Recipe:
    """One strategy, read.

    Args:
        strategy: of `KV_SPACE` or a part of it; what is missing is as in `DEFAULT_STRATEGY`.
        total_steps: steps of a whole training, over which the schedule is laid.

    Raises:
        ConfigError: a setting is unknown, or none that can be trained with.
    """

    def __init__(self, strategy: Mapping[str, Any], total_steps: int) -> None:
        if total_steps < 1:
            raise ConfigError(f"total_steps: got {total_steps}; at least 1 is needed")
        self.total_steps = total_steps
        self._follow(strategy)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return a new optimizer of `parameters`, those that need no gradient left out, at the rate of step 0."""
        learnt = [parameter for parameter in parameters if parameter.requires_grad]
        rate, decay = self.rate(0), self.weight_decay
        match self.kind:
            case "adamw":
                return torch.optim.AdamW(learnt, lr=rate, weight_decay=decay)
            case "sgd":
                return torch.optim.SGD(learnt, lr=rate, momentum=SGD_MOMENTUM, weight_decay=decay)
        return torch.optim.RMSprop(learnt, lr=rate, weight_decay=decay)

    def rate(self, step: int) -> float:
        """Return the learning rate of the step that follows `step` finished ones; 0 from `total_steps` on if it falls.

        Linear warm-up whose last step has the peak; then the peak, a line to 0, or half a cosine to 0.
        """
        warmup = self.warmup_steps
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = min((step - warmup) / max(self.total_steps - warmup, 1), 1.0)
        left = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}
        return self.learning_rate * left[self.schedule]

    def set_rate(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Give every group of `optimizer` the learning rate of `step`."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate(step)

    def take_over(self, optimizer: torch.optim.Optimizer, strategy: Mapping[str, Any]) -> torch.optim.Optimizer:
        """Follow `strategy` from now on; return the optimizer to go on with.

        One of the same kind keeps its moments and takes the new weight decay (the rate is set at every step); of
        another kind a new one is made, whose moments begin empty.

        Raises:
            ConfigError: as when made.
        """
        before = type(optimizer)
        self._follow(strategy)
        if before is not _CLASSES[self.kind]:
            return self.optimizer(cast("list[nn.Parameter]", _parameters(optimizer)))
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = self.rate(0), self.weight_decay
        return optimizer

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up, at least 1."""
        return math.ceil(WARMUP_SHARE * self.total_steps)

    def _follow(self, strategy: Mapping[str, Any]) -> None:
        if unknown := sorted(strategy.keys() - DEFAULT_STRATEGY.keys()):
            raise ConfigError(f"strategy: got {unknown}, which no recipe has; known are {sorted(DEFAULT_STRATEGY)}")
        chosen: dict[str, Any] = DEFAULT_STRATEGY | dict(strategy)
        _check_option("optimizer", chosen, OPTIMIZERS)
        _check_option("schedule", chosen, SCHEDULES)
        _check_numbers(chosen)
        self.strategy: Strategy = dict(strategy)
        self.kind: str = chosen["optimizer"]
        self.schedule: str = chosen["schedule"]
        self.learning_rate = float(chosen["learning_rate"])
        self.weight_decay = float(chosen["weight_decay"])
        self.batch_size = int(chosen["batch_size"])
        self.top_k = int(chosen["memory_top_k"])
        self.gate_init = float(chosen["gate_init"])
        self.policy: WritePolicy = policy_of(cast("PolicyName", chosen["write_policy"]))


_CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _check_option(name: str, strategy: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    if strategy[name] not in allowed:
        raise ConfigError(f"strategy: {name} is {strategy[name]!r}; one of {', '.join(allowed)} is needed")


def _check_numbers(strategy: Mapping[str, Any]) -> None:
    for name in ("learning_rate", "weight_decay", "gate_init"):
        if not math.isfinite(strategy[name]):
            raise ConfigError(f"strategy: {name} is {strategy[name]}; a finite number is needed")
    for name, least in {"learning_rate": 0, "weight_decay": 0, "batch_size": 1, "memory_top_k": 1}.items():
        if strategy[name] < least:
            raise ConfigError(f"strategy: {name} is {strategy[name]}; at least {least} is needed")
