"""The actor that trains: one learner, one order at a time."""

import dataclasses
import os
import socket
import threading
from typing import Any

import ray
import torch

from hsokv_ray.swarm.backends.worker import Worker
from hsokv_ray.swarm.execution import one_line
from hsokv_ray.swarm.learner import Task
from hsokv_ray.swarm.messages import Best, Order
from hsokv_ray.swarm.states import States

# What a lost worker was doing is for the swarm to decide, not for Ray to repeat.
_OPTIONS: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0, "concurrency_groups": {"life": 1}}


@ray.remote(**_OPTIONS)
class AgentActor:
    """A worker of the swarm.

    Args:
        task: makes the learner, in `prepare`.
        folder: of the states; on storage that all nodes share.
        threads: of torch.
    """

    def __init__(self, task: Task, folder: str, threads: int) -> None:
        self._task, self._folder, self._threads = task, folder, threads
        self._worker: Worker | None = None

    def prepare(self) -> dict[str, Any]:
        """Make the learner; return who answers here, or why there is none."""
        torch.set_num_threads(self._threads)
        try:
            self._worker = Worker(self._task, States(self._folder))
        except Exception as error:
            return {"refused": one_line(error), "kind": type(error).__name__}
        return {"name": f"{socket.gethostname()}:{os.getpid()}", "threads": torch.get_num_threads()}

    def execute(self, order: dict[str, Any], source: bytes | None) -> tuple[dict[str, Any], bytes | None]:
        """Carry out an order; return the outcome, and apart from it the state, which stays in the object store.

        Args:
            order: as JSON.
            source: the state to begin from, handed over as a reference; None: this worker has it, or the disk.
        """
        assert self._worker is not None, "prepare() comes first"
        outcome, data = self._worker.run(Order.from_json(order), source)
        return {"outcome": outcome.to_json(), "holds": self._worker.holds}, data

    @ray.method(concurrency_group="life")
    def live(self) -> None:
        """Never return: a reference to this fails as soon as the actor has ended, busy or not."""
        threading.Event().wait()

    def conclude(self, best: dict[str, Any], seed: int, folder: str) -> dict[str, Any]:
        """Test and save the best model."""
        assert self._worker is not None, "prepare() comes first"
        return dataclasses.asdict(self._worker.conclude(Best.from_json(best), seed=seed, folder=folder))
