"""What memory and swarm are worth: one-shot words, few-shot GLUE, Split-CIFAR-10, language; all beside baselines.

    python benchmarks/hsokv_tasks.py --data-dir DIR      --parts words glue cifar language; --quick proves it works

words: the ablation of `jobs/search_swarm.py --run-ablations`, four variants with one budget of FLOPs (evaluation
included; a swarm that comes to like small batches leaves some of it, and final tests come on top), with gates forced,
values shuffled and keys made random in the full one; each seed has its own test words. glue: the published 16-shot
splits and seeds; the learners train 200 steps by the default strategy, nothing is searched. cifar: one pass of five
tasks, each variant as many steps as the FLOPs of 500 steps of H-SOKV allow, the same bytes beside the weights; seeds
decide weights, order and held-out images. language: the running Python's own text, 600 steps by the default strategy,
the model with its memory, one without on the same text, kNN-LM on either, and counts of tokens. Intervals are
Student's t over seeds, 95 %. DIR holds glue_16shot and cifar10.

Published figures stand beside ours with their source; they come from other models (ResNet-18, RoBERTa-large), more data
or more passes, and are an anchor, not a comparison.
"""

import dataclasses
import json
import math
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

PARTS = ("words", "glue", "cifar", "language")
WORDS = ("full", "kv_only", "swarm_only", "neither")
TAMPERED = ("gate_0", "gate_1", "without_memory", "shuffled_values", "random_keys", "retention")
TRIVIAL = ("chance", "string match", "1-NN, random embedding", "1-NN, TF-IDF")
GLUE_TASKS = ("SST-2", "MNLI", "RTE", "MRPC", "CoLA")
GLUE = {
    "majority": {},
    "TF-IDF + logistic regression": {},
    "frozen MiniLM + logistic regression": {},
    "from scratch, fine-tuned": {"use_kv": False},
    "from scratch, KV only": {"mode": "kv_only"},
    "from scratch, H-SOKV": {},
    "on MiniLM, head": {"use_kv": False},
    "on MiniLM, KV only": {"mode": "kv_only"},
    "on MiniLM, H-SOKV": {},
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
CIFAR_FILTERS = 400
"""Of the streaming ridge."""
OURS_OF_CIFAR = "H-SOKV, fixed keys"
SCENARIOS = ("class_il", "task_il")
FIGURES_OF_STREAM = ("average_accuracy", "backward_transfer", "forward_transfer", "forgetting")
LANGUAGE = {"transformer with KV memory": True, "transformer without": False}
LANGUAGE_STEPS = 600
PUBLISHED = (
    ("ER", 44.79, 91.19, 57.74, 93.61),
    ("iCaRL", 49.02, 88.99, 47.55, 88.22),
    ("DER++", 64.88, 91.92, 72.70, 93.88),
    ("Co2L", 65.57, 93.43, 74.26, 95.90),
)
"""Class-IL and task-IL with buffers of 200 and 500 images, ResNet-18, 50 epochs a task: table of arXiv:2106.14413."""


def main() -> None:
    parser = cells_parser(__doc__, "hsokv_tasks")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--glue-tasks", nargs="+", choices=GLUE_TASKS, default=list(GLUE_TASKS))
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(run_cell(args.data_dir, **json.loads(args.cell))))
        return
    rows = {
        "words": WORDS, "cifar": list(CIFAR), "language": list(LANGUAGE), "glue": args.glue_tasks,
    }  # fmt: skip
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
    for task in args.glue_tasks if "glue" in args.parts else ():
        tables[f"Few-shot {task}, 16 per class, published splits, test accuracy in %"] = glue_table(cells, task)
    if "cifar" in args.parts:
        tables["Split-CIFAR-10, 1,000 training images a class, accuracy in % on 2,000 test images"] = cifar_table(cells)
        tables["Transfer and forgetting in points"] = transfer_table(cells)
        for scenario in SCENARIOS:
            title = f"{OURS_OF_CIFAR}: {written(scenario)} accuracy in % on each task after each, means over seeds"
            tables[title] = matrix_table(cells, scenario)
        tables["Published, other models and far more training: ResNet-18, 50 epochs a task"] = published()
    if "language" in args.parts:
        tables["Language model on the running Python's own text, test perplexity a token"] = language_table(cells)
    write_result("hsokv_tasks", tables=tables, targets=targets(cells, args.parts), quick=args.quick)


