"""What distribution is worth: speed-up, wasted work, time to the target, recovery, and random search beside it.

    report = run_distributed(RolloutConfig(), folder=Path("runs/cartpole"), backend="ray")

For every seed, and for every number of workers in turn, so that what slows the machine slows them all:

1. a training until the target return;
2. the same loop on `scaling_orders` fixed orders around the policy that one worker had found: the very same environment
   steps for every number of workers, so that the ratio of times is the speed-up;
3. with the most workers, these orders once more, with a worker killed on the way.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hsokv_ray.swarm.rollouts.baseline import RandomSearch, random_search, returns_on_test
from hsokv_ray.swarm.rollouts.config import RolloutConfig
from hsokv_ray.swarm.rollouts.local import LocalBackend
from hsokv_ray.swarm.rollouts.messages import Backend, Place
from hsokv_ray.swarm.rollouts.policy import make_policy
from hsokv_ray.swarm.rollouts.processes import ProcessBackend
from hsokv_ray.swarm.rollouts.reports import TrainingReport
from hsokv_ray.swarm.rollouts.tables import (
    RecoveryRow,
    Run,
    ScalingRow,
    TrainingRow,
    plain,
    recovery_row,
    scaling_row,
    training_row,
)
from hsokv_ray.swarm.rollouts.training import Training
from hsokv_ray.swarm.rollouts.worker import here

BackendName = Literal["ray", "multiprocessing", "local"]
FILE = "distributed.json"
DEFAULT_COUNTS = (1, 2, 4)


@dataclass(frozen=True)
class DistributedReport:
    """All figures; intervals are over seeds, 95 %."""

    backend: str
    config: dict[str, object]
    num_cpus: int
    """CPUs of all machines that workers ran on."""
    places: tuple[Place, ...]
    """Of the most workers, when they were started."""
    seeds: tuple[int, ...]
    scaling: tuple[ScalingRow, ...]
    training: tuple[TrainingRow, ...]
    recovery: RecoveryRow | None
    """None: the backend has no worker that could be killed."""
    random_search: tuple[RandomSearch, ...]
    """One per seed, each with as many episodes as one worker's training had."""
    notes: tuple[str, ...]
    """What the figures do not say by themselves."""


