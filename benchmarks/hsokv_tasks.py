"""What memory and swarm are worth: ablation on one-shot words, few-shot GLUE, Split-CIFAR-10; all beside baselines.

    python benchmarks/hsokv_tasks.py --data-dir DIR           --parts words glue cifar; --quick proves it works

words: the ablation of `jobs/search_swarm.py --run-ablations`, four variants at equal FLOPs (evaluation included), with
gates forced, values shuffled and keys made random in the full one. glue: the published 16-shot splits and seeds; the
learners train 200 steps by the default strategy, nothing is searched. cifar: one pass of five tasks, each variant as
many steps as the FLOPs of 500 steps of H-SOKV allow, the same bytes beside the weights; seeds decide weights, order and
held-out images. Intervals are Student's t over seeds, 95 %. DIR holds glue_16shot and cifar10.

Published figures stand beside ours with their source; they come from other models (ResNet-18, RoBERTa-large), more data
or more passes, and are an anchor, not a comparison.
"""

import dataclasses
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cells import cells_parser, run_cells
from encoder import encoder_folder
from harness import Target, write_result

from hsokv_ray.evaluation.intervals import over_seeds

WORDS = ("full", "kv_only", "swarm_only", "neither")
TAMPERED = ("gate_0", "gate_1", "without_memory", "shuffled_values", "random_keys", "retention")
TRIVIAL = ("chance", "string match", "1-NN, random embedding", "1-NN, TF-IDF")
GLUE_TASKS = ("SST-2", "MNLI")
GLUE = {
    "majority": {},
    "TF-IDF + logistic regression": {},
    "frozen MiniLM + logistic regression": {"encoder": True},
    "from scratch, fine-tuned": {"use_kv": False},
    "from scratch, KV only": {"mode": "kv_only"},
    "from scratch, H-SOKV": {},
    "on MiniLM, head": {"encoder": True, "use_kv": False},
    "on MiniLM, KV only": {"encoder": True, "mode": "kv_only"},
    "on MiniLM, H-SOKV": {"encoder": True},
}
GLUE_STEPS = 200
CIFAR = {
    "fine-tune, live net": {"variant": "fine_tune", "key_features": "live"},
    "fine-tune, fixed features": {"variant": "fine_tune"},
    "experience replay, live net": {"variant": "experience_replay", "key_features": "live"},
    "experience replay, fixed features": {"variant": "experience_replay"},
    "KV only, fixed features": {"variant": "kv_only"},
    "H-SOKV, live keys": {"variant": "hsokv", "key_features": "live"},
    "H-SOKV, fixed keys": {"variant": "hsokv"},
    "streaming ridge on patches": {},
}
CIFAR_STEPS = 500
PUBLISHED = (
    ("ER", 44.79, 91.19, 57.74, 93.61),
    ("iCaRL", 49.02, 88.99, 47.55, 88.22),
    ("DER++", 64.88, 91.92, 72.70, 93.88),
    ("Co2L", 65.57, 93.43, 74.26, 95.90),
)
"""Class-IL and task-IL with buffers of 200 and 500 images, ResNet-18, 50 epochs a task: table of arXiv:2106.14413."""


def main() -> None:
    parser = cells_parser(__doc__, "hsokv_tasks")
    parser.add_argument("--parts", nargs="+", choices=("words", "glue", "cifar"), default=["words", "glue", "cifar"])
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(run_cell(args.data_dir, **json.loads(args.cell))))
        return
    rows = {"words": WORDS, "glue": [f"{task}: {name}" for task in GLUE_TASKS for name in GLUE], "cifar": list(CIFAR)}
    seeds = range(2 if args.quick else args.seeds)
    wanted = [
        {"part": part, "row": row, "seed": seed, "quick": args.quick}
        for seed in seeds
        for part in args.parts
        for row in rows[part]
    ]
    cells = run_cells(__file__, wanted, args)
    tables: dict[str, list[dict[str, Any]]] = {}
    if "words" in args.parts:
        tables["One-shot words, 200 test words a seed, accuracy in %"] = words_table(cells)
    for task in GLUE_TASKS if "glue" in args.parts else ():
        tables[f"Few-shot {task}, 16 per class, published splits, test accuracy in %"] = glue_table(cells, task)
    if "cifar" in args.parts:
        tables["Split-CIFAR-10, 1,000 training images a class, accuracy in % on 2,000 test images"] = cifar_table(cells)
        tables["Published, other models and far more training: ResNet-18, 50 epochs a task"] = published()
    write_result("hsokv_tasks", tables=tables, targets=targets(cells, args.parts), quick=args.quick)


