"""What a swarm may still begin: the ledger's budget less what running orders will cost."""

from collections.abc import Callable
from typing import Any

from hsokv_ray.swarm.ledger import Ledger
from hsokv_ray.swarm.space import Strategy

Cost = Callable[[Strategy], int]
"""FLOPs of one step under a strategy."""


class Budget:
    """Reserves FLOPs for orders.

    Args:
        ledger: what was spent.
        cost: FLOPs per step; None: the mean of what was reported so far, nothing before the first report. What orders
            cost beyond it (their evaluation) is learned too, and set aside from the first report on.
    """

    def __init__(self, ledger: Ledger, cost: Cost | None) -> None:
        self.ledger, self.cost = ledger, cost
        self.reserved = 0
        self._flops, self._steps = 0, 0
        self._extra, self._orders = 0, 0
        """FLOPs beyond `cost`, of so many orders."""

    def fitting_steps(self, strategy: Strategy, num_steps: int) -> int:
        """Return how many of `num_steps` may be begun now."""
        remaining, per_step = self.ledger.remaining, self._per_step(strategy)
        if remaining is None:
            return num_steps
        free = remaining - self.reserved - self._extra_per_order
        if per_step == 0:
            return num_steps if free > 0 else 0
        return max(min(num_steps, free // per_step), 0)

    def flops_of(self, strategy: Strategy, num_steps: int) -> int:
        """Return the expected FLOPs of `num_steps`."""
        if self.cost:
            return self.cost(strategy) * num_steps + self._extra_per_order
        return self._flops * num_steps // self._steps if self._steps else 0

    def reserve(self, strategy: Strategy, num_steps: int) -> int:
        """Set aside, and return, the expected FLOPs of `num_steps`."""
        flops = self.flops_of(strategy, num_steps)
        self.reserved += flops
        return flops

    def release(self, reserved: int) -> None:
        """Take back what was set aside."""
        self.reserved -= reserved

    def observe(self, strategy: Strategy, flops: int, num_steps: int) -> None:
        """Learn from what an order cost."""
        self._flops += flops
        self._steps += num_steps
        if self.cost:
            self._extra += max(flops - self.cost(strategy) * num_steps, 0)
            self._orders += 1

    @property
    def _extra_per_order(self) -> int:
        return self._extra // self._orders if self._orders else 0

    def _per_step(self, strategy: Strategy) -> int:
        if self.cost:
            return self.cost(strategy)
        return self._flops // self._steps if self._steps else 0

    def to_json(self) -> dict[str, Any]:
        """Return what `load` reads."""
        return {
            "reserved": self.reserved,
            "flops": self._flops,
            "steps": self._steps,
            "extra": self._extra,
            "orders": self._orders,
        }

    def load(self, values: dict[str, Any]) -> None:
        """Take over what `to_json` returned."""
        self.reserved, self._flops, self._steps = values["reserved"], values["flops"], values["steps"]
        self._extra, self._orders = values["extra"], values["orders"]
