"""Which worker has which orders, and which workers live. Pure: backends tell it what they see."""

from collections import deque

from hsokv_ray.errors import RunError
from hsokv_ray.swarm.rollouts.messages import Order

MAX_DEATHS = 3
"""Deaths in a row, without a result between them, after which a worker is not started again."""


class Roster:
    """Orders by worker. Orders handed out while nobody lives wait in `queue`.

    Args:
        num_workers: all of which live at first.
    """

    def __init__(self, num_workers: int) -> None:
        self.orders: list[dict[int, Order]] = [{} for _ in range(num_workers)]
        self.living = set(range(num_workers))
        self.queue: deque[Order] = deque()
        self._deaths = [0] * num_workers

    def assign(self, order: Order) -> int | None:
        """Give the order to the living worker that has the fewest; None: it was queued."""
        if not self.living:
            self.queue.append(order)
            return None
        worker = min(self.living, key=lambda each: (len(self.orders[each]), each))
        self.orders[worker][order.number] = order
        return worker

    def done(self, worker: int, number: int) -> None:
        """The worker has answered an order."""
        del self.orders[worker][number]
        self._deaths[worker] = 0

    def died(self, worker: int) -> tuple[Order, ...]:
        """The worker is dead; return the orders that died with it.

        Raises:
            RunError: it was the last one that is started again.
        """
        self.living.discard(worker)
        self._deaths[worker] += 1
        if all(deaths >= MAX_DEATHS for deaths in self._deaths):
            raise RunError(
                f"rollouts: every worker died {MAX_DEATHS} times in a row without a result; see their logs, and "
                "whether the machine has memory for them"
            )
        lost = tuple(self.orders[worker].values())
        self.orders[worker] = {}
        return lost

    def may_restart(self, worker: int) -> bool:
        """Whether the worker has not died too often in a row."""
        return self._deaths[worker] < MAX_DEATHS

    def lives(self, worker: int) -> list[Order]:
        """The worker lives again; return the orders that waited and are now to be assigned."""
        self.living.add(worker)
        waiting = list(self.queue)
        self.queue.clear()
        return waiting
