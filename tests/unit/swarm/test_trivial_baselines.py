"""Trivial baselines: each is the headline of its task, on the very test items, and is shown in its unit."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from generated_data import write_cifar, write_glue

from hsokv_ray.data.tasks import Examples, Experience, SplitCifar
from hsokv_ray.evaluation import Score
from hsokv_ray.evaluation.baselines import PatchFeatures, StreamingRidge
from hsokv_ray.memory.stored_vectors import write_vectors
from hsokv_ray.swarm import comparison
from hsokv_ray.swarm.comparison import trivial_baselines
from hsokv_ray.swarm.learners.cifar import CifarTask
from hsokv_ray.swarm.learners.few_shot import FewShotTask
from hsokv_ray.swarm.learners.language import LanguageTask


def test_a_linear_classifier_on_the_frozen_vectors_stands_beside_glue(tmp_path: Path) -> None:
    """The vectors tell the label and nothing else, so that it makes no mistake."""
    folder = str(write_glue(tmp_path))
    splits = FewShotTask(data=folder).learner().splits
    parts = (splits.train, splits.validation, splits.test)
    label_of = {text: label for part in parts for text, label in zip(part.inputs, part.labels, strict=True)}
    write_vectors(tmp_path / "vectors", list(label_of), np.eye(2, dtype=np.float32)[list(label_of.values())])
    plain = trivial_baselines(FewShotTask(data=folder))
    table = trivial_baselines(FewShotTask(data=folder, encoder=f"vectors:{tmp_path / 'vectors'}"))
    assert table.keys() - plain.keys() == {"frozen vectors + logistic regression"}
    assert plain.items() <= table.items()
    found = table["frozen vectors + logistic regression"]
    assert (found.mean, found.n) == (1.0, len(splits.test))


def test_the_streaming_ridge_stands_beside_split_cifar_on_the_whole_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_cifar(tmp_path, per_class=30, test_per_class=6)
    task = CifarTask(str(folder), data_seed=3, key_dim=12, num_filters=6)
    monkeypatch.setattr(comparison, "RIDGE_PER_CLASS", 20)
    table = trivial_baselines(task)
    stream = SplitCifar.from_folder(folder).experiences(3)
    features, ridge = PatchFeatures.fit(first_of_each(stream[0], 20).inputs, seed=3), StreamingRidge(800, 10)
    for each in stream:
        few = first_of_each(each, 20)
        ridge.update(features.transform(few.inputs), few.labels)
    tests = [each.splits.test for each in task.learner().stream]
    right = [ridge.predict(features.transform(test.inputs)) == test.labels for test in tests]
    found = table["streaming ridge on patches, at most 20 images a class"]
    assert found.mean == pytest.approx(np.mean([each.mean() for each in right]))
    assert {score.n for score in table.values()} == {sum(len(test) for test in tests)}
    assert table["chance"].mean == 0.1 < found.mean


def first_of_each(experience: Experience, per_class: int) -> Examples:
    train = experience.splits.train
    return train.select([i for i, label in enumerate(train.labels) if (train.labels[:i] == label).sum() < per_class])


def test_frequencies_of_tokens_stand_beside_a_language_model(corpus: Path) -> None:
    task = LanguageTask(source=str(corpus), seq_len=10, vocab_size=320, num_tested=30)
    learner = task.learner()
    table = trivial_baselines(task)
    counts = Counter(learner.train_windows[:, 1:].flatten().tolist())
    num, size = sum(counts.values()), learner.tokenizer.vocab_size
    targets = learner.held_out["test"][:, 1:].flatten().tolist()
    expected = np.mean([math.log((counts[token] + 1) / (num + size)) for token in targets])
    assert table["unigram"].mean == pytest.approx(expected)
    assert table["equal frequencies"].mean == pytest.approx(-math.log(size))
    assert {score.n for score in table.values()} == {len(targets)}


@pytest.mark.parametrize(
    ("figures", "head", "own", "other"),
    [
        ({"accuracy": 0.5, "n": 200.0}, "accuracy, % (95 % interval)", "50.0 [43.1, 56.9]", "20.0 [10.0, 30.0]"),
        ({"final_test": {"class_il": [0.2, 0.4]}, "n": 200}, "class-IL accuracy, % (95 % interval)",
         "30.0 [24.1, 36.7]", "20.0 [10.0, 30.0]"),
        ({"loss": 4.41}, "minus loss, nats per token", "-4.4100", "0.2000 [0.1000, 0.3000]"),
    ],
)  # fmt: skip
def test_only_shares_are_in_percent(figures: dict, head: str, own: str, other: str) -> None:
    """Wilson's intervals of 100 and of 60 of 200 are computed by hand."""
    lines = comparison.comparison("model", figures, {"other": Score(0.2, 0.1, 0.3, 7)}).splitlines()
    assert lines[0] == f"| | test {head} |"
    assert lines[2:4] == [f"| **model** | **{own}** |", f"| other | {other} |"]
