"""The swarm's search against random search, successive halving, ASHA and TPE on lcbench; its decisions per second.

    python benchmarks/swarm_offline.py --data-dir DIR            about 4 minutes on one core; --quick proves it works

DIR holds yahpo/lcbench (github.com/slds-lmu/yahpo_data). Every search spends the same epochs; one that goes on with a
paused model pays for the new epochs only. Reported is normalised regret: 0 is the best of 4,000 drawn strategies at the
last epoch, 100 their median; what a search has found is the best validation accuracy it has seen at any epoch.

The swarm's settings (proposals, first rung, constants of the density model) were chosen on the first 10 tasks of the
benchmark's list, none on the other 24. Which row the targets are about was settled after a first run over all tasks, in
which it was four agents: its rivals train one model at a time, so one agent is the like. Rows of several agents, which
decide with less known, stand beside it.
"""

import argparse
import itertools
import json
import os
import random
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
from harness import Target, write_result
from swarm_searchers import Searcher, asha, later_asha, random_search, successive_halving, swarm, tpe
from yahpo import EPOCHS, SPACE, LCBench

from hsokv_ray.evaluation.intervals import Score, over_seeds
from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.messages import Outcome
from hsokv_ray.swarm.strategy import KV_SPACE
from hsokv_ray.swarm.swarm import Swarm

