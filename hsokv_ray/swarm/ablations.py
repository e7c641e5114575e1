"""What the memory and the swarm are worth: four variants at equal budgets of FLOPs over several seeds.

full: swarm and memory. kv_only: memory, one long training by the default strategy. swarm_only: swarm without memory.
neither. A variant whose steps are cheaper trains more of them; a swarm that comes to like small batches leaves some of
its budget. What the full variant's test says of forced gates, shuffled values and random keys stands beside them, and
trivial baselines on each seed's own test items.
"""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from hsokv_ray.errors import RunError
from hsokv_ray.evaluation.intervals import Score, over_seeds
from hsokv_ray.swarm.choose_task import default_strategy, evaluation_flops, plain_task, swarm_of, task_of
from hsokv_ray.swarm.comparison import headline, is_share, shown, trivial_baselines
from hsokv_ray.swarm.run_folder import SearchFolder
from hsokv_ray.swarm.search import search
from hsokv_ray.swarm.search_config import SearchSwarmConfig
from hsokv_ray.swarm.summary import Summary

VARIANTS: dict[str, tuple[bool, bool]] = {
    "full": (True, True),
    "kv_only": (False, True),
    "swarm_only": (True, False),
    "neither": (False, False),
}
"""Name -> (with the swarm, with the memory)."""
TAMPERED = ("gate_0", "gate_1", "without_memory", "shuffled_values", "random_keys")
"""Test figures of the full variant that are its headline under a change of the memory."""


