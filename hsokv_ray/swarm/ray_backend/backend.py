"""Workers as Ray actors. Outcomes come here; states stay in the object store and go from actor to actor by reference.

A state that the store has lost is read from disk. Ray itself sends what is smaller than 100 KB along with the outcome.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

from hsokv_ray.errors import HsokvError, RunError
from hsokv_ray.runtime import Demand, PendingWatch
from hsokv_ray.swarm.backends.base import Conclusion, Done, Lost, WorkerLost, most_flops, refusal
from hsokv_ray.swarm.backends.queue import OrderQueue
from hsokv_ray.swarm.learner import Task
from hsokv_ray.swarm.messages import Best, Order, Outcome
from hsokv_ray.swarm.ray_backend.agent_actor import AgentActor
from hsokv_ray.swarm.states import States

MAX_FALSE_STARTS = 3
"""Actors in a row that may end before they are ready."""
_POLL_S = 5.0
"""How often to look whether workers that have no room should be explained."""


@dataclass
class _Agent:
    actor: Any
    name: str = ""
    """ "" before it is ready."""
    holds: str | None = None
    order: Order | None = None
    begun: float = 0.0
    state: Any = None
    """Reference to the state that the order will leave."""
    life: Any = None
    """Reference that fails when the actor ends; waited for while there is no order."""


class RayBackend:
    """Agent actors, owned by this process: they end with it.

    Args:
        task: what is learned.
        states: where results go; on storage that all nodes share.
        num_workers: actors.
        cpus_per_agent: that each reserves; torch uses as many threads, at least one.
    """

    def __init__(self, task: Task, states: States, num_workers: int, *, cpus_per_agent: float = 1.0) -> None:
        self.num_workers = num_workers
        self._task, self._states, self._cpus = task, states, cpus_per_agent
        self._queue = OrderQueue()
        self._agents: dict[str, _Agent] = {}
        """By name, those that are ready."""
        self._pending: dict[Any, _Agent] = {}
        """By reference to what each is doing, or to its life where it does nothing: one per worker."""
        self._references: dict[str, Any] = {}
        """Order -> reference to its state."""
        self._false_starts = 0
        self._watch: PendingWatch | None = None

    def submit(self, order: Order) -> None:
        self._start_all()
        self._queue.add(order)
        self._assign()

    def running(self) -> dict[str, float]:
        return {each.order.order_id: each.begun for each in self._agents.values() if each.order}

    def wait(self, timeout_s: float) -> list[Done | Lost]:
        deadline = time.monotonic() + timeout_s
        while True:
            reports = self._collect(min(max(deadline - time.monotonic(), 0), _POLL_S))
            if self._assign() or reports or time.monotonic() >= deadline:
                return reports

    def forget(self, order_ids: Collection[str]) -> None:
        for order_id in order_ids:
            self._references.pop(order_id, None)

    def conclude(self, best: Best, *, seed: int, folder: str) -> Conclusion:
        if not self._agents and not self._pending:
            self._start()
        self._collect(0)  # notice those that have ended
        while not self._agents:
            self._collect(_POLL_S)
        agent = next(iter(self._agents.values()))
        try:
            answer: Any = ray.get(agent.actor.conclude.remote(best.to_json(), seed, folder))
            return Conclusion(**answer)
        except (RayActorError, OutOfMemoryError) as error:
            self._replace(agent, error)
            raise WorkerLost from None

    def close(self) -> None:
        for agent in {id(each): each for each in (*self._agents.values(), *self._pending.values())}.values():
            ray.kill(agent.actor)
        self._agents.clear()
        self._pending.clear()
        self._references.clear()

    def _start_all(self) -> None:
        if self._watch is None:
            demand = Demand(self.num_workers, cpus_per_worker=self._cpus, data_cpus=0)
            self._watch = PendingWatch(demand)
            for _ in range(self.num_workers):
                self._start()

    def _start(self) -> None:
        threads = max(int(self._cpus), 1)
        actor: Any = AgentActor.options(num_cpus=self._cpus).remote(self._task, str(self._states.folder), threads)
        self._pending[actor.prepare.remote()] = _Agent(actor)

    def _assign(self) -> int:
        """Give orders to free workers; return how many."""
        num_assigned = 0
        while pair := self._queue.next():
            agent = self._agents[pair[0]]
            del self._pending[agent.life]
            agent.order, agent.begun = pair[1], time.time()
            known = self._references.get(pair[1].source) if pair[1].source else None
            self._execute(agent, None if agent.holds == pair[1].source else known)
            num_assigned += 1
        return num_assigned

    def _execute(self, agent: _Agent, source: Any) -> None:
        assert agent.order is not None
        outcome, agent.state = agent.actor.execute.options(num_returns=2).remote(agent.order.to_json(), source)
        self._pending[outcome] = agent

    def _collect(self, timeout_s: float) -> list[Done | Lost]:
        if self._watch is not None and len(self._agents) < self.num_workers:
            self._watch.poll()
        ready, others = ray.wait(list(self._pending), timeout=timeout_s)
        if ready and others:  # what else is ready by now shares one flush of the journal
            ready += ray.wait(others, num_returns=len(others), timeout=0)[0]
        return [report for reference in ready if (report := self._read(reference))]

    def _read(self, reference: Any) -> Done | Lost | None:
        agent = self._pending.pop(reference)
        try:
            message: Any = ray.get(reference)
        except (RayActorError, OutOfMemoryError) as error:
            return self._replace(agent, error)
        except ObjectLostError:
            return self._execute(agent, None)
        except RayTaskError as error:
            if isinstance(error.cause, ObjectLostError):
                return self._execute(agent, None)
            raise _cause(error) from None
        return self._done(agent, message) if agent.order else self._ready(agent, message)

    def _ready(self, agent: _Agent, message: dict[str, Any]) -> None:
        if "refused" in message:
            raise refusal(message)
        agent.name, self._false_starts = message["name"], 0
        agent.life = agent.actor.live.remote()
        self._agents[agent.name] = agent
        self._free(agent)
        if self._watch is not None and len(self._agents) == self.num_workers:
            self._watch.close()

    def _done(self, agent: _Agent, message: dict[str, Any]) -> Done:
        order, agent.order = agent.order, None
        assert order is not None
        outcome = Outcome.from_json(message["outcome"])
        if not outcome.failure:
            self._references[order.order_id] = agent.state
        agent.holds, agent.state = message["holds"], None
        self._free(agent)
        return Done(order, outcome, agent.begun, agent.name)

    def _free(self, agent: _Agent) -> None:
        self._pending[agent.life] = agent
        self._queue.free(agent.name, agent.holds)

    def _replace(self, agent: _Agent, error: RayActorError | OutOfMemoryError) -> Lost | None:
        """Start another worker in place of one that ended, or that cannot be reached."""
        ray.kill(agent.actor)
        self._agents.pop(agent.name, None)
        self._pending.pop(agent.life, None)
        self._queue.remove(agent.name)
        self._false_starts += not agent.name
        why = " ".join(str(error).split())[:300]
        if self._false_starts >= MAX_FALSE_STARTS:
            raise RunError(f"swarm: {self._false_starts} workers in a row ended while starting; the last said: {why}")
        self._start()
        if agent.order is None:
            return None
        return Lost(
            agent.order, most_flops(self._task, agent.order), f"its actor was lost: {why}", agent.begun, agent.name
        )


def _cause(error: RayTaskError) -> HsokvError:
    """Return what went wrong in an actor, as a line for the user."""
    cause = error.cause
    return (
        cause if isinstance(cause, HsokvError) else RunError(f"swarm: a worker failed: {' '.join(str(cause).split())}")
    )
