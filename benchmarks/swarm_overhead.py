"""What a search costs beside its training: worker time outside trial steps, and 1,000 agents on one machine.

    python benchmarks/swarm_overhead.py            about 6 minutes; --quick proves it works

Shares are means over repeats with Student's t intervals, 95 %; targets are judged by the upper ends.

Steps sleep, so that nothing competes with the orchestration but itself; an order is one step of 1 s, states have
250,000 numbers (1 MB) and go through the object store and to disk. The share counts from the first order handed to a
worker to the last outcome, all workers together. The second table has steps that do nothing: outcomes per second of the
whole path (order, actor or process, state on disk, journal, decision), and the size of its snapshot per agent.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")

from harness import Target, write_result

from hsokv_ray.evaluation.intervals import over_seeds
from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.search import search
from hsokv_ray.swarm.simulated import SimulatedTask

MEGABYTE = 250_000
BACKENDS = ("ray", "multiprocessing", "local")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    repeats, rounds = (2, 3) if args.quick else (args.repeats, 15)
    shares: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    for _ in range(repeats):
        for backend in BACKENDS:
            workers = 1 if backend == "local" else args.workers
            shares[backend].append(share_outside(backend, workers, rounds))
    scores = {backend: over_seeds(each) for backend, each in shares.items()}
    rows = [
        {
            "backend": backend,
            "share outside steps, %": score.percent(),
            "all": [round(each, 4) for each in shares[backend]],
        }
        for backend, score in scores.items()
    ]
    many = [crowd(backend, agents) for agents in ((50,) if args.quick else (100, 1000)) for backend in BACKENDS]
    targets = [
        Target(
            name=f"share of worker time outside 1 s steps, {backend}, upper end of the 95 % interval",
            value=score.high,
            bound=0.05,
            kind="at most",
        )
        for backend, score in scores.items()
    ]
    tables = {
        f"Share of worker time outside trial steps of 1 s, {rounds} rounds, {repeats} repeats in turns": rows,
        "Agents whose steps do nothing": many,
    }
    write_result("swarm_overhead", tables=tables, targets=targets, quick=args.quick)


def share_outside(backend: Any, workers: int, rounds: int) -> float:
    """Return the share of the workers' time between the first order and the last outcome in which no step ran."""
    task = SimulatedTask(step_s=1.0, state_size=MEGABYTE)
    config = SwarmConfig(num_managers=1, agents_per_manager=2 * workers, max_steps=rounds, interval_steps=1)
    with tempfile.TemporaryDirectory() as folder:
        search(task, config, folder=Path(folder) / "run", backend=backend, num_workers=workers, cpus_per_agent=1)
        told = journal(Path(folder) / "run")
    span = max(line["time"] for line in told) - min(line["begun"] for line in told)
    steps = sum(line["order"]["end_step"] - line["order"]["begin_step"] for line in told)
    return 1 - steps * task.step_s / (span * workers)


def crowd(backend: Any, agents: int) -> dict[str, Any]:
    """Run `agents` agents for three orders each; return outcomes per second and the size of the snapshot."""
    task = SimulatedTask(state_size=4)
    sizes = {"num_managers": 4, "agents_per_manager": agents // 4}
    config = SwarmConfig(max_steps=3, interval_steps=1, interval_factor=1, **sizes)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        search(task, config, folder=Path(folder) / "run", backend=backend, num_workers=2, cpus_per_agent=1)
        told = journal(Path(folder) / "run")
        span = max(line["time"] for line in told) - min(line["begun"] for line in told)
        snapshot = (Path(folder) / "run" / "swarm.json").stat().st_size
    return {
        "backend": backend, "agents": agents, "outcomes": len(told), "outcomes per s": round(len(told) / span, 1),
        "snapshot, bytes per agent": snapshot // agents, "seconds in all": round(time.perf_counter() - begin, 1),
    }  # fmt: skip


def journal(folder: Path) -> list[dict[str, Any]]:
    """Return what was told."""
    lines = (json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines())
    return [line for line in lines if line["what"] == "tell"]


if __name__ == "__main__":
    main()
