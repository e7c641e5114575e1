"""What a swarm and those who train for it say to each other. Frozen, and plain JSON on the wire.

text = json.dumps(order.to_json())
order = Order.from_json(json.loads(text))
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True)
class _Message:
    def to_json(self) -> dict[str, Any]:
        """Return a dict that `from_json` reads; what is inside is shared, not copied."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from what `to_json` returned."""
        return cls(**values)


@dataclass(frozen=True)
class Order(_Message):
    """Train from one step to another, then report."""

    order_id: str
    """Unique and the same in every run of one seed: "a3.17" is the 17th order of agent 3."""
    agent: int
    manager: int
    strategy: dict[str, Any]
    begin_step: int
    end_step: int
    """Steps of the whole training so far, exclusive: `end_step - begin_step` are to be done."""
    source: str | None
    """Order whose resulting state to begin from; None: a fresh model."""
    seed: int
    """For everything random in this order, the fresh model included; in [0, 2**32)."""
    attempt: int = 1
    """How often it was handed out because a worker was lost, plus 1."""

    @property
    def num_steps(self) -> int:
        """Steps to train."""
        return self.end_step - self.begin_step


@dataclass(frozen=True)
class Outcome(_Message):
    """What came of an order."""

    order_id: str
    score: float | None
    """On validation data, higher is better; None where there is none. NaN or infinity counts as a failure."""
    flops: int
    """Spent on this attempt, evaluation included."""
    seconds: float
    failure: str = ""
    """Why it failed; "" where it did not."""
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Event(_Message):
    """Something that happened; for logs, lineage and plots.

    `what` is one of: began (a fresh model), continued, promoted, copied, migrated, moved (to another manager),
    resampled (a new strategy for a state), improved (a new best), failed, lost, restarted (a whole manager), collapsed
    (too little diversity), diversity, ended (the agent), cut (an order shortened to what the budget still allows).
    """

    number: int
    """Counts all events of a swarm from 0."""
    what: str
    agent: int | None
    manager: int | None
    order_id: str | None
    flops: int
    """Spent by the whole swarm so far."""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Best(_Message):
    """The best outcome so far."""

    order_id: str
    strategy: dict[str, Any]
    score: float
    step: int
    """Steps its model has trained."""
    agent: int
    manager: int