def run_distributed(
    config: RolloutConfig,
    *,
    folder: Path,
    backend: BackendName,
    on_progress: Callable[[str], None] | None = None,
) -> DistributedReport:
    """Measure, and write the report to `folder`/distributed.json.

    Args:
        config: what is trained, on how many workers, how often.
        folder: made where it does not exist.
        backend: who plays the episodes.
        on_progress: told what is being run, a line each.

    Raises:
        ConfigError: more workers than the staleness allows.
        RunError: workers do not start, or all of them are lost.
    """
    counts, notes = worker_counts(config, backend)
    for count in counts:
        config.check_staleness(count)
    folder.mkdir(parents=True, exist_ok=True)
    study = _Study(config, backend, on_progress or (lambda line: None))
    seeds = tuple(range(config.seed, config.seed + config.num_seeds))
    for seed in seeds:
        study.run(seed, counts)
    report = study.report(seeds, counts, notes)
    text = json.dumps(plain(asdict(report)), indent=1, allow_nan=False)
    temporary = folder / (FILE + ".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(folder / FILE)
    return report


def make_backend(name: BackendName, config: RolloutConfig, *, seed: int, num_workers: int) -> Backend:
    """Start the workers of a backend; its `close` ends them."""
    if name == "local":
        return LocalBackend(config, seed)
    if name == "multiprocessing":
        return ProcessBackend(config, seed, num_workers)
    from hsokv_ray.swarm.rollouts.ray_actors import RayBackend  # here: the others need no Ray

    return RayBackend(config, seed, num_workers)


def worker_counts(config: RolloutConfig, backend: BackendName) -> tuple[tuple[int, ...], list[str]]:
    """Return the numbers of workers to compare, 1 first, and what has to be said about them."""
    if backend == "local":
        return (1,), ["backend local has one worker, in the driver's own process: there is no speed-up to measure"]
    if config.num_workers is not None:
        return tuple(sorted({1, *config.num_workers})), []
    num_cpus = here().num_cpus if backend == "multiprocessing" else _cpus_of_ray()
    counts = tuple(count for count in DEFAULT_COUNTS if count == 1 or count <= num_cpus)
    left_out = [count for count in DEFAULT_COUNTS if count not in counts]
    return counts, [f"{num_cpus} CPUs: left out {left_out} workers, which would share cores"] if left_out else []


def share_cores(places: Sequence[Place]) -> bool:
    """Whether a machine runs more workers than it has CPUs for them."""
    cpus = {place.host: place.num_cpus for place in places}
    return any(num > cpus[host] for host, num in Counter(place.host for place in places).items())


def _cpus_of_ray() -> int:
    from hsokv_ray.swarm.rollouts.ray_actors import cluster_cpus

    return cluster_cpus()


class _Study:
    """The runs of all seeds."""

    def __init__(self, config: RolloutConfig, backend: BackendName, say: Callable[[str], None]) -> None:
        self._config, self._say = config, say
        self._name: BackendName = backend
        self._trainings: list[Run] = []
        self._scalings: list[Run] = []
        self._killed: list[Run] = []
        self._searches: list[RandomSearch] = []

    def run(self, seed: int, counts: Sequence[int]) -> None:
        """Do the three measurements and random search with one seed."""
        for count in counts:
            self._trainings.append(self._train(seed, count))
        one = next(run for run in self._trainings if run.report.seed == seed and run.report.num_workers == 1).report
        for count in counts:
            self._scalings.append(self._scale(one, count))
        if self._name != "local":
            self._killed.append(self._scale(one, counts[-1], kill_after=self._config.kill_after))
        self._say(f"seed {seed}: random search with {one.episodes} episodes")
        self._searches.append(random_search(self._config, seed=seed, num_episodes=one.episodes))

    def report(self, seeds: tuple[int, ...], counts: Sequence[int], notes: list[str]) -> DistributedReport:
        """Make tables of the runs."""
        places = self._scalings[-1].places
        shared = [count for count in counts if any(r.shares_cores for r in self._scalings if r.num_workers == count)]
        if shared:
            notes = [*notes, f"{shared} workers shared cores with each other: no speed-up is given for them"]
        return DistributedReport(
            backend=self._name,
            config=self._config.model_dump(mode="json"),
            num_cpus=sum({place.host: place.num_cpus for place in places}.values()),
            places=places,
            seeds=seeds,
            scaling=tuple(scaling_row(self._scalings, count) for count in counts),
            training=tuple(training_row(self._trainings, count) for count in counts),
            recovery=recovery_row(self._killed, self._scalings) if self._killed else None,
            random_search=tuple(self._searches),
            notes=tuple(notes),
        )

    def _train(self, seed: int, count: int) -> Run:
        self._say(f"seed {seed}: {count} workers until a mean return of {self._config.target_return:g}")
        report, places = self._go(seed, count)
        returns = returns_on_test(self._config, make_policy(self._config), np.array(report.parameters), seed=seed)
        return Run(report, places, share_cores(places), test_return=float(returns.mean()))

    def _scale(self, one: TrainingReport, count: int, kill_after: int | None = None) -> Run:
        killing = "" if kill_after is None else f", a worker killed after {kill_after}"
        self._say(f"seed {one.seed}: {count} workers, {self._config.scaling_orders} fixed orders{killing}")
        fixed = {"parameters_P": np.array(one.parameters), "num_orders": self._config.scaling_orders}
        report, places = self._go(one.seed, count, **fixed, kill_after=kill_after)
        return Run(report, places, share_cores(places))

    def _go(self, seed: int, count: int, **options: object) -> tuple[TrainingReport, tuple[Place, ...]]:
        backend = make_backend(self._name, self._config, seed=seed, num_workers=count)
        try:
            return Training(self._config, backend, seed=seed, **options).run(), backend.places  # pyright: ignore
        finally:
            backend.close()
