"""One worker in this process: nothing to start, nothing to lose."""

import os
import socket
import time
from collections.abc import Collection

from hsokv_ray.swarm.backends.base import Conclusion, Done, Lost
from hsokv_ray.swarm.backends.queue import OrderQueue
from hsokv_ray.swarm.backends.worker import Worker
from hsokv_ray.swarm.learner import Task
from hsokv_ray.swarm.messages import Best, Order
from hsokv_ray.swarm.states import States


class LocalBackend:
    """Carries out one order at a time, while it is waited for.

    Args:
        task: what is learned.
        states: where results go.
    """

    num_workers = 1

    def __init__(self, task: Task, states: States) -> None:
        self._task, self._states = task, states
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._worker: Worker | None = None
        self._current: Order | None = None
        self._begun = 0.0
        self._queue = OrderQueue()
        self._queue.free(self._name, None)

    def submit(self, order: Order) -> None:
        self._queue.add(order)
        self._take_next()

    def running(self) -> dict[str, float]:
        return {self._current.order_id: self._begun} if self._current else {}

    def wait(self, timeout_s: float) -> list[Done | Lost]:
        del timeout_s  # it is this thread that works
        worker = self._the_worker()
        if self._current is None:
            return []
        order, self._begun = self._current, time.time()
        outcome, _ = worker.run(order)
        done = Done(order, outcome, self._begun, self._name)
        self._current = None
        self._queue.free(self._name, worker.holds)
        self._take_next()
        return [done]

    def forget(self, order_ids: Collection[str]) -> None:
        del order_ids  # nothing is kept but on disk

    def conclude(self, best: Best, *, seed: int, folder: str) -> Conclusion:
        return self._the_worker().conclude(best, seed=seed, folder=folder)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
        self._worker = None

    def _take_next(self) -> None:
        pair = self._queue.next()
        if pair is not None:
            self._current, self._begun = pair[1], time.time()

    def _the_worker(self) -> Worker:
        if self._worker is None:
            self._worker = Worker(self._task, self._states)
        return self._worker
