"""Rollouts in this process, one order at a time: for tests, and as the program without any distribution."""

from collections import deque

import numpy as np

from hsokv_ray.errors import RunError
from hsokv_ray.swarm.rollouts.config import RolloutConfig
from hsokv_ray.swarm.rollouts.messages import Done, Lost, Order, Place
from hsokv_ray.swarm.rollouts.worker import Worker, here


class LocalBackend:
    """One worker, which plays while the driver waits.

    Args:
        config: for the worker.
        seed: for the worker.
    """

    num_workers = 1

    def __init__(self, config: RolloutConfig, seed: int) -> None:
        self._worker = Worker(config, seed)
        self._queue: deque[tuple[Order, np.ndarray]] = deque()

    @property
    def places(self) -> tuple[Place, ...]:
        """This process."""
        return (here(),)

    def submit(self, order: Order, parameters_P: np.ndarray) -> None:
        """Queue an order."""
        self._queue.append((order, parameters_P))

    def wait(self, timeout_s: float) -> list[Done | Lost]:
        """Carry out the oldest order, however long it takes."""
        return [Done(self._worker.run(*self._queue.popleft()), worker=0)] if self._queue else []

    def kill(self, worker: int) -> None:
        """Refused: the worker is this process. Raises `RunError`."""
        raise RunError("backend local: its worker is this process and cannot be killed; use ray or multiprocessing")

    def close(self) -> None:
        """Forget what was queued."""
        self._queue.clear()