def run_cell(data: Path, *, part: str, row: str, seed: int, quick: bool) -> dict[str, Any]:
    """Run one row with one seed."""
    import torch

    torch.set_num_threads(1)
    torch.get_num_threads()
    begin = time.perf_counter()
    run = {"words": words_cell, "glue": glue_cell, "cifar": cifar_cell}[part]
    return {"figures": run(data, row, seed, quick), "seconds": time.perf_counter() - begin}


def words_cell(data: Path, row: str, seed: int, quick: bool) -> dict[str, Any]:
    """One variant of the ablation; the trivial baselines come with the full one."""
    from hsokv_ray.swarm.ablations import run_variant, variant
    from hsokv_ray.swarm.choose_task import plain_task
    from hsokv_ray.swarm.comparison import trivial_baselines
    from hsokv_ray.swarm.search_config import SearchRunConfig, SearchSizeConfig, SearchSwarmConfig

    size = SearchSizeConfig(
        iterations=2 if quick else 6, agent_steps=5 if quick else 100, num_managers=1, agents_per_manager=4
    )
    run = SearchRunConfig(distributed_backend="local")
    config = variant(SearchSwarmConfig(search=size, run=run), row, seed)
    with tempfile.TemporaryDirectory() as folder:
        summary = run_variant(config, Path(folder) / "run")
    figures = {"accuracy": summary.test["accuracy"], "flops": sum(summary.flops.values())}
    figures |= {name: summary.test[name] for name in TAMPERED if name in summary.test}
    if row == "full":
        figures |= {name: score.mean for name, score in trivial_baselines(plain_task(config)).items()}
    return figures


def glue_cell(data: Path, row: str, seed: int, quick: bool) -> dict[str, Any]:
    """One row of a GLUE task with the published split of that number."""
    from hsokv_ray.data.tasks.few_shot import PUBLISHED_SEEDS
    from hsokv_ray.swarm.choose_task import default_strategy
    from hsokv_ray.swarm.learners.few_shot import FewShotTask

    glue, name = row.split(": ")
    options = {**GLUE[name]}
    if options.pop("encoder", False):
        options["encoder"] = encoder_folder()
    steps = 5 if quick else GLUE_STEPS
    task = FewShotTask(glue=glue, data=str(data), split_seed=PUBLISHED_SEEDS[seed], total_steps=steps, **options)
    learner = task.learner()
    if name in ("majority", "TF-IDF + logistic regression", "frozen MiniLM + logistic regression"):
        return {"accuracy": trivial(name, learner)}
    learner.configure(default_strategy(task), seed=seed)
    learner.reset()
    learner.train(steps)
    figures = learner.test()
    return {name: figures[name] for name in ("accuracy", "memory_utility", "hit_rate", "n") if name in figures}


def trivial(name: str, learner: Any) -> float:
    """Return the accuracy of a baseline on the learner's own examples."""
    from hsokv_ray.data.tasks.base import Examples
    from hsokv_ray.evaluation import baselines

    splits = learner.splits
    train, test = splits.train, splits.test
    if name.startswith("frozen"):
        items = [learner.items(split) for split in ("train", "test")]
        train, test = (Examples("vectors", each.inputs.numpy().copy(), each.labels.numpy().copy()) for each in items)
    rule = {
        "majority": baselines.majority,
        "TF-IDF + logistic regression": baselines.tfidf_logistic_regression,
        "frozen MiniLM + logistic regression": baselines.logistic_regression,
    }[name]
    return float((rule(train, test) == test.labels).mean())


