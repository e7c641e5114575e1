"""Searches that train for real, at equal steps: one default run, random, ASHA, TPE, Ray Tune's PBT and PB2, the swarm.

    python benchmarks/swarm_live.py --data-dir DIR            --tasks words --seeds 5; --quick proves it works

Each search may spend 8 whole trainings of a task, looks at its models 6 times per training, chooses its best model on
validation data, and is judged on test data once. Every step costs the same (the batch is not searched over), so equal
steps are equal FLOPs of training; evaluations come on top, and the total is in the table. PBT and PB2 have a population
of 8, the swarm 8 agents under 2 managers. Rates of learning are searched over three decades around the default, which
only the default training knows, and the swarm as the job runs it, whose first agent begins with it. The swarm's first
row, which stands against PBT and PB2, copies as they do; with exploit `restart` it halves, from a ninth of a training.

A row per task and search: mean and 95 % interval over seeds, and the swarm's paired difference to it. DIR holds
glue_16shot and cifar10.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cells import cells_parser, run_cells
from encoder import encoder_folder
from harness import Target, write_result

from hsokv_ray.swarm.config import SwarmConfig

AGENTS = 8
LOOKS = 6
SWARM = SwarmConfig(num_managers=2, agents_per_manager=4, exploit="copy", interval_factor=2)
HALVING = SwarmConfig(num_managers=2, agents_per_manager=4, exploit="restart")
OURS, DEFAULT = "swarm", "one default training"
FROM_DEFAULT, RESTARTING = "swarm from the default strategy", "swarm, exploit restart"
RIVALS = ("PBT (Ray Tune)", "PB2 (Ray Tune)")
SEARCHES = (DEFAULT, "random", "ASHA", "TPE (Optuna)", *RIVALS, OURS, RESTARTING, FROM_DEFAULT)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task with the numbers of its searches."""

    make: Callable[[Path, int], Any]
    """(data folder, seed) -> Task."""
    steps: int
    """Of one whole training; divisible by 18."""
    what: str


def words(data: Path, seed: int) -> Any:
    """One-shot words of the generator, which are other ones for every seed."""
    from hsokv_ray.swarm.learners.rare_words import RareWordTask

    return RareWordTask(seed=seed)


def few_shot(data: Path, seed: int) -> Any:
    """SST-2, the published split of the seed, on vectors of a frozen MiniLM."""
    from hsokv_ray.data.tasks.few_shot import PUBLISHED_SEEDS
    from hsokv_ray.swarm.learners.few_shot import FewShotTask

    split = PUBLISHED_SEEDS[seed % len(PUBLISHED_SEEDS)]
    return FewShotTask(glue="SST-2", data=str(data), encoder=encoder_folder(), split_seed=split)


def images(data: Path, seed: int) -> Any:
    """Split-CIFAR-10, a small convolutional net with replay, 500 training images a class."""
    from hsokv_ray.swarm.learners.cifar import CifarTask

    return CifarTask(
        folder=str(data / "cifar10"), variant="experience_replay", key_features="live", train_per_class=500,
        test_per_class=200, data_seed=seed,
    )  # fmt: skip


def language(data: Path, seed: int) -> Any:
    """A language model with a memory on the running Python's own text."""
    from hsokv_ray.swarm.learners.language import LanguageTask

    return LanguageTask(source="python://stdlib", max_bytes=1_000_000, num_tested=128, knn_tokens=1000, data_seed=seed)


PROBLEMS = {
    "words": Problem(words, 306, "One-shot words, KV transformer, test accuracy"),
    "few_shot": Problem(few_shot, 108, "SST-2, 16 per class, KV head on frozen vectors, test accuracy"),
    "images": Problem(images, 198, "Split-CIFAR-10, small net with replay, class-IL test accuracy"),
    "language": Problem(language, 108, "Language model with memory, minus test loss"),
}


def main() -> None:
    parser = cells_parser(__doc__, "swarm_live")
    parser.add_argument("--tasks", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(run_cell(args.data_dir, **json.loads(args.cell))))
        return
    wanted = [
        {"problem": problem, "search": search, "seed": seed, "quick": args.quick}
        for seed in range(2 if args.quick else args.seeds)
        for problem in args.tasks
        for search in SEARCHES
    ]
    cells = run_cells(__file__, wanted, args)
    tables = {f"{PROBLEMS[problem].what}": table(cells, problem) for problem in args.tasks}
    write_result("swarm_live", tables=tables, targets=targets(cells, args.tasks), quick=args.quick)


