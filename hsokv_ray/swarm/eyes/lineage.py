"""Where models come from: which order began from which other one's result.

    lineage = Lineage(record)
    lineage.line("a3.17")            # ["a0.1", "a0.2", "a3.17"]: from the fresh model on
    lineage.copies()                 # where a model went to another agent

A model's family is named after the order that began it as a fresh one.
"""

from dataclasses import dataclass

from hsokv_ray.swarm.eyes.record import Record
from hsokv_ray.swarm.eyes.text import strategy_text

TAKEN = ("copied", "migrated", "resampled", "promoted")
"""Events by which an agent may go on with another one's model."""


@dataclass(frozen=True)
class Copy:
    """A model that went from one agent to another."""

    source: str
    order: str
    """The first one of the agent that took it over."""
    what: str
    """copied, migrated, resampled or promoted; "" where the event is not on disk."""


class Lineage:
    """The forest of orders.

    Args:
        record: orders are those told, lost or planned, so a run that goes on has lines that end in an order without
            an outcome.
    """

    def __init__(self, record: Record) -> None:
        self.sources: dict[str, str | None] = {
            event.order_id: event.details["source"]
            for event in record.events
            if event.order_id is not None and "source" in event.details
        }
        self.sources |= {each.order.order_id: each.order.source for each in [*record.told, *record.lost]}
        self._what = {event.order_id: event.what for event in record.events if event.what in TAKEN}
        self._families: dict[str, str] = {}

    def line(self, order: str) -> list[str]:
        """Return the orders that made the model `order` left, oldest first, `order` last."""
        line = [order]
        while (source := self.sources.get(line[-1])) is not None:
            line.append(source)
        return line[::-1]

    def family(self, order: str) -> str:
        """Return the order that began this model as a fresh one."""
        line = []
        while order not in self._families and (source := self.sources.get(order)) is not None:
            line.append(order)
            order = source
        family = self._families.setdefault(order, order)
        self._families.update(dict.fromkeys(line, family))
        return family

    def copies(self) -> list[Copy]:
        """Return where models changed their agent, in the order they were planned."""
        return [
            Copy(source, order, self._what.get(order, ""))
            for order, source in self.sources.items()
            if source is not None and agent_of(source) != agent_of(order)
        ]

    def families(self) -> dict[str, list[str]]:
        """Return each family's orders, families in the order they began."""
        families: dict[str, list[str]] = {}
        for order in self.sources:
            families.setdefault(self.family(order), []).append(order)
        return families


def agent_of(order: str) -> int:
    """Return the agent of an order: 3 of "a3.17"."""
    return int(order[1 : order.index(".")])


def describe(record: Record, lineage: Lineage, order: str) -> str:
    """Return the line of a model as Markdown, one row per order: who, from which step to which, score, what changed."""
    rows = ["| order | steps | score | strategy |", "|---|---|---|---|"]
    before: dict[str, object] = {}
    for order_id in lineage.line(order):
        told = record.by_id.get(order_id)
        if told is None:
            rows.append(f"| {order_id} | | | |")
            continue
        changed = {name: value for name, value in told.order.strategy.items() if before.get(name) != value}
        steps = f"{told.order.begin_step} to {told.order.end_step}"
        rows.append(f"| {order_id} | {steps} | {told.score:.4g} | {strategy_text(changed)} |")
        before = told.order.strategy
    return "\n".join(rows)
