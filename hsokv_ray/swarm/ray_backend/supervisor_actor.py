"""The actor that drives a search. Managers and agents' records are plain objects in it: an actor for each would add a
remote call to every decision, of which one process makes thousands per second.

Killed, it is started again by Ray and goes on from the run folder by itself; its agent actors end with it and are
started anew. It ends with the driver that called `search`.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.drive import Drive
from hsokv_ray.swarm.learner import Task
from hsokv_ray.swarm.ray_backend.backend import RayBackend
from hsokv_ray.swarm.run_folder import SearchFolder
from hsokv_ray.swarm.states import States
from hsokv_ray.swarm.status import Status


@dataclass(frozen=True)
class Plan:
    """What a supervisor is to do; small, because Ray keeps it for restarts."""

    task: Task
    config: SwarmConfig
    folder: str
    """Of the run; on storage that all nodes share."""
    seed: int
    num_workers: int
    cpus_per_agent: float


_OPTIONS: dict[str, Any] = {
    "num_cpus": 0,
    "max_restarts": -1,
    "max_task_retries": -1,
    "concurrency_groups": {"look": 2},
}


@ray.remote(**_OPTIONS)
class SupervisorActor:
    """A `Drive` whose workers are actors.

    Args:
        plan: what to do.
    """

    def __init__(self, plan: Plan) -> None:
        folder = SearchFolder(plan.folder)
        backend = RayBackend(plan.task, States(folder.states), plan.num_workers, cpus_per_agent=plan.cpus_per_agent)
        self._drive = Drive(
            plan.task,
            plan.config,
            folder.path,
            backend,
            seed=plan.seed,
            resume=True,  # whoever made this actor has claimed the folder once
        )

    def run(self) -> dict[str, Any]:
        """Search to the end; return the summary as JSON."""
        return self._drive.run().to_json()

    @ray.method(concurrency_group="look")
    def status(self) -> Status:
        """Return how things stand; answers while `run` runs."""
        return self._drive.status()

    @ray.method(concurrency_group="look")
    def stop(self) -> None:
        """Make `run` end soon; what there is can be resumed."""
        self._drive.stop()

    @ray.method(concurrency_group="look")
    def pid(self) -> int:
        """Return this process."""
        return os.getpid()


def supervisor_name(folder: Path) -> str:
    """Return the name under which the supervisor of a run is found, in namespace `hsokv`.

    Args:
        folder: the run's, absolute. Runs of one name in two output folders have a supervisor each.
    """
    digest = hashlib.blake2b(str(folder).encode(), digest_size=4).hexdigest()
    return f"swarm/{folder.name}-{digest}"
