"""What a swarm knows about one agent, and what a manager wants it to do next."""

from dataclasses import dataclass, field
from typing import Any

from hsokv_ray.swarm.messages import Order
from hsokv_ray.swarm.space import Strategy


@dataclass
class Agent:
    """One place where models are trained, one after the other."""

    index: int
    manager: int
    num_orders: int = 0
    order: Order | None = None
    """What it is to do; None: nothing at present."""
    is_started: bool = False
    """Whether the order has its share of the budget, so that it may be handed out."""
    reserved: int = 0
    """FLOPs set aside for the order."""
    last: str | None = None
    """Order whose resulting state is its model, the one that `score` is of; None: it has none, or has taken over
    another's and not reported since."""
    step: int = 0
    """Steps that model has trained."""
    score: float | None = None
    """What the model got at the last decision."""
    strategy: Strategy = field(default_factory=dict)
    ancestor: str = ""
    """First order of the model's line of copies."""
    failures: int = 0
    """In a row."""
    interruptions: int = 0
    """Attempts of the order that ended because all of the search did; they are held against nobody."""
    has_ended: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {**vars(self), "order": self.order.to_json() if self.order else None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Agent":
        """Build from what `to_json` returned."""
        order = Order.from_json(values["order"]) if values["order"] else None
        return cls(**{**values, "order": order})


@dataclass(frozen=True)
class Plan:
    """What an agent is to do next."""

    what: str
    """Why; one of `Event.what`."""
    strategy: Strategy
    begin_step: int
    end_step: int
    source: str | None = None
    ancestor: str | None = None
    """None: the order itself begins a line."""
    details: dict[str, Any] = field(default_factory=dict)
