"""The last events of a swarm, numbered."""

from collections import deque
from typing import Any

from hsokv_ray.swarm.messages import Event, Order


class EventLog:
    """Keeps the newest events; whoever wants them all asks often enough.

    Args:
        room: events kept.
    """

    def __init__(self, room: int) -> None:
        self.num_events = 0
        self._events: deque[Event] = deque(maxlen=room)

    def add(
        self, what: str, *, flops: int, manager: int | None = None, agent: int | None = None,
        order: Order | None = None, **details: Any,
    ) -> None:  # fmt: skip
        """Append an event; `order` gives agent, manager and order where there is one."""
        if order is not None:
            agent, manager = order.agent, order.manager
        order_id = order.order_id if order else None
        self._events.append(Event(self.num_events, what, agent, manager, order_id, flops, details))
        self.num_events += 1

    def since(self, number: int) -> list[Event]:
        """Return the events from `number` on that are still kept, oldest first."""
        num = min(self.num_events - number, len(self._events))
        return [self._events[len(self._events) - num + i] for i in range(max(num, 0))]

    def to_json(self) -> dict[str, Any]:
        """Return what `load` reads."""
        return {"num_events": self.num_events, "events": [event.to_json() for event in self._events]}

    def load(self, values: dict[str, Any]) -> None:
        """Take over what `to_json` returned."""
        self.num_events = values["num_events"]
        self._events.clear()
        self._events.extend(Event.from_json(event) for event in values["events"])