def run_cell(data: Path, *, part: str, row: str, seed: int, quick: bool) -> dict[str, Any]:
    """Run one row with one seed."""
    import torch

    torch.set_num_threads(1)
    torch.get_num_threads()
    begin = time.perf_counter()
    run = {"words": words_cell, "glue": glue_cell, "cifar": cifar_cell, "language": language_cell}[part]
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
    """All rows of a GLUE task with the published split of that number; texts go through the frozen encoder once."""
    from hsokv_ray.data.tasks.few_shot import PUBLISHED_SEEDS, FewShotGlue
    from hsokv_ray.memory.encoders import open_encoder
    from hsokv_ray.memory.stored_vectors import write_vectors
    from hsokv_ray.swarm.learners.few_shot import FewShotTask

    split_seed, steps = PUBLISHED_SEEDS[seed], 5 if quick else GLUE_STEPS
    texts = FewShotGlue(row, str(data)).splits(split_seed).texts()  # pyright: ignore[reportArgumentType]
    with tempfile.TemporaryDirectory() as folder:
        write_vectors(folder, texts, open_encoder(encoder_folder()).encode(texts))
        figures = {}
        for name, options in GLUE.items():
            encoder = f"vectors:{folder}" if "MiniLM" in name else None
            task = FewShotTask(row, str(data), split_seed=split_seed, total_steps=steps, encoder=encoder, **options)  # pyright: ignore
            figures[name] = glue_row(task, name, seed)
    return figures


def glue_row(task: Any, name: str, seed: int) -> dict[str, float]:
    """Return the test figures of a trivial baseline, or of a model that has trained its steps."""
    from hsokv_ray.swarm.choose_task import default_strategy

    learner = task.learner()
    if name in ("majority", "TF-IDF + logistic regression", "frozen MiniLM + logistic regression"):
        return {"accuracy": trivial(name, learner)}
    learner.configure(default_strategy(task), seed=seed)
    learner.reset()
    learner.train(task.total_steps)
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
        found = streaming_ridge_over_stream(stream, seed=seed, num_filters=100 if quick else CIFAR_FILTERS)
        figures = {name: vars(getattr(found, name)) for name in SCENARIOS}
        for each in figures.values():
            each["matrix_TT"] = each["matrix_TT"].tolist()
        return figures | {"bytes": found.memory_bytes, "steps": 0, "flops": 0}
    ours, task = CifarTask(**options), CifarTask(**options, **CIFAR[row])
    steps = 10 if quick else round(CIFAR_STEPS * ours.cost(default_strategy(ours)) / task.cost(default_strategy(task)))
    task = dataclasses.replace(task, total_steps=steps)
    learner = task.learner()
    learner.configure(default_strategy(task), seed=seed)
    learner.reset()
    learner.train(steps)
    flops, figures = learner.flops, learner.test()
    return figures["test"] | {"bytes": figures["memory_bytes"], "steps": steps, "flops": flops}