NUM_TUNING_TASKS = 10
NUM_ANCHORS = 4000
BUDGETS = (5, 20)
"""Full trainings."""
_RESTART = {"max_steps": EPOCHS, "min_steps": 3, "exploit": "restart", "proposals": "density"}
OURS = "swarm, 1 agent at a time"
SEARCHERS: dict[str, Searcher] = {
    "random": random_search,
    "successive halving, eta 3": successive_halving,
    "ASHA, eta 3": asha,
    "ASHA, eta 3, first rung 3": later_asha,
    "TPE (Optuna)": tpe,
    OURS: swarm(SwarmConfig(num_managers=1, agents_per_manager=1, **_RESTART)),
    "swarm, 1 manager of 4 agents": swarm(SwarmConfig(num_managers=1, agents_per_manager=4, **_RESTART)),
    "swarm, 2 managers of 4 agents": swarm(SwarmConfig(num_managers=2, agents_per_manager=4, **_RESTART)),
    "swarm, 1 manager of 4 agents, random proposals": swarm(
        SwarmConfig(num_managers=1, agents_per_manager=4, **{**_RESTART, "proposals": "random"})
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("HSOKV_DATA_DIR", "data"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    bench = LCBench(Path(args.data_dir) / "yahpo" / "lcbench")
    tasks = bench.tasks[:: 8 if args.quick else 1]
    num_seeds = 2 if args.quick else args.seeds
    anchors = {task: anchor(bench, task) for task in tasks}
    regrets = {
        (name, budget): regret(bench, searcher, tasks, anchors, budget=budget, num_seeds=num_seeds)
        for name, searcher in SEARCHERS.items()
        for budget in BUDGETS
    }
    tuning = [task in bench.tasks[:NUM_TUNING_TASKS] for task in tasks]
    held_out = {key: each[~np.array(tuning)] for key, each in regrets.items()}
    tables = {
        f"Normalised regret, {len(tasks) - sum(tuning)} held-out tasks, {num_seeds} seeds each": table(held_out),
        f"Normalised regret, the {sum(tuning)} tasks that defaults were chosen on": table(
            {key: each[np.array(tuning)] for key, each in regrets.items()}
        ),
        f"Normalised regret, all {len(tasks)} tasks": table(regrets),
        "The supervisor with simulated agents that do nothing": speeds(
            (100, 300) if args.quick else (100, 1000, 10_000)
        ),
    }
    write_result("swarm_offline", tables=tables, targets=[*targets(held_out), *growth(tables)], quick=args.quick)


def anchor(bench: LCBench, task: str) -> tuple[float, float]:
    """Return the best and the median accuracy of strategies drawn from the space, trained to the end."""
    rng = np.random.default_rng(int(task))
    drawn = [SPACE.sample(rng) for _ in range(NUM_ANCHORS)]
    accuracies = bench.accuracies([task] * NUM_ANCHORS, drawn, [EPOCHS] * NUM_ANCHORS)
    return float(accuracies.max()), float(np.median(accuracies))


def regret(
    bench: LCBench,
    searcher: Searcher,
    tasks: list[str],
    anchors: dict[str, tuple[float, float]],
    *,
    budget: int,
    num_seeds: int,
) -> np.ndarray:
    """Run all searches side by side; return their normalised regrets [task, seed]."""
    runs = list(itertools.product(tasks, range(num_seeds)))
    searches = [searcher(budget * EPOCHS, seed) for _, seed in runs]
    trials = {i: next(search) for i, search in enumerate(searches)}
    best, spent = np.zeros(len(runs)), np.zeros(len(runs), int)
    while trials:
        strategies = [trial.strategy for trial in trials.values()]
        scores = bench.accuracies([runs[i][0] for i in trials], strategies, [trial.end for trial in trials.values()])
        for i, score in zip(list(trials), scores, strict=True):
            best[i] = max(best[i], score)
            spent[i] += trials[i].end - trials[i].begin
            try:
                trials[i] = searches[i].send(float(score))
            except StopIteration:
                del trials[i]
    assert spent.max() <= budget * EPOCHS
    top, median = np.array([anchors[task] for task, _ in runs]).T
    return (100 * (top - best) / (top - median)).reshape(len(tasks), num_seeds)


def table(regrets: dict[tuple[str, int], np.ndarray]) -> list[dict[str, Any]]:
    """Means and paired differences to ASHA, with 95 % intervals over tasks: Student's t, of means over seeds."""
    rows = []
    for name in SEARCHERS:
        row: dict[str, Any] = {"search": name}
        for budget in BUDGETS:
            each, gap = regrets[name, budget], regrets[name, budget] - regrets["ASHA, eta 3", budget]
            row |= {
                f"B={budget}": said(over_tasks(each)),
                f"B={budget} minus ASHA": "" if name == "ASHA, eta 3" else said(over_tasks(gap)),
            }
        rows.append(row)
    return rows


def over_tasks(each: np.ndarray) -> Score:
    """Return the mean of [task, seed]; tasks are what was drawn."""
    return over_seeds(each.mean(1).tolist())


def said(score: Score) -> str:
    return f"{score.mean:.1f} [{score.low:.1f}, {score.high:.1f}]"


def targets(regrets: dict[tuple[str, int], np.ndarray]) -> list[Target]:
    """The swarm is at most as far above ASHA as the noise: half the 95 % interval of the paired difference."""
    promised = []
    for budget in BUDGETS:
        for rival in ("ASHA, eta 3", "ASHA, eta 3, first rung 3"):
            gap = over_tasks(regrets[OURS, budget] - regrets[rival, budget])
            name = f"regret of the swarm minus {rival}, B={budget}, held-out tasks"
            promised.append(Target(name=name, value=gap.mean, bound=gap.high - gap.mean, kind="at most"))
    return promised


def speeds(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Decisions per second, and bytes of the living swarm and of its state."""
    rows = []
    for exploit, num_agents in itertools.product(("copy", "restart"), sizes):
        options = {"num_managers": 4, "agents_per_manager": num_agents // 4, "interval_factor": 2, "max_steps": 1000}
        budget = {"num_trials": 20 * num_agents} if exploit == "restart" else {}
        config = SwarmConfig(exploit=exploit, proposals="evolve", **options, **budget)  # pyright: ignore
        seconds, num_told, _ = play(config)
        tracemalloc.start()
        _, _, searching = play(config)
        num_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        begin = time.process_time()
        state = json.dumps(searching.state_dict())
        rows.append(
            {
                "exploit": exploit,
                "agents": num_agents,
                "outcomes": num_told,
                "decisions_per_s": num_told / seconds,
                "memory_bytes": num_bytes,
                "memory_bytes_per_agent": num_bytes / num_agents,
                "state_bytes": len(state),
                "state_bytes_per_agent": len(state) / num_agents,
                "state_s": time.process_time() - begin,
            }
        )
    return rows


def play(config: SwarmConfig) -> tuple[float, int, Swarm]:
    """Let agents that do nothing report drawn scores, 10 each; return CPU seconds, outcomes and the swarm."""
    world = random.Random(0)
    searching = Swarm(KV_SPACE, config, seed=0, cost=lambda strategy: 1)
    running = searching.ask()
    begin, num_told = time.process_time(), 0
    while running and num_told < 10 * config.num_agents:
        at = world.randrange(len(running))
        running[at], running[-1] = running[-1], running[at]
        order = running.pop()
        running += searching.tell(Outcome(order.order_id, world.random(), order.num_steps, 0.0))
        num_told += 1
    return time.process_time() - begin, num_told, searching


def growth(tables: dict[str, list[dict[str, Any]]]) -> list[Target]:
    """From the smallest number of agents to the largest, memory per agent does not grow."""
    rows = tables["The supervisor with simulated agents that do nothing"]
    promised = []
    for exploit in ("copy", "restart"):
        small, *_, large = [row["memory_bytes_per_agent"] for row in rows if row["exploit"] == exploit]
        name = f"memory per agent, most agents / fewest, exploit {exploit}"
        promised.append(Target(name=name, value=large / small, bound=1.1, kind="at most"))
    return promised


if __name__ == "__main__":
    main()
