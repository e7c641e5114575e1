"""Population based training by Ray Tune's own PBT and PB2, on the lab's terms: the same models, steps and evaluations.

A trial is an agent of the population. They take turns in one process that is kept (`reuse_actors`), as Ray has one CPU:
PBT pauses a trial at every decision as long as others wait, and would start a process each time. Settings are those of
Ray Tune's documentation: a quarter is copied and a quarter resampled, factors 0.8 and 1.2. PB2 (arXiv:2002.02518) moves
numbers only; choices stay as drawn.

Every trial trains the same number of intervals, whatever iteration a copied checkpoint says it is at, and writes what
it did into a file of its own: Tune's tables lack some rows of trials that were copied over.
"""

import json
import math
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
from live_lab import EqualSteps, Found
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers.pb2 import PB2

from hsokv_ray.swarm.comparison import headline
from hsokv_ray.swarm.learner import State
from hsokv_ray.swarm.space import Choice, Float, Int, LogFloat, LogInt, Space
from hsokv_ray.swarm.states import pack, unpack


def population_search(
    kind: Literal["PBT", "PB2"], task: EqualSteps, *, seed: int, agents: int, total_steps: int, interval: int
) -> Found:
    """Run one search of `agents` x `total_steps` steps; return what it found."""
    task = task.of_steps(total_steps)
    random.seed(seed)  # PBT and PB2 draw from these
    np.random.seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        work.mkdir()
        trial = tune.with_parameters(Trial, task=task, interval=interval, seed=seed, work=str(work))
        tuner = tune.Tuner(
            tune.with_resources(trial, {"CPU": 1}),
            param_space=distributions(task.space),
            tune_config=tune.TuneConfig(
                metric="score", mode="max", num_samples=agents, scheduler=_scheduler(kind, task.space, seed),
                search_alg=tune.search.BasicVariantGenerator(random_state=seed),
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=f"{kind}-{seed}", storage_path=folder, stop=Intervals(total_steps // interval), verbose=0
            ),
        )  # fmt: skip
        tuner.fit()
        done = [json.loads(line) for path in work.glob("*.jsonl") for line in path.read_text().splitlines()]
        assert len(done) == agents * total_steps // interval, "a search spent another budget than it was given"
        best = max(done, key=lambda each: each["score"])
        learner = task.learner()
        learner.configure(best["strategy"], seed=seed)
        learner.load(_read(Path(best["path"])))
        flops = sum(each["flops"] for each in done)
        return Found(
            best["score"], headline(learner.test())[1], flops, interval * len(done), _curve(done, interval)
        )  # fmt: skip


class Intervals(tune.Stopper):
    """Stops a trial after that many reports of its own; a copied checkpoint brings the other trial's iteration."""

    def __init__(self, number: int) -> None:
        self._number, self._reports = number, Counter[str]()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self._reports[trial_id] += 1
        return self._reports[trial_id] >= self._number

    def stop_all(self) -> bool:
        return False


FAILED_SCORE = -1e9
"""Of a model that diverged: below any score, and a finite number, which PB2's regression needs."""


class Trial(tune.Trainable):
    """A learner as a trial; writes a line per interval, and its best model, into the folder `work`."""

    def setup(self, config: dict[str, Any], *, task: EqualSteps, interval: int, seed: int, work: str) -> None:
        import torch

        torch.set_num_threads(1)
        torch.get_num_threads()
        self.learner, self.interval, self.search_seed, self.work = task.learner(), interval, seed, Path(work)
        self._begin(config)

    def step(self) -> dict[str, Any]:
        before, strategy = self.learner.flops, _plain(self.config)
        self.learner.configure(strategy, seed=self._seed(len(self.done)))
        try:
            self.learner.train(self.interval)
            score = float(self.learner.evaluate()["score"])
        except Exception as error:  # a diverged model is worth nothing, and is copied over
            print(f"trial {self.trial_id}: {error}")
            self.learner.reset()
            score = FAILED_SCORE
        path = self.work / f"{self.trial_id}.safetensors"
        if score > max((each["score"] for each in self.done), default=FAILED_SCORE):
            _write(self.learner.state(), path)
        line = {"score": score, "flops": self.learner.flops - before, "time": time.time(), "strategy": strategy}
        self.done.append(line | {"path": str(path)})
        with self.lines.open("a") as file:
            file.write(json.dumps(self.done[-1]) + "\n")
        return {"score": score}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        _write(self.learner.state(), Path(checkpoint_dir) / "state.safetensors")

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        self.learner.load(_read(Path(checkpoint_dir) / "state.safetensors"))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        """Become the trial of `self.trial_id`, which may have trained before, in this process or in another one."""
        self.lines = self.work / f"{self.trial_id}.jsonl"
        self.done = [json.loads(line) for line in self.lines.read_text().splitlines()] if self.lines.exists() else []
        self.learner.configure(_plain(config), seed=self._seed(0))
        self.learner.reset()

    def _seed(self, interval: int) -> int:
        """Return a seed of this search, trial and interval."""
        trial = int(self.trial_id.split("_")[-1])
        return int(np.random.SeedSequence([self.search_seed, trial, interval]).generate_state(1)[0])


def distributions(space: Space) -> dict[str, Any]:
    """Return `space` as Ray Tune's distributions."""
    made: dict[str, Any] = {}
    for name, domain in space.domains.items():
        match domain:
            case Choice():
                made[name] = tune.choice(list(domain.options))
            case LogFloat():
                made[name] = tune.loguniform(domain.low, domain.high)
            case Float():
                made[name] = tune.uniform(domain.low, domain.high)
            case LogInt():
                made[name] = tune.lograndint(int(domain.low), int(domain.high) + 1)
            case Int():
                made[name] = tune.randint(int(domain.low), int(domain.high) + 1)
    return made


def _scheduler(kind: str, space: Space, seed: int) -> Any:
    common: dict[str, Any] = {"time_attr": "training_iteration", "perturbation_interval": 1, "quantile_fraction": 0.25}
    if kind == "PBT":
        mutations = distributions(space)
        mutations |= {name: list(each.options) for name, each in space.domains.items() if isinstance(each, Choice)}
        return PopulationBasedTraining(
            **common, resample_probability=0.25, hyperparam_mutations=mutations, custom_explore_fn=_Inside(space)
        )
    numbers = {name: domain for name, domain in space.domains.items() if isinstance(domain, Float | LogFloat)}
    bounds = {name: [domain.low, domain.high] for name, domain in numbers.items()}
    return PB2(**common, hyperparam_bounds=bounds)


class _Inside:
    """Brings perturbed settings back into the space, as PBT's documentation does it with a function."""

    def __init__(self, space: Space) -> None:
        self._space = space

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        unit = {name: self._space.domains[name].to_unit(value) for name, value in config.items()}
        inside = {name: self._space.domains[name].from_unit(float(np.clip(each, 0, 1))) for name, each in unit.items()}
        return {name: value if self._space.domains[name].allows(value) else inside[name]
                for name, value in config.items()}  # fmt: skip


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value.item() if hasattr(value, "item") else value for key, value in config.items()}


def _curve(done: list[dict[str, Any]], interval: int) -> list[tuple[int, float]]:
    """Improvements over steps of the whole population, by the time of their reports."""
    curve, best = [], -math.inf
    for i, row in enumerate(sorted(done, key=lambda row: row["time"])):
        if row["score"] > best:
            best = row["score"]
            curve.append(((i + 1) * interval, best))
    return curve


def _write(state: State, path: Path) -> Path:
    path.write_bytes(pack(state))
    return path


def _read(path: Path) -> State:
    return unpack(path.read_bytes())


def start_ray(num_cpus: int) -> None:
    """Start a Ray of this process's own."""
    ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
