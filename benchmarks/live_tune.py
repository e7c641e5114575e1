"""Population based training by Ray Tune's own PBT and PB2, on the lab's terms: the same models, steps and evaluations.

A trial is an agent of the population. They take turns in one process that is kept (`reuse_actors`): PBT pauses a trial
at every decision as long as others wait, and would start a process each time. Settings are those of Ray Tune's
documentation: a quarter is copied and a quarter resampled, factors 0.8 and 1.2. PB2 (arXiv:2002.02518) moves numbers
only; choices stay as drawn.
"""

import json
import math
import tempfile
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
    with tempfile.TemporaryDirectory() as folder:
        trial = tune.with_parameters(Trial, task=task, interval=interval, best=f"{folder}/best")
        tuner = tune.Tuner(
            tune.with_resources(trial, {"CPU": 1}),
            param_space=distributions(task.space),
            tune_config=tune.TuneConfig(
                metric="score", mode="max", num_samples=agents, scheduler=_scheduler(kind, task.space, seed),
                search_alg=tune.search.BasicVariantGenerator(random_state=seed),
                reuse_actors=True,
                max_concurrent_trials=1,
            ),
            run_config=tune.RunConfig(
                name=f"{kind}-{seed}", storage_path=folder, stop={"training_iteration": total_steps // interval},
                verbose=0,
            ),
        )  # fmt: skip
        results = tuner.fit()
        rows = [row for result in results if result.metrics_dataframe is not None
                for row in result.metrics_dataframe.to_dict("records")]  # fmt: skip
        best = _best_model(Path(folder))
        learner = task.learner()
        learner.configure(best["strategy"], seed=seed)
        learner.load(_read(Path(best["path"])))
        curve = _curve(rows, interval)
        flops = sum(row["flops"] for row in rows)
        return Found(best["score"], headline(learner.test())[1], int(flops), interval * len(rows), curve)


FAILED_SCORE = -1e9
"""Of a model that diverged: below any score, and a finite number, which PB2's regression needs."""


class Trial(tune.Trainable):
    """A learner as a trial; keeps its best model beside the trial's checkpoints."""

    def setup(self, config: dict[str, Any], *, task: EqualSteps, interval: int, best: str) -> None:
        import torch

        torch.set_num_threads(1)
        torch.get_num_threads()
        self.learner, self.interval = task.learner(), interval
        self.best, self.best_folder = -math.inf, Path(best)
        self.best_folder.mkdir(exist_ok=True)
        self.seed = int(self.trial_id.split("_")[-1], 36) if "_" in self.trial_id else 0
        self.learner.configure(_plain(config), seed=self.seed)
        self.learner.reset()

    def step(self) -> dict[str, Any]:
        before = self.learner.flops
        self.learner.configure(_plain(self.config), seed=self.seed + self.iteration)
        try:
            self.learner.train(self.interval)
            score = float(self.learner.evaluate()["score"])
        except Exception as error:  # a diverged model is worth nothing, and is copied over
            print(f"trial {self.trial_id}: {error}")
            self.learner.reset()
            score = FAILED_SCORE
        if score > max(self.best, FAILED_SCORE):
            self.best = score
            path = _write(self.learner.state(), self.best_folder / f"{self.trial_id}.safetensors")
            said = {"score": score, "strategy": _plain(self.config), "path": str(path)}
            (self.best_folder / f"{self.trial_id}.json").write_text(json.dumps(said))
        return {"score": score, "flops": self.learner.flops - before}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        _write(self.learner.state(), Path(checkpoint_dir) / "state.safetensors")

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        self.learner.load(_read(Path(checkpoint_dir) / "state.safetensors"))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.best = -math.inf
        self.learner.configure(_plain(new_config), seed=self.seed)
        self.learner.reset()
        return True


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


def _best_model(folder: Path) -> dict[str, Any]:
    said = [json.loads(path.read_text()) for path in (folder / "best").glob("*.json")]
    return max(said, key=lambda each: each["score"])


def _curve(rows: list[dict[str, Any]], interval: int) -> list[tuple[int, float]]:
    """Improvements over steps of the whole population, by the time of their reports."""
    curve, best = [], -math.inf
    for i, row in enumerate(sorted(rows, key=lambda row: row["timestamp"])):
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