def run_cell(data: Path, *, problem: str, search: str, seed: int, quick: bool) -> dict[str, Any]:
    """Run one search; return what it found as JSON."""
    import torch
    from live_lab import EqualSteps, Lab

    torch.set_num_threads(1)
    steps = 36 if quick else PROBLEMS[problem].steps
    task = EqualSteps(PROBLEMS[problem].make(data, seed))
    begin = time.perf_counter()
    if search.endswith("(Ray Tune)"):
        from live_tune import population_search, start_ray

        start_ray(num_cpus=1)
        kind: Any = search.split()[0]
        found = population_search(kind, task, seed=seed, agents=AGENTS, total_steps=steps, interval=steps // LOOKS)
    else:
        alone = search == DEFAULT
        lab = Lab(task, total_steps=AGENTS * steps if alone else steps, budget_steps=AGENTS * steps)
        searcher(search, steps)(lab, seed)
        found = lab.found()
    return {**dataclasses.asdict(found), "seconds": time.perf_counter() - begin}


def searcher(name: str, steps: int) -> Any:
    import live_searchers

    if name == DEFAULT:
        return live_searchers.default
    if name in (OURS, FROM_DEFAULT):
        config = SWARM.model_copy(update={"interval_steps": steps // LOOKS})
        return live_searchers.swarm(config, knows_default=name == FROM_DEFAULT)
    if name == RESTARTING:
        return live_searchers.swarm(HALVING.model_copy(update={"min_steps": steps // live_searchers.ETA**2}))
    return {"random": live_searchers.random_search, "ASHA": live_searchers.asha, "TPE (Optuna)": live_searchers.tpe}[
        name
    ]


def table(cells: list[dict[str, Any]], problem: str) -> list[dict[str, Any]]:
    """Rows of one problem: test and validation figures, the swarm's paired lead, FLOPs, steps."""
    from hsokv_ray.evaluation.intervals import over_seeds

    rows = []
    ours = by_seed(cells, problem, OURS)
    for search in SEARCHES:
        each = by_seed(cells, problem, search)
        seeds = sorted(each.keys() & ours.keys())
        test = over_seeds([each[s]["test"] for s in seeds])
        lead = over_seeds([ours[s]["test"] - each[s]["test"] for s in seeds])
        rows.append(
            {
                "search": search,
                "test": round(test.mean, 4),
                "95 % interval": f"{test.low:.4f} to {test.high:.4f}",
                "swarm minus this": round(lead.mean, 4),
                "its 95 % interval": "" if search == OURS else f"{lead.low:.4f} to {lead.high:.4f}",
                "validation": round(float(np.mean([each[s]["validation"] for s in seeds])), 4),
                "steps": int(np.mean([each[s]["steps"] for s in seeds])),
                "GFLOP with evaluation": round(float(np.mean([each[s]["flops"] for s in seeds])) / 1e9, 1),
                "seeds": len(seeds),
            }
        )
    return rows


def by_seed(cells: list[dict[str, Any]], problem: str, search: str) -> dict[int, dict[str, Any]]:
    return {cell["seed"]: cell for cell in cells if cell["problem"] == problem and cell["search"] == search}


def targets(cells: list[dict[str, Any]], problems: list[str]) -> list[Target]:
    """The swarm is first, or tied within the interval of the paired difference, on at least 3 of 4 tasks."""
    from hsokv_ray.evaluation.intervals import over_seeds

    promised = []
    for rival in RIVALS:
        won = 0
        for problem in problems:
            ours, theirs = by_seed(cells, problem, OURS), by_seed(cells, problem, rival)
            lead = over_seeds([ours[s]["test"] - theirs[s]["test"] for s in sorted(ours.keys() & theirs.keys())])
            won += lead.high >= 0
        promised.append(
            Target(name=f"tasks of {len(problems)} on which the swarm is ahead of {rival} or tied", value=won,
                   bound=3 * len(problems) / 4, kind="at least")
        )  # fmt: skip
    return promised


if __name__ == "__main__":
    main()
