"""What the lines of a journal come to, each counted once: the swarm's own rules, applied to its journal.

tally = Tally()
for line in lines:
    told = tally.take(line)          # Told, Lost, or None where the swarm took no notice of it
tally.ledger.totals, tally.best
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hsokv_ray.swarm.ledger import Ledger
from hsokv_ray.swarm.messages import Order, Outcome


@dataclass(frozen=True)
class Told:
    """An order that was carried out, well or not."""

    order: Order
    outcome: Outcome
    begun_s: float
    """Unix time."""
    time_s: float
    worker: str
    flops: int
    """Spent by the whole swarm once this was counted."""

    @property
    def has_failed(self) -> bool:
        """Whether the swarm took it for a failure: it says so, or its score is no finite number."""
        score = self.outcome.score
        return bool(self.outcome.failure) or score is None or not math.isfinite(score)

    @property
    def score(self) -> float:
        """Higher is better; NaN of a failure."""
        return math.nan if self.has_failed or self.outcome.score is None else float(self.outcome.score)


@dataclass(frozen=True)
class Lost:
    """An attempt whose worker died."""

    order: Order
    begun_s: float
    time_s: float
    worker: str
    flops: int
    """Spent by the whole swarm once this was counted."""
    why: str


class Tally:
    """Counts, FLOPs by kind and the best outcome of the lines taken so far."""

    def __init__(self) -> None:
        self.ledger = Ledger(None)
        self.best: Told | None = None
        self.num_told = self.num_failed = self.num_lost = 0
        self._newest: dict[int, int] = {}
        """Agent -> number of its newest order that was told."""

    def take(self, line: Mapping[str, Any]) -> Told | Lost | None:
        """Count a line of journal.jsonl; None, and nothing is counted, where it repeats what was told before."""
        order = Order.from_json(line["order"])
        if _number(order) <= self._newest.get(order.agent, 0):
            return None
        return self._tell(order, line) if line["what"] == "tell" else self._lose(order, line)

    def _tell(self, order: Order, line: Mapping[str, Any]) -> Told:
        outcome = Outcome.from_json(line["outcome"])
        self._newest[order.agent] = _number(order)
        told = Told(order, outcome, line["begun"], line["time"], line["worker"], 0)
        kind = "wasted" if told.has_failed else "useful"
        self.ledger.charge(order.order_id, order.attempt, outcome.flops, kind)
        told = Told(order, outcome, told.begun_s, told.time_s, told.worker, self.ledger.spent)
        self.num_told += 1
        self.num_failed += told.has_failed
        if not told.has_failed and (self.best is None or told.score > self.best.score):
            self.best = told
        return told

    def _lose(self, order: Order, line: Mapping[str, Any]) -> Lost | None:
        if not self.ledger.charge(order.order_id, order.attempt, line["flops"], "wasted"):
            return None
        self.num_lost += 1
        return Lost(order, line["begun"], line["time"], line["worker"], self.ledger.spent, line["why"])


def _number(order: Order) -> int:
    return int(order.order_id.rpartition(".")[2])
