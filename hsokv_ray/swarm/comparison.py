"""A model's test figures beside those of trivial baselines on the very same test items."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from hsokv_ray.data.tasks import Episode, Examples, Experience, SplitCifar
from hsokv_ray.errors import DataError
from hsokv_ray.evaluation import baselines
from hsokv_ray.evaluation.intervals import Score, wilson
from hsokv_ray.evaluation.scenarios import streaming_ridge_over_stream
from hsokv_ray.swarm.learner import Task
from hsokv_ray.swarm.learners.cifar import CifarTask
from hsokv_ray.swarm.learners.few_shot import FewShotLearner, FewShotTask
from hsokv_ray.swarm.learners.language import LanguageTask
from hsokv_ray.swarm.learners.rare_words import RareWordTask
from hsokv_ray.swarm.learners.text_vectors import TextVectors
from hsokv_ray.swarm.summary import Summary

Predict = Callable[[Examples, Examples], np.ndarray]

SECONDARY = (
    "without_memory", "memory_utility", "gate_0", "gate_1", "shuffled_values", "random_keys", "hit_rate", "gate_mean",
    "gate_entropy_bits", "retention", "perplexity", "perplexity_without_memory",
)  # fmt: skip
"""Figures of a test that are shown below the headline, where there are any."""
RIDGE_PER_CLASS = 1000
"""Images of a class that the streaming ridge learns from, at most: features take a millisecond of one core an image, so
that all 50,000 would take more than a minute. The test is whole."""


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


def is_share(name: str) -> bool:
    """Say whether the headline of that name is a share, which is shown in percent."""
    return name.endswith("accuracy")


def shown(score: Score, name: str) -> str:
    """Return a headline of that name as a table has it; the mean alone where it has no interval."""
    times, digits = (100, 1) if is_share(name) else (1, 4)
    mean, low, high = (f"{times * value:.{digits}f}" for value in (score.mean, score.low, score.high))
    return f"{mean} [{low}, {high}]" if math.isfinite(score.low) and score.low < score.high else mean


def trivial_baselines(task: Task) -> dict[str, Score]:
    """Return what needs no search and hardly any learning, by name, each the headline on the task's own test items.

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
            return _on_stream(task)
        case LanguageTask():
            return _on_windows(task)
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
    own = wilson(round(value * n), n) if n else Score(value, value, value, 1)
    unit = ", % (95 % interval)" if is_share(name) else ""
    lines = [f"| | test {name}{unit} |", "|---|---|", f"| **{what}** | **{shown(own, name)}** |"]
    lines += [f"| {other} | {shown(score, name)} |" for other, score in others.items()]
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
    table = {"chance": _exactly(chance, n)}
    for name, predict in rules.items():
        right = sum(int((predict(e.support, e.queries) == e.labels).sum()) for e in episodes)
        table[name] = wilson(right, n)
    return table


def _on_splits(task: FewShotTask) -> dict[str, Score]:
    learner = task.learner()
    train, test = learner.splits.train, learner.splits.test
    found = {
        "majority": baselines.majority(train, test),
        "TF-IDF + logistic regression": baselines.tfidf_logistic_regression(train, test),
    }
    if task.encoder is not None:
        found["frozen vectors + logistic regression"] = baselines.logistic_regression(
            _vectors(learner, "train"), _vectors(learner, "test")
        )
    return {name: wilson(int((labels == test.labels).sum()), len(test)) for name, labels in found.items()}


def _vectors(learner: FewShotLearner, split: Literal["train", "test"]) -> Examples:
    items = learner.items(split)
    return Examples("vectors", items.inputs.numpy().copy(), items.labels.numpy().copy())


def _on_stream(task: CifarTask) -> dict[str, Score]:
    images = SplitCifar.from_folder(
        task.folder, train_per_class=task.train_per_class, test_per_class=task.test_per_class
    )  # fmt: skip
    stream = [_with_few(each, RIDGE_PER_CLASS) for each in images.experiences(task.data_seed)]
    found = streaming_ridge_over_stream(stream, seed=task.data_seed).class_il
    n = sum(len(each.splits.test) for each in stream)
    name = f"streaming ridge on patches, at most {RIDGE_PER_CLASS:,} images a class"
    return {"chance": _exactly(1 / images.num_labels, n), name: wilson(round(found.average_accuracy * n), n)}


def _with_few(experience: Experience, per_class: int) -> Experience:
    """Return `experience` with at most `per_class` training images of each class, and no validation images."""
    train = experience.splits.train
    rows = np.concatenate([np.flatnonzero(train.labels == label)[:per_class] for label in experience.classes])
    few = replace(experience.splits, train=train.select(np.sort(rows)), validation=train.select([]))
    return replace(experience, splits=few)


def _on_windows(task: LanguageTask) -> dict[str, Score]:
    """Return minus the loss of frequencies of tokens: equal ones, and those of the training windows, each plus one."""
    learner = task.learner()
    vocab_size = learner.tokenizer.vocab_size
    targets = learner.held_out["test"][:, 1:].flatten()
    counts = learner.train_windows[:, 1:].flatten().bincount(minlength=vocab_size).double() + 1
    unigram = float((counts / counts.sum()).log()[targets].mean())
    n = len(targets)
    return {"equal frequencies": _exactly(-math.log(vocab_size), n), "unigram": _exactly(unigram, n)}


def _exactly(value: float, n: int) -> Score:
    return Score(value, value, value, n)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
