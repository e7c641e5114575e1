"""CartPole by distributed rollouts: speed-up and efficiency, wasted work, time to 475, recovery, random search beside.

    python benchmarks/rollouts.py            about 10 minutes on 2 cores; --quick proves only that it works

Workers are Ray actors and, for comparison, processes with pipes; then the same program in one process. The numbers of
workers are 1, 2 and 4, as far as there is a core for each. Speed-up is the ratio of times for the very same environment
steps; every figure is a mean over seeds with its 95 % interval. The driver and, for Ray, its own processes use the
same cores. Time and steps to 475 are by evaluations on 100 episodes that nothing is trained on; they include the time
that evaluations take from training. Random search has as many episodes as the training it stands beside.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # read when NumPy is imported

# ruff: noqa: E402, I001
import argparse
import importlib.metadata
import itertools
import tempfile
from pathlib import Path
from typing import Any

import ray
from harness import Target, write_result

from hsokv_ray.evaluation.intervals import Score, over_seeds
from hsokv_ray.swarm.rollouts.config import RolloutConfig
from hsokv_ray.swarm.rollouts.distributed import BackendName, DistributedReport, run_distributed
from hsokv_ray.swarm.rollouts.tables import plain

BACKENDS: tuple[BackendName, ...] = ("ray", "multiprocessing", "local")
ALGORITHMS: dict[str, RolloutConfig] = {
    "es, linear": RolloutConfig(),
    "reinforce, mlp": RolloutConfig(algorithm="reinforce", policy="mlp", learning_rate=0.05),
}
Reports = dict[tuple[str, BackendName], DistributedReport]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    ray.init(address="local", namespace="hsokv", logging_level="ERROR", log_to_driver=False)
    try:
        reports = measure(num_seeds=args.seeds, quick=args.quick)
    finally:
        ray.shutdown()
    tables = {
        "The same environment steps": [row for key, report in reports.items() for row in scaling(key, report)],
        "Training until a mean return of 475": [
            row for key, report in reports.items() for row in training(key, report)
        ],
        "A killed worker": [row for key, report in reports.items() for row in recovery(key, report)],
        "Random linear policies": [searching(name, reports[name, "local"]) for name in ALGORITHMS],
        "Set-up": [setup(key, report) for key, report in reports.items()],
    }
    write_result("rollouts", tables=plain(tables), targets=targets(reports), quick=args.quick)


def measure(*, num_seeds: int, quick: bool) -> Reports:
    """Run every algorithm on every backend."""
    small = {"num_seeds": 2, "scaling_orders": 12, "kill_after": 4} if quick else {"num_seeds": num_seeds}
    reports: Reports = {}
    with tempfile.TemporaryDirectory() as folder:
        for (name, config), backend in itertools.product(ALGORITHMS.items(), BACKENDS):
            say = lambda line, name=name, backend=backend: print(f"{name}, {backend}: {line}", flush=True)  # noqa: E731
            config = config.model_copy(update=small)
            reports[name, backend] = run_distributed(config, folder=Path(folder), backend=backend, on_progress=say)
    return reports


def scaling(key: tuple[str, str], report: DistributedReport) -> list[dict[str, Any]]:
    """A row per number of workers."""
    return [
        head(key, row.num_workers)
        | {"steps per seed": round(sum(row.steps) / len(row.steps)), "seeds": row.seconds.seeds}
        | columns("seconds", row.seconds)
        | columns("steps/s", row.steps_per_s)
        | columns("speed-up", row.speed_up)
        | columns("efficiency", row.efficiency)
        | {"driver's CPU share": row.driver_cpu_share}
        for row in report.scaling
    ]


def training(key: tuple[str, str], report: DistributedReport) -> list[dict[str, Any]]:
    """A row per number of workers."""
    return [
        head(key, row.num_workers)
        | {"reached": row.reached.mean, "seeds": row.reached.n}
        | columns("seconds to 475", row.seconds_to_target)
        | columns("steps to 475", row.steps_to_target)
        | columns("episodes to 475", row.episodes_to_target)
        | columns("test return", row.test_return)
        | columns("steps/s", row.steps_per_s)
        | columns("wasted share", row.wasted_share)
        for row in report.training
    ]


def recovery(key: tuple[str, str], report: DistributedReport) -> list[dict[str, Any]]:
    """A row where a worker could be killed."""
    row = report.recovery
    if row is None:
        return []
    return [
        head(key, row.num_workers)
        | {"kills": len(row.recoveries), "counted once": row.counted_once}
        | columns("seconds until done again", row.seconds)
        | columns("run longer by, s", row.slower_by_s)
        | columns("repeated share", row.repeated_share)
    ]


def searching(name: str, report: DistributedReport) -> dict[str, Any]:
    """Random search beside one worker's training."""
    searches = report.random_search
    return (
        {"beside": name, "policies per seed": [search.num_policies for search in searches]}
        | {"steps per seed": [search.steps for search in searches]}
        | columns("mean return", over_seeds([search.mean_return.mean for search in searches]))
        | columns("best return", over_seeds([search.best_return for search in searches]))
        | columns("test return of the best", over_seeds([search.best_test_return.mean for search in searches]))
        | columns("share of policies at 475", over_seeds([search.solved.mean for search in searches]))
        | {"steps to the first at 475": [search.steps_to_target for search in searches]}
    )


def setup(key: tuple[str, str], report: DistributedReport) -> dict[str, Any]:
    """What a row's figures were measured with."""
    return {
        "algorithm": key[0],
        "backend": key[1],
        "CPUs": report.num_cpus,
        "seeds": list(report.seeds),
        "gymnasium": importlib.metadata.version("gymnasium"),
        "notes": "; ".join(report.notes),
        "settings": ALGORITHMS[key[0]].model_dump(mode="json", exclude_defaults=True),
    }


def head(key: tuple[str, str], num_workers: int) -> dict[str, Any]:
    return {"algorithm": key[0], "backend": key[1], "workers": num_workers}


def columns(name: str, score: Score | None) -> dict[str, float]:
    """Mean and interval as three columns; NaN where there is nothing to say."""
    score = score or Score(float("nan"), float("nan"), float("nan"), 0)
    return {name: score.mean, f"{name}, low": score.low, f"{name}, high": score.high}


def targets(reports: Reports) -> list[Target]:
    """Every seed reaches 475, and a kill counts nothing twice."""
    promised = []
    for (name, backend), report in reports.items():
        where, kind = f"{name}, {backend}", "at least"
        reached = min(row.reached.mean for row in report.training)
        promised.append(Target(name=f"share of seeds at 475, {where}", value=reached, bound=1, kind=kind))
        if report.recovery is not None:
            once = float(report.recovery.counted_once)
            promised.append(Target(name=f"work counted once after a kill, {where}", value=once, bound=1, kind=kind))
    return promised


if __name__ == "__main__":
    main()
