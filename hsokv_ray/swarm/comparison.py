"""A model's test figures beside those of trivial baselines on the very same test items."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hsokv_ray.data.tasks import Episode, Examples
from hsokv_ray.errors import DataError
from hsokv_ray.evaluation import baselines
from hsokv_ray.evaluation.intervals import Score, wilson
from hsokv_ray.swarm.learner import Task
from hsokv_ray.swarm.learners.cifar import CifarTask
from hsokv_ray.swarm.learners.few_shot import FewShotTask
from hsokv_ray.swarm.learners.rare_words import RareWordTask
from hsokv_ray.swarm.learners.text_vectors import TextVectors
from hsokv_ray.swarm.summary import Summary

Predict = Callable[[Examples, Examples], np.ndarray]

SECONDARY = (
    "without_memory", "memory_utility", "gate_0", "gate_1", "shuffled_values", "random_keys", "hit_rate", "gate_mean",
    "gate_entropy_bits", "retention", "perplexity", "perplexity_without_memory",
)  # fmt: skip
"""Figures of a test that are shown below the headline, where there are any."""


def headline(figures: Mapping[str, Any]) -> tuple[str, float]:
    """Return the name and the value of the figure a test is judged by; higher is better.

    Accuracy; of Split-CIFAR the class-IL accuracy on the whole test; of a language model minus the loss.

    Raises:
        DataError: there is none of them.
    """
    if "accuracy" in figures:
        return "accuracy", float(figures["accuracy"])
    if "final_test" in figures:
        return "class-IL accuracy", float(np.mean(figures["final_test"]["class_il"]))
    if "loss" in figures:
        return "minus loss, nats per token", -float(figures["loss"])
    raise DataError(f"test figures: got {sorted(figures)}; accuracy, final_test or loss is needed")


def trivial_baselines(task: Task) -> dict[str, Score]:
    """Return what needs no search and hardly any learning, by name, each on the task's own test items.

    Raises:
        DataError: the data is missing.
    """
    seed = getattr(task, "seed", 0)
    match task:
        case RareWordTask():
            learner = task.learner()
            return _on_episodes(learner.episodes("test"), seed, learner.vectors)
        case FewShotTask():
            return _on_splits(task)
        case CifarTask():
            return {"chance": Score(0.1, 0.1, 0.1, 1)}
    return {}


def comparison(what: str, figures: Mapping[str, Any], others: Mapping[str, Score]) -> str:
    """Return a Markdown table: the model, its own figures, the baselines.

    Args:
        what: names the model.
        figures: of its test.
        others: of `trivial_baselines`.
    """
    name, value = headline(figures)
    n = int(figures.get("n", 0))
    own = wilson(round(value * n), n).percent() if n else f"{value:.4f}"
    unit = ", % (95 % interval)" if n or name.endswith("accuracy") else ""
    lines = [f"| | test {name}{unit} |", "|---|---|", f"| **{what}** | **{own}** |"]
    lines += [f"| {other} | {_interval(score)} |" for other, score in others.items()]
    said = [f"- {each}: {float(figures[each]):.4f}" for each in SECONDARY if isinstance(figures.get(each), int | float)]
    return "\n".join([*lines, "", *said])


def report_of(summary: Summary, others: Mapping[str, Score]) -> str:
    """Return the end of a search in words and a table."""
    best, spent = summary.best, sum(summary.flops.values())
    strategy = ", ".join(f"{name} {_short(value)}" for name, value in best.strategy.items())
    lines = [
        f"best: {best.score:.4f} on validation data, order {best.order_id}, {best.step} steps",
        f"by: {strategy}",
        f"{summary.told} outcomes ({summary.failed} failed, {summary.lost} lost), {spent:.3g} FLOPs, "
        f"{summary.seconds:.0f} s on {summary.workers} workers, {summary.utilisation:.0%} of their time in orders",
    ]
    if summary.test_failure:
        return "\n".join([*lines, f"the best model was not tested: {summary.test_failure}"])
    return "\n".join([*lines, "", comparison("best model of the search", summary.test, others)])


def _on_episodes(episodes: list[Episode], seed: int, vectors: TextVectors | None) -> dict[str, Score]:
    rules: dict[str, Predict] = {
        "string match": baselines.string_match,
        "1-NN, random embedding": lambda train, test: baselines.random_embedding_nearest(train, test, seed=seed),
        "1-NN, TF-IDF": baselines.tfidf_nearest,
    }
    if vectors is not None:
        rules["1-NN, frozen vectors"] = lambda train, test: baselines.nearest(
            vectors.examples(train), vectors.examples(test)
        )
    n = sum(len(episode.queries) for episode in episodes)
    chance = sum(len(episode.queries) / episode.num_candidates for episode in episodes) / n
    table = {"chance": Score(chance, chance, chance, n)}
    for name, predict in rules.items():
        right = sum(int((predict(e.support, e.queries) == e.labels).sum()) for e in episodes)
        table[name] = wilson(right, n)
    return table


def _on_splits(task: FewShotTask) -> dict[str, Score]:
    splits = task.learner().splits
    rules: dict[str, Predict] = {
        "majority": baselines.majority,
        "TF-IDF + logistic regression": baselines.tfidf_logistic_regression,
    }
    n = len(splits.test)
    return {
        name: wilson(int((predict(splits.train, splits.test) == splits.test.labels).sum()), n)
        for name, predict in rules.items()
    }


def _interval(score: Score) -> str:
    return f"{100 * score.mean:.1f}" if score.low == score.high else score.percent()


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
