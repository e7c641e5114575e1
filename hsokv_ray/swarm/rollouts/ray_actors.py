"""Rollouts by Ray actors; the only file of the rollouts that imports Ray.

An actor plays a whole order per call, so that a call's cost is paid once per thousands of environment steps. The
parameters of a version are put into the object store once and travel as a reference.
"""

from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from hsokv_ray.errors import RunError
from hsokv_ray.runtime import connect
from hsokv_ray.swarm.rollouts.config import RolloutConfig
from hsokv_ray.swarm.rollouts.messages import Done, Lost, Order, Place, Result
from hsokv_ray.swarm.rollouts.roster import Roster
from hsokv_ray.swarm.rollouts.worker import Worker, here

_KEPT_VERSIONS = 8
"""References to parameters held by the driver; one that is needed after that is put anew."""


@ray.remote(max_restarts=-1, max_task_retries=0)
class RolloutActor:
    """A worker behind Ray's calls. The driver hands a lost order out again itself, so Ray does not retry."""

    def __init__(self, config: str, seed: int) -> None:
        self._worker = Worker(RolloutConfig.model_validate_json(config), seed)

    def place(self) -> Place:
        return here()

    def run(self, order: Order, parameters_P: np.ndarray) -> Result:
        return self._worker.run(order, parameters_P)


class RayBackend:
    """Actors; one that dies is started again by Ray, and meanwhile gets no orders.

    Args:
        config: for the workers; `cpus_per_worker` is reserved for each.
        seed: for the workers.
        num_workers: actors.

    Raises:
        RunError: Ray does not answer, or not all actors have started within `config.worker_timeout_s`.
    """

    def __init__(self, config: RolloutConfig, seed: int, num_workers: int) -> None:
        connect()
        self.num_workers = num_workers
        self._roster = Roster(num_workers)
        actor: Any = RolloutActor
        options = {"num_cpus": config.cpus_per_worker}
        self._actors = [actor.options(**options).remote(config.model_dump_json(), seed) for _ in range(num_workers)]
        self._calls: dict[ray.ObjectRef, tuple[int, Order | None]] = {}
        """What was called and not yet answered; no order: whether the actor lives again."""
        self._versions: dict[int, ray.ObjectRef] = {}
        self._parameters: dict[int, np.ndarray] = {}
        try:
            self.places = self._places(config.worker_timeout_s, config.cpus_per_worker)
        except BaseException:
            self.close()
            raise

    def submit(self, order: Order, parameters_P: np.ndarray) -> None:
        """Call the actor that has the fewest orders."""
        self._parameters[order.number] = parameters_P
        self._assign(order)

    def wait(self, timeout_s: float) -> list[Done | Lost]:
        """Return results and losses; everything that is there already in one go."""
        if not self._calls:
            return []
        ray.wait(list(self._calls), num_returns=1, timeout=timeout_s)
        ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        happened: list[Done | Lost] = []
        for ref in ready:
            happened += self._hear(ref)
        return happened

    def kill(self, worker: int) -> None:
        """End the actor's process; Ray starts it again."""
        ray.kill(self._actors[worker], no_restart=False)

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)
        self._calls.clear()

    def _places(self, timeout_s: float, cpus: float) -> tuple[Place, ...]:
        refs = [actor.place.remote() for actor in self._actors]
        started, _ = ray.wait(refs, num_returns=len(refs), timeout=timeout_s)
        if len(started) < len(refs):
            raise RunError(
                f"rollouts: {len(started)} of {len(refs)} workers started within {timeout_s:g} s; each needs {cpus:g} "
                "free CPU of Ray (cpus_per_worker): give fewer workers, or less to each"
            )
        return tuple(ray.get(refs))

    def _assign(self, order: Order) -> None:
        worker = self._roster.assign(order)
        if worker is not None:
            ref = self._actors[worker].run.remote(order, self._version(order))
            self._calls[ref] = (worker, order)

    def _version(self, order: Order) -> ray.ObjectRef:
        if order.version not in self._versions:
            self._versions[order.version] = ray.put(self._parameters[order.number])
        if len(self._versions) > _KEPT_VERSIONS:
            del self._versions[next(version for version in self._versions if version != order.version)]
        return self._versions[order.version]

    def _hear(self, ref: ray.ObjectRef) -> list[Done | Lost]:
        if ref not in self._calls:  # its worker's death has been heard of in this round
            return []
        worker, order = self._calls.pop(ref)
        try:
            answer = ray.get(ref)
        except RayTaskError as error:
            cause = " ".join(str(error.cause).split())[:300]
            raise RunError(f"rollouts: worker {worker} failed: {cause}") from error
        except RayActorError as error:
            return self._lose(worker, " ".join(str(error).split())[:300])
        if order is None:
            for waiting in self._roster.lives(worker):
                self._assign(waiting)
            return []
        self._roster.done(worker, order.number)
        self._parameters.pop(order.number, None)
        return [Done(answer, worker)]

    def _lose(self, worker: int, why: str) -> list[Done | Lost]:
        """Give up the worker's calls, whose answers would come from before its death; ask whether it lives again."""
        self._calls = {ref: call for ref, call in self._calls.items() if call[0] != worker}
        lost = self._roster.died(worker)
        if self._roster.may_restart(worker):
            self._calls[self._actors[worker].place.remote()] = (worker, None)
        return [Lost(lost, worker, why)]


def cluster_cpus() -> int:
    """Return the CPUs of the cluster; on one machine, no more than it really has, whatever Ray was told."""
    connect()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    told = int(sum(node["Resources"].get("CPU", 0) for node in nodes))
    return max(1, min(told, here().num_cpus) if len(nodes) == 1 else told)