def language_cell(data: Path, row: str, seed: int, quick: bool) -> dict[str, Any]:
    """One model; the one without a memory brings the counts of tokens."""
    from hsokv_ray.swarm.choose_task import default_strategy
    from hsokv_ray.swarm.comparison import trivial_baselines
    from hsokv_ray.swarm.learners.language import LanguageTask

    steps = 5 if quick else LANGUAGE_STEPS
    task = LanguageTask(
        source="python://stdlib", use_kv=LANGUAGE[row], total_steps=steps, knn_tokens=1000 if quick else 50_000,
        num_tested=16 if quick else 256, data_seed=seed,
    )  # fmt: skip
    learner = task.learner()
    learner.configure(default_strategy(task), seed=seed)
    learner.reset()
    learner.train(steps)
    flops, found = learner.flops, learner.test()
    figures = {"perplexity": found["perplexity"], "knn_lm": found["knn_lm"]["perplexity"], "flops": flops}
    if LANGUAGE[row]:
        return figures | {"without_memory": found["perplexity_without_memory"], "gate_mean": found["gate_mean"]}
    return figures | {name: math.exp(-score.mean) for name, score in trivial_baselines(task).items()}


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
        figures = [each[name] for each in of_row(cells, "glue", task)]
        utility = [each["memory_utility"] for each in figures if "memory_utility" in each]
        rows.append({"row": name, "accuracy": percent([each["accuracy"] for each in figures]),
                     "memory utility, points": percent(utility) if utility else "", "seeds": len(figures)})  # fmt: skip
    return rows


def cifar_table(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for name in CIFAR:
        figures = of_row(cells, "cifar", name)
        shown = {written(each): percent([one[each]["average_accuracy"] for one in figures]) for each in SCENARIOS}
        rows.append({"row": name, **shown, "bytes kept": int(mean_of(figures, "bytes", 1)),
                     "steps": int(mean_of(figures, "steps", 1)), "GFLOP": mean_of(figures, "flops", 1e9),
                     "seeds": len(figures)})  # fmt: skip
    return rows


def transfer_table(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for name in CIFAR:
        figures = of_row(cells, "cifar", name)
        shown = {
            f"{written(scenario)} {each.replace('_', ' ')}": percent([one[scenario][each] for one in figures])
            for scenario in SCENARIOS
            for each in FIGURES_OF_STREAM[1:]
        }
        rows.append({"row": name, **shown})
    return rows


def matrix_table(cells: list[dict[str, Any]], scenario: str) -> list[dict[str, Any]]:
    mean_TT = np.mean([one[scenario]["matrix_TT"] for one in of_row(cells, "cifar", OURS_OF_CIFAR)], axis=0)
    return [
        {"after task": i + 1} | {f"task {j + 1}": round(100 * float(share), 1) for j, share in enumerate(row_T)}
        for i, row_T in enumerate(mean_TT)
    ]


def language_table(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with_memory, without = (of_row(cells, "language", name) for name in LANGUAGE)
    trivial = sorted(without[0].keys() - {"perplexity", "knn_lm", "flops"})
    columns = {name: [each[name] for each in without] for name in trivial}
    columns |= {
        "transformer without a memory": [each["perplexity"] for each in without],
        "the same, kNN-LM": [each["knn_lm"] for each in without],
        "transformer with KV memory": [each["perplexity"] for each in with_memory],
        "the same, its memory left out": [each["without_memory"] for each in with_memory],
        "the same, kNN-LM in its memory's place": [each["knn_lm"] for each in with_memory],
    }
    plain = columns["transformer without a memory"]
    rows = []
    for name, values in columns.items():
        score, lead = over_seeds(values), over_seeds(np.subtract(values, plain).tolist())
        difference = "" if values is plain else f"{lead.mean:+.2f} [{lead.low:.2f}, {lead.high:.2f}]"
        rows.append({"row": name, "perplexity": f"{score.mean:.2f} [{score.low:.2f}, {score.high:.2f}]",
                     "minus transformer without": difference, "seeds": len(values)})  # fmt: skip
    return rows


def written(scenario: str) -> str:
    """Return class-IL or task-IL."""
    return scenario.replace("_il", "-IL")


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
    lead = [100 * (one["accuracy"] - max(one[name] for name in TRIVIAL)) for one in full]
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
