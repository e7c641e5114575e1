"""Which worker gets which order: first come, first served; a worker that holds the source is preferred."""

from collections import deque
from itertools import chain, islice

from hsokv_ray.swarm.messages import Order


class OrderQueue:
    """Orders that wait, and workers that are free. An order waits only while no worker is free."""

    def __init__(self) -> None:
        self._repeated: deque[Order] = deque()
        self._first: deque[Order] = deque()
        self._free: dict[str, str | None] = {}
        """Worker -> the order whose result it holds; longest free first."""

    def __len__(self) -> int:
        return len(self._repeated) + len(self._first)

    def add(self, order: Order) -> None:
        """Append an order; one that is handed out again has waited before, so it goes before the others."""
        (self._repeated if order.attempt > 1 else self._first).append(order)

    def free(self, worker: str, holds: str | None) -> None:
        """Note that a worker can take an order, and whose result it holds."""
        self._free[worker] = holds

    def remove(self, worker: str) -> None:
        """Note that a worker is gone."""
        self._free.pop(worker, None)

    def next(self) -> tuple[str, Order] | None:
        """Return the next order and its worker, which is free no more; None where either is lacking."""
        if not self._free or not len(self):
            return None
        order = (self._repeated or self._first).popleft()
        worker = self._worker_for(order)
        del self._free[worker]
        return worker, order

    def _worker_for(self, order: Order) -> str:
        holders = (worker for worker, holds in self._free.items() if holds is not None and holds == order.source)
        holder = next(holders, None)
        if holder is not None:
            return holder
        waiting = islice(chain(self._repeated, self._first), len(self._free))
        wanted = {each.source for each in waiting}  # by those who come next: leave these workers to them
        unwanted = (worker for worker, holds in self._free.items() if holds is None or holds not in wanted)
        return next(unwanted, next(iter(self._free)))
