"""Rungs of asynchronous successive halving (ASHA, arXiv:1810.05934, algorithm 2): who may train on."""

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from hsokv_ray.swarm.space import Strategy


@dataclass(frozen=True)
class Paused:
    """A model that waits at a rung."""

    score: float
    order_id: str
    strategy: Strategy
    ancestor: str


@dataclass
class Rung:
    """All scores at one number of steps, and the best models that wait there.

    Args:
        step: steps its models have trained.
        room: waiting models kept; a weaker one is dropped, its state with it. Models further down the rung than that
            would be promoted only after as many better ones.
    """

    step: int
    room: int
    scores: list[float] = field(default_factory=list)
    """Ascending; -inf for a failed model, which counts as the weakest."""
    paused: list[Paused] = field(default_factory=list)
    """Best first; among equals the one that came first."""

    def add(self, model: Paused) -> None:
        """Note a model that reached the rung."""
        insort(self.scores, model.score)
        insort(self.paused, model, key=lambda each: -each.score)
        del self.paused[self.room :]

    def add_failure(self) -> None:
        """Note that a model failed on its way here."""
        insort(self.scores, float("-inf"))

    def promote(self, eta: int) -> Paused | None:
        """Take out the best waiting model if it is among the best 1/eta of the rung; None where it is not."""
        if not self.paused:
            return None
        best = self.paused[0].score
        num_equal_waiting = sum(1 for _ in takewhile(lambda each: each.score == best, self.paused))
        rank = len(self.scores) - bisect_left(self.scores, best) - num_equal_waiting
        return self.paused.pop(0) if rank < len(self.scores) // eta else None

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads; failures as null, since JSON has no infinity."""
        scores = [None if score == float("-inf") else score for score in self.scores]
        return {
            "step": self.step,
            "room": self.room,
            "scores": scores,
            "paused": [dict(vars(each)) for each in self.paused],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Rung":
        """Build from what `to_json` returned."""
        scores = [float("-inf") if score is None else score for score in values["scores"]]
        return cls(values["step"], values["room"], scores, [Paused(**each) for each in values["paused"]])
