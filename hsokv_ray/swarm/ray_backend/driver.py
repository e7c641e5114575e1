"""The driver's side of a search on Ray: start the supervisor, pass on what happens, end it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from hsokv_ray.errors import HsokvError, RunError
from hsokv_ray.runtime import NAMESPACE, Demand, connect, preflight, read_supply
from hsokv_ray.swarm.journal import Follower
from hsokv_ray.swarm.messages import Event
from hsokv_ray.swarm.ray_backend.supervisor_actor import Plan, SupervisorActor, supervisor_name
from hsokv_ray.swarm.run_folder import SearchFolder, describe
from hsokv_ray.swarm.status import Status, Watcher
from hsokv_ray.swarm.summary import Summary

LOOK_S = 1.0
"""Seconds from one look at the supervisor to the next."""
STOP_S = 30.0
"""For a stopped supervisor to write its snapshot."""


def drive_on_ray(
    plan: Plan,
    *,
    resume: bool,
    watchers: Sequence[Watcher] = (),
    on_status: Callable[[Status], None] | None = None,
    on_claim: Callable[[], None] | None = None,
) -> Summary:
    """Have a supervisor carry out `plan`, while the watchers here are told what its files say.

    Args:
        plan: what to do.
        resume, watchers, on_status, on_claim: see `hsokv_ray.swarm.search.search`.

    Raises:
        RunError: the run has a supervisor already; and as `Drive.run`.
    """
    folder = SearchFolder(plan.folder)
    name = supervisor_name(folder.path)

    def accept() -> None:
        if _is_at_work(name):
            raise _at_work(folder)
        if on_claim is not None:
            on_claim()

    with folder.claim(describe(plan.task, plan.config, plan.seed), resume=resume, on_claim=accept):
        pass  # from here on there is a search to resume: all that the supervisor does, in each of its lives
    watch = _Watch(folder, watchers)
    try:
        supervisor: Any = SupervisorActor.options(name=name, namespace=NAMESPACE).remote(plan)
    except ValueError:  # another driver was faster
        raise _at_work(folder) from None
    try:
        summary = _follow(supervisor, watch, on_status)
    finally:
        ray.kill(supervisor)
        watch.close()
    return summary


def place(num_agents: int, num_workers: int | None, cpus_per_agent: float) -> int:
    """Connect, and return the number of workers: what was asked for, else as many as fit, at most one per agent.

    Raises:
        RunError: they do not fit; says what was asked and what there is.
    """
    connect()
    demand = Demand(min(num_workers or 1, num_agents), cpus_per_worker=cpus_per_agent, data_cpus=0)
    if num_workers is None:
        fitting = sum(node.holds(demand) for node in read_supply().nodes)
        demand = replace(demand, num_workers=max(min(fitting, num_agents), 1))
    return preflight(demand).num_workers


def _is_at_work(name: str) -> bool:
    try:
        ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return False
    return True


def _at_work(folder: SearchFolder) -> RunError:
    return RunError(f"a supervisor of {folder.path} is at work on this cluster; wait for it, or give another --name")


def _follow(supervisor: Any, watch: "_Watch", on_status: Callable[[Status], None] | None) -> Summary:
    end = supervisor.run.remote()
    try:
        while not ray.wait([end], timeout=LOOK_S)[0]:
            watch.look()
            if on_status and (status := _status(supervisor)):
                on_status(status)
        watch.look()
        if on_status and (status := _status(supervisor)):
            on_status(status)
        return Summary.from_json(ray.get(end))
    except RayTaskError as error:
        cause = error.cause
        raise cause if isinstance(cause, HsokvError) else RunError(f"swarm: {' '.join(str(cause).split())}") from None
    except RayActorError as error:
        raise RunError(f"swarm: the supervisor was lost ({' '.join(str(error).split())[:300]})") from None
    except KeyboardInterrupt:
        supervisor.stop.remote()
        ray.wait([end], timeout=STOP_S)
        raise


def _status(supervisor: Any) -> Status | None:
    """Return the supervisor's status; None while it is being started."""
    answer = supervisor.status.remote()
    ready, _ = ray.wait([answer], timeout=LOOK_S)
    return ray.get(answer) if ready else None


class _Watch:
    """Tells watchers of this process what the supervisor's files say, each line once."""

    def __init__(self, folder: SearchFolder, watchers: Sequence[Watcher]) -> None:
        self._watchers = watchers
        self._journal, self._events = Follower(folder.journal), Follower(folder.events)

    def look(self) -> None:
        if not self._watchers:
            return
        records, events = self._journal.read(), self._events.read()
        for watcher in self._watchers:
            for record in records:
                watcher.told(record)
            for values in events:
                watcher.happened(Event.from_json({key: value for key, value in values.items() if key != "time"}))

    def close(self) -> None:
        for watcher in self._watchers:
            watcher.close()