def run_ablations(config: SearchSwarmConfig, folder: Path) -> str:
    """Run every variant with every seed, those that are finished already left out; return the table as Markdown.

    Writes ablations.json and ablations.md into `folder`, and with `--visualize` a plot of bars.

    Args:
        config: of the full variant; `run.ablation_seeds` seeds from `run.seed` on.
        folder: each variant has its own below it.
    """
    cells = [
        (variant(config, name, config.run.seed + i), folder / "ablations" / f"{name}-{i}")
        for name in VARIANTS
        for i in range(config.run.ablation_seeds)
    ]
    summaries = _run_all(config, cells)
    results: dict[str, list[Summary]] = {}
    for (_, path), summary in zip(cells, summaries, strict=True):
        results.setdefault(path.name.rpartition("-")[0], []).append(summary)
    table = scores(results)
    trivial = baselines([changed for changed, path in cells if path.name.startswith("full-")])
    values = _as_json(results, table, trivial)
    folder.joinpath("ablations.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    text = as_markdown(results, table, trivial)
    folder.joinpath("ablations.md").write_text(text, encoding="utf-8")
    if config.run.visualize:
        _plot(measure(results), table, trivial, folder / "plots" / "ablations.png")
    return text


def variant(config: SearchSwarmConfig, name: str, seed: int) -> SearchSwarmConfig:
    """Return the configuration of one variant, with the budget of the full one and steps that use it up."""
    with_swarm, with_memory = VARIANTS[name]
    full = _changed(config, use_swarm=True, use_kv=True, seed=seed)
    budget = swarm_of(full).flops_budget
    changed = _changed(config, use_swarm=with_swarm, use_kv=with_memory, seed=seed)
    task, orders = plain_task(changed), config.search.num_agents * config.search.of_preset("iterations")
    left = (budget or 0) / orders - evaluation_flops(task)
    steps = int(left // task.cost(default_strategy(task)))
    search = changed.search.model_copy(update={"flops_budget": float(budget or 0), "agent_steps": max(steps, 1)})
    return changed.model_copy(update={"search": search})


def run_variant(config: SearchSwarmConfig, folder: Path) -> Summary:
    """Search in this process, unless it was done; go on where it was begun."""
    files = SearchFolder(folder)
    if files.summary.exists():
        return Summary.from_json(json.loads(files.summary.read_text(encoding="utf-8")))
    return search(
        task_of(config), swarm_of(config), folder=folder, seed=config.run.seed, backend="local",
        resume=files.config.exists(),
    )  # fmt: skip


def scores(results: dict[str, list[Summary]]) -> dict[str, Score]:
    """Return the headline of each variant's test, and the full one's when its memory is tampered with."""
    table = {name: over_seeds([headline(each.test)[1] for each in summaries]) for name, summaries in results.items()}
    for name in TAMPERED:
        if all(name in each.test for each in results["full"]):
            table[f"full, {name}"] = over_seeds([float(each.test[name]) for each in results["full"]])
    return table


def baselines(configs: Iterable[SearchSwarmConfig]) -> dict[str, Score]:
    """Return the trivial baselines over seeds, a configuration for each: a seed has test items of its own."""
    found = [trivial_baselines(plain_task(config)) for config in configs]
    return {name: over_seeds([each[name].mean for each in found]) for name in found[0]}


def measure(results: dict[str, list[Summary]]) -> str:
    """Return the name of the tests' headline."""
    return headline(results["full"][0].test)[0]


def as_markdown(
    results: dict[str, list[Summary]], table: dict[str, Score], trivial: dict[str, Score]
) -> str:  # fmt: skip
    """Return the table: scores of variants, then trivial baselines."""
    figure = measure(results)
    unit = ", %" if is_share(figure) else ""
    lines = [
        f"| Variant | Test {figure}{unit} (95 % interval) | Retention, % | GFLOP spent | Seeds |",
        "|---|---|---|---|---|",
    ]
    for name, score in (table | trivial).items():
        summaries = results.get(name, [])
        kept = [float(each.test["retention"]) for each in summaries if each.test.get("retention") is not None]
        retention = shown(over_seeds(kept), "accuracy") if kept else "-"
        flops = (
            f"{sum(sum(each.flops.values()) for each in summaries) / len(summaries) / 1e9:.2f}" if summaries else "-"
        )
        lines.append(f"| {name} | {shown(score, figure)} | {retention} | {flops} | {score.seeds} |")
    return "\n".join(lines) + "\n"


def _run_all(config: SearchSwarmConfig, cells: list[tuple[SearchSwarmConfig, Path]]) -> list[Summary]:
    configs, folders = [cell[0] for cell in cells], [cell[1] for cell in cells]
    if config.run.distributed_backend == "local":
        return [run_variant(*cell) for cell in cells]
    if config.run.distributed_backend == "ray":
        return _on_ray(configs, folders, config.run.cpus_per_agent)
    try:
        with ProcessPoolExecutor(config.run.num_workers, mp_context=get_context("spawn")) as pool:
            return list(pool.map(_alone, configs, folders))
    except BrokenProcessPool as error:
        raise RunError("ablations: a process was killed; the same command goes on where they were") from error


def _on_ray(configs: Iterable[SearchSwarmConfig], folders: Iterable[Path], cpus: float) -> list[Summary]:
    from hsokv_ray.swarm.ray_backend.everywhere import run_everywhere

    work: Callable[..., Summary] = _alone
    return run_everywhere(work, list(zip(configs, folders, strict=True)), cpus=cpus)


def _alone(config: SearchSwarmConfig, folder: Path) -> Summary:
    """`run_variant` on one thread: others run beside it."""
    import torch

    torch.set_num_threads(1)
    torch.get_num_threads()
    return run_variant(config, folder)


def _changed(config: SearchSwarmConfig, *, use_swarm: bool, use_kv: bool, seed: int) -> SearchSwarmConfig:
    return config.model_copy(
        update={
            "search": config.search.model_copy(update={"use_swarm": use_swarm}),
            "task": config.task.model_copy(update={"use_kv": use_kv}),
            "run": config.run.model_copy(update={"seed": seed}),
        }
    )


def _plot(figure: str, table: dict[str, Score], trivial: dict[str, Score], path: Path) -> None:
    from hsokv_ray.swarm.eyes.plots import plot_ablations

    if is_share(figure):
        figure, table, trivial = f"{figure}, %", _in_percent(table), _in_percent(trivial)
    plot_ablations(table, path, measure=f"test {figure}", baselines=trivial)


def _in_percent(table: dict[str, Score]) -> dict[str, Score]:
    return {
        name: replace(score, mean=100 * score.mean, low=100 * score.low, high=100 * score.high)
        for name, score in table.items()
    }


def _as_json(
    results: dict[str, list[Summary]], table: dict[str, Score], trivial: dict[str, Score]
) -> dict[str, Any]:  # fmt: skip
    return {
        "measure": measure(results),
        "scores": {name: vars(score) for name, score in table.items()},
        "baselines": {name: vars(score) for name, score in trivial.items()},
        "searches": {name: [each.to_json() for each in summaries] for name, summaries in results.items()},
    }
