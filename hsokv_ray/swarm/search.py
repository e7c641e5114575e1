"""One call that searches, wherever the training happens.

    summary = search(task, SwarmConfig(max_steps=200), folder="~/hsokv_runs/words", backend="ray")
    summary.best.strategy

Called with `resume=True` it goes on with what is in the folder, whatever ended the last driver, on any backend.
A script that uses backend "multiprocessing" needs `if __name__ == "__main__":` around its call.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from hsokv_ray.errors import ConfigError
from hsokv_ray.swarm.backends.base import Backend
from hsokv_ray.swarm.backends.local import LocalBackend
from hsokv_ray.swarm.backends.processes import ProcessBackend
from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.drive import Drive
from hsokv_ray.swarm.learner import Task
from hsokv_ray.swarm.run_folder import SearchFolder, describe
from hsokv_ray.swarm.states import States
from hsokv_ray.swarm.status import Status, Watcher
from hsokv_ray.swarm.summary import Summary
from hsokv_ray.swarm.swarm import Swarm

BackendName = Literal["ray", "multiprocessing", "local"]
STATUS_EVERY_S = 1.0


def search(
    task: Task,
    config: SwarmConfig,
    *,
    folder: str | Path,
    seed: int = 0,
    backend: BackendName = "ray",
    num_workers: int | None = None,
    cpus_per_agent: float = 1.0,
    watchers: Sequence[Watcher] = (),
    on_status: Callable[[Status], None] | None = None,
    resume: bool = False,
    on_claim: Callable[[], None] | None = None,
) -> Summary:
    """Search strategies for `task`; return the best one, tested once.

    Args:
        task: what is learned.
        config: who searches how, and for how many FLOPs.
        folder: of the run.
        seed: reproduces the decisions, as far as the outcomes come in the same order.
        backend: ray: actors of the cluster. multiprocessing: processes of this machine. local: this process.
        num_workers: models trained at a time; None: as many as there are CPUs for. More agents than that wait.
        cpus_per_agent: CPUs of a worker; torch uses as many threads, at least one.
        watchers: are told what happens from now on.
        on_status: called about once a second, from another thread than this one where the backend is not Ray.
        resume: go on with the search in `folder`.
        on_claim: called once the search may begin or go on, before the folder holds one; see `SearchFolder.claim`.

    Raises:
        ConfigError: the budget is too small for one step, the folder holds another search, or none to resume.
        DataError: a worker found no data.
        RunError: the folder is held by another process, the cluster has no room, all agents of a manager failed
            again and again. What was done stays in the folder.
    """
    refuse_early(task, config, folder, seed, resume=resume, num_workers=num_workers, cpus_per_agent=cpus_per_agent)
    try:
        if backend == "ray":
            return _on_ray(
                task, config, folder, seed, num_workers, cpus_per_agent, watchers, on_status, resume, on_claim
            )
        states = States(SearchFolder(folder).states)
        workers = _backend(backend, task, states, config.num_agents, num_workers, cpus_per_agent)
        _say_if_shared(config.num_agents, workers.num_workers)
        drive = Drive(task, config, folder, workers, seed=seed, watchers=watchers, resume=resume, on_claim=on_claim)
        with _reporting(drive, on_status):
            return drive.run()
    except KeyboardInterrupt:
        _say(f"stopped; {SearchFolder(folder).resume_command} goes on with it")
        raise


def refuse_early(
    task: Task, config: SwarmConfig, folder: str | Path, seed: int, *,
    resume: bool, num_workers: int | None, cpus_per_agent: float,
) -> None:  # fmt: skip
    """Raise `ConfigError` for what can be known before anything is made or started."""
    if num_workers is not None and num_workers < 1:
        raise ConfigError(f"--num-workers: got {num_workers}; at least 1 is needed")
    if cpus_per_agent <= 0:
        raise ConfigError(f"--cpus-per-agent: got {cpus_per_agent:g}; above 0 is needed")
    Swarm(task.space, config, seed=seed, cost=task.cost)
    SearchFolder(folder).check(describe(task, config, seed), resume=resume)


def _on_ray(
    task: Task, config: SwarmConfig, folder: str | Path, seed: int, num_workers: int | None, cpus_per_agent: float,
    watchers: Sequence[Watcher], on_status: Callable[[Status], None] | None, resume: bool,
    on_claim: Callable[[], None] | None,
) -> Summary:  # fmt: skip
    from hsokv_ray.swarm.ray_backend.driver import drive_on_ray, place  # here: nothing else needs ray
    from hsokv_ray.swarm.ray_backend.supervisor_actor import Plan

    workers = place(config.num_agents, num_workers, cpus_per_agent)
    _say_if_shared(config.num_agents, workers)
    plan = Plan(task, config, str(SearchFolder(folder).path), seed, workers, cpus_per_agent)
    return drive_on_ray(plan, resume=resume, watchers=watchers, on_status=on_status, on_claim=on_claim)


def _backend(
    name: BackendName, task: Task, states: States, num_agents: int, num_workers: int | None, cpus_per_agent: float
) -> Backend:
    if name == "local":
        return LocalBackend(task, states)
    if name != "multiprocessing":
        raise ConfigError(f"--distributed-backend: got {name!r}; ray, multiprocessing or local is needed")
    fitting = max(int((os.cpu_count() or 1) / cpus_per_agent), 1)
    workers = min(num_workers or fitting, num_agents)
    return ProcessBackend(task, states, workers, threads=max(int(cpus_per_agent), 1))


@contextlib.contextmanager
def _reporting(drive: Drive, on_status: Callable[[Status], None] | None) -> Iterator[None]:
    """Call `on_status` once a second while the body runs, and once after it; what it raises ends the search."""
    if on_status is None:
        yield
        return
    ended, errors = threading.Event(), []

    def report() -> None:
        try:
            while not ended.wait(STATUS_EVERY_S):
                on_status(drive.status())
        except Exception as error:
            errors.append(error)
            drive.stop()

    thread = threading.Thread(target=report, name="status", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if errors:
            raise errors[0]
        on_status(drive.status())


def _say_if_shared(num_agents: int, num_workers: int) -> None:
    if num_agents > num_workers:
        _say(
            f"{num_agents} agents share {num_workers} workers; the others wait their turn "
            "(--num-workers and --cpus-per-agent decide how many there are)"
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