def cifar_cell(data: Path, row: str, seed: int, quick: bool) -> dict[str, Any]:
    """One variant of the stream, with the FLOPs of H-SOKV on fixed keys."""
    from hsokv_ray.data.tasks.split_cifar import SplitCifar
    from hsokv_ray.evaluation.scenarios import streaming_ridge_over_stream
    from hsokv_ray.swarm.choose_task import default_strategy
    from hsokv_ray.swarm.learners.cifar import CifarTask

    num_train, num_test = (100, 50) if quick else (1000, 200)
    folder = str(data / "cifar10")
    options: dict[str, Any] = {
        "folder": folder, "train_per_class": num_train, "test_per_class": num_test, "data_seed": seed,
        "record_test": True,
    }  # fmt: skip
    if not CIFAR[row]:
        images = SplitCifar.from_folder(folder, train_per_class=num_train, test_per_class=num_test)
        stream = images.experiences(seed)
        found = streaming_ridge_over_stream(stream, seed=seed)
        return {
            "class_il": found.class_il.average_accuracy, "task_il": found.task_il.average_accuracy,
            "backward_transfer": found.class_il.backward_transfer, "forgetting": found.class_il.forgetting,
            "bytes": found.memory_bytes, "steps": 0, "flops": 0,
        }  # fmt: skip
    ours, task = CifarTask(**options), CifarTask(**options, **CIFAR[row])
    steps = 10 if quick else round(CIFAR_STEPS * ours.cost(default_strategy(ours)) / task.cost(default_strategy(task)))
    task = dataclasses.replace(task, total_steps=steps)
    learner = task.learner()
    learner.configure(default_strategy(task), seed=seed)
    learner.reset()
    learner.train(steps)
    flops, figures = learner.flops, learner.test()
    class_il, task_il = figures["test"]["class_il"], figures["test"]["task_il"]
    return {
        "class_il": class_il["average_accuracy"], "task_il": task_il["average_accuracy"],
        "backward_transfer": class_il["backward_transfer"], "forgetting": class_il["forgetting"],
        "bytes": figures["memory_bytes"], "steps": steps, "flops": flops,
    }  # fmt: skip


def words_table(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for name in WORDS:
        figures = of_row(cells, "words", name)
        rows.append({"variant": name, "accuracy": percent([each["accuracy"] for each in figures]),
                     "GFLOP": mean_of(figures, "flops", 1e9), "seeds": len(figures)})  # fmt: skip
    full = of_row(cells, "words", "full")
    for name in (*TAMPERED, *TRIVIAL):
        label = f"full, {name}" if name in TAMPERED else name
        rows.append(
            {"variant": label, "accuracy": percent([each[name] for each in full]), "GFLOP": "", "seeds": len(full)}
        )
    return rows


def glue_table(cells: list[dict[str, Any]], task: str) -> list[dict[str, Any]]:
    rows = []
    for name in GLUE:
        figures = of_row(cells, "glue", f"{task}: {name}")
        utility = [each["memory_utility"] for each in figures if "memory_utility" in each]
        rows.append({"row": name, "accuracy": percent([each["accuracy"] for each in figures]),
                     "memory utility, points": percent(utility) if utility else "", "seeds": len(figures)})  # fmt: skip
    return rows


def cifar_table(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for name in CIFAR:
        figures = of_row(cells, "cifar", name)
        names = ("class_il", "task_il", "backward_transfer", "forgetting")
        shown = {each.replace("_", " "): percent([one[each] for one in figures]) for each in names}
        rows.append({"row": name, **shown, "bytes kept": int(mean_of(figures, "bytes", 1)),
                     "steps": int(mean_of(figures, "steps", 1)), "GFLOP": mean_of(figures, "flops", 1e9),
                     "seeds": len(figures)})  # fmt: skip
    return rows


def published() -> list[dict[str, Any]]:
    names = ("class-IL, 200 images", "task-IL, 200 images", "class-IL, 500 images", "task-IL, 500 images")
    return [
        {"method": row[0], **dict(zip(names, row[1:], strict=True)), "source": "arXiv:2106.14413"} for row in PUBLISHED
    ]


def targets(cells: list[dict[str, Any]], parts: Sequence[str]) -> list[Target]:
    """One-shot words: 30 points above the model without its memory, and above every trivial baseline."""
    if "words" not in parts:
        return []
    full, without = of_row(cells, "words", "full"), of_row(cells, "words", "swarm_only")
    gap = [100 * (one["accuracy"] - other["accuracy"]) for one, other in zip(full, without, strict=True)]
    best = max(float(np.mean([each[name] for each in full])) for name in TRIVIAL)
    lead = [100 * (one["accuracy"] - best) for one in full]
    return [
        Target(name="points with memory above without, one-shot words, lower end of the 95 % interval",
               value=over_seeds(gap).low, bound=30, kind="at least"),
        Target(name="points above the best trivial baseline, lower end of the 95 % interval",
               value=over_seeds(lead).low, bound=0, kind="at least"),
    ]  # fmt: skip


def of_row(cells: list[dict[str, Any]], part: str, row: str) -> list[dict[str, Any]]:
    """Return the figures of a row, by seed."""
    found = sorted((each["seed"], i) for i, each in enumerate(cells) if (each["part"], each["row"]) == (part, row))
    return [cells[i]["figures"] for _, i in found]


def percent(values: list[float]) -> str:
    """Return mean and interval in percent."""
    return over_seeds(values).percent()


def mean_of(figures: list[dict[str, Any]], name: str, unit: float) -> float:
    return round(float(np.mean([each[name] for each in figures])) / unit, 1)


if __name__ == "__main__":
    main()
