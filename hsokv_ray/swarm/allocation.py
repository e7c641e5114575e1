"""Who gets the agents, and with them the FLOPs that are left: managers that pay.

A manager pays by how much its outcomes improved the best score of the whole swarm, per FLOP it spent, since the last
decision. At each decision the manager that paid least gives one agent to the one that paid most, unless it would be
left with fewer than half of what it began with.
"""

from typing import Any

from hsokv_ray.swarm.config import SwarmConfig


class Allocation:
    """Gains and FLOPs by manager since the last decision.

    Args:
        config: the swarm's.
    """

    def __init__(self, config: SwarmConfig) -> None:
        self._every = config.allocation_every if config.exploit != "none" else 0
        self._least = max(config.agents_per_manager // 2, 2)
        self._num_managers = config.num_managers
        self._clear()
        self._move: tuple[int, int] | None = None
        """(from, to): the next agent of `from` that is free goes to `to`."""

    def charge(self, manager: int, flops: int) -> None:
        """Note what a manager spent."""
        self._flops[manager] += flops

    def gain(self, manager: int, gain: float) -> None:
        """Note by how much a manager improved the best score."""
        self._gains[manager] += gain

    def decide(self, manager: int, sizes: dict[int, int]) -> int | None:
        """Count an outcome of `manager`; return which manager its agent goes to, None to stay.

        Args:
            sizes: agents of each manager.
        """
        if not self._every or self._num_managers == 1:
            return None
        self._outcomes += 1
        if self._outcomes >= self._every:
            self._move = self._choose(sizes)
            self._clear()
        if self._move is None or self._move[0] != manager or sizes[manager] <= self._least:
            return None
        winner, self._move = self._move[1], None
        return winner

    def pays(self) -> list[float]:
        """Return the gain per FLOP of each manager since the last decision."""
        return [gain / max(flops, 1) for gain, flops in zip(self._gains, self._flops, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Return what `load` reads."""
        return {"gains": self._gains, "flops": self._flops, "outcomes": self._outcomes, "move": self._move}

    def load(self, values: dict[str, Any]) -> None:
        """Take over what `to_json` returned."""
        self._gains, self._flops = list(values["gains"]), list(values["flops"])
        self._outcomes = values["outcomes"]
        self._move = (values["move"][0], values["move"][1]) if values["move"] else None

    def _choose(self, sizes: dict[int, int]) -> tuple[int, int] | None:
        pays = self.pays()
        givers = [m for m in range(self._num_managers) if sizes[m] > self._least]
        winner = max(range(self._num_managers), key=pays.__getitem__)
        if not givers or pays[winner] == 0:
            return None
        loser = min(givers, key=pays.__getitem__)
        return (loser, winner) if pays[loser] < pays[winner] else None

    def _clear(self) -> None:
        self._gains = [0.0] * self._num_managers
        self._flops = [0] * self._num_managers
        self._outcomes = 0
