"""What live views show of a running search."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from hsokv_ray.swarm.agent import Agent
from hsokv_ray.swarm.manager import Manager
from hsokv_ray.swarm.messages import Best, Event

if TYPE_CHECKING:
    from hsokv_ray.swarm.swarm import Swarm


@dataclass(frozen=True)
class Status:
    """A search at one moment."""

    running: int
    """Orders in workers."""
    waiting: int
    """Orders that wait for a worker."""
    told: int
    """Outcomes so far, failures included."""
    failed: int
    lost: int
    """Attempts that ended with their worker."""
    flops: dict[str, int]
    """Spent, by kind of the ledger."""
    flops_budget: int | None
    best: Best | None
    managers: list[dict[str, Any]] = field(default_factory=list)
    """Of each: index, agents (how many), best (score of its agents at their last decision, None before), entropy and
    ancestors (`Manager.diversity`)."""
    agents: list[dict[str, Any]] = field(default_factory=list)
    """Of each: agent, manager, doing ("training a3.17 (40..50)", "waiting" or "ended"), score, strategy."""
    workers: int = 0
    utilisation: float = 0.0
    """Share of the workers' time spent in orders, in [0, 1]."""
    seconds: float = 0.0
    """Of all drivers of this search together."""
    message: str = ""
    """A line for the user; "" where there is nothing to say."""


class Watcher(Protocol):
    """Is told what happens, in the order in which it does, each thing once."""

    def told(self, record: dict[str, Any]) -> None:
        """Take a line of journal.jsonl."""
        ...

    def happened(self, event: Event) -> None:
        """Take an event."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


def managers_of(swarm: "Swarm") -> list[dict[str, Any]]:
    """Return `Status.managers`."""
    return [_of_manager(manager) for manager in swarm._managers]


def agents_of(swarm: "Swarm", running: Collection[str]) -> list[dict[str, Any]]:
    """Return `Status.agents`.

    Args:
        swarm: whose.
        running: orders in workers.
    """
    return [_of_agent(agent, running) for agent in swarm._agents]


def _of_manager(manager: Manager) -> dict[str, Any]:
    scores = [agent.score for agent in manager.agents.values() if agent.score is not None]
    return {
        "index": manager.index,
        "agents": len(manager.agents),
        "best": max(scores, default=None),
        **manager.diversity(),
    }


def _of_agent(agent: Agent, running: Collection[str]) -> dict[str, Any]:
    order, doing = agent.order, "ended" if agent.has_ended else "waiting"
    if order is not None and order.order_id in running:
        doing = f"training {order.order_id} ({order.begin_step}..{order.end_step})"
    return {
        "agent": agent.index,
        "manager": agent.manager,
        "doing": doing,
        "score": agent.score,
        "strategy": agent.strategy,
    }
