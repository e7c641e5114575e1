"""Class-IL and task-IL of one run."""

import numpy as np
import pytest

from hsokv_ray.data.tasks import Examples, SplitCifar
from hsokv_ray.data.tasks.cifar import Cifar10
from hsokv_ray.data.tasks.split_cifar import Experience
from hsokv_ray.errors import DataError
from hsokv_ray.evaluation import over_stream, streaming_ridge_over_stream


@pytest.fixture
def stream() -> list[Experience]:
    rng = np.random.default_rng(0)

    def images(per_class: int) -> Examples:
        labels = np.repeat(np.arange(10), per_class)
        rows = rng.integers(60, size=(len(labels), 32, 32, 3), dtype=np.uint8)
        for row, label in zip(rows, labels.tolist(), strict=True):
            row[:, :: 2 + label] += 150  # stripes of a period for each class
        return Examples("images", rows, labels)

    return SplitCifar(Cifar10(images(10), images(4), "generated")).experiences(0)


def test_a_learner_that_only_knows_the_last_task_forgets_in_class_il_and_not_in_task_il(stream) -> None:
    """The expected outcome of naive fine-tuning, worked out by hand: only the last task is answered in class-IL."""
    learnt: list[int] = []

    def scores(experience: Experience) -> np.ndarray:
        labels = experience.splits.test.labels
        right = np.eye(10)[labels] if experience.index in learnt else np.zeros((len(labels), 10))
        right[:, stream[learnt[-1]].classes if learnt else []] += 2
        return right

    found = over_stream(stream, lambda experience: learnt.append(experience.index), scores)
    assert found.class_il.average_accuracy == pytest.approx(1 / 5)
    assert found.class_il.backward_transfer == pytest.approx(-1)
    assert found.class_il.forgetting == pytest.approx(1)
    assert found.task_il.average_accuracy == 1
    assert found.task_il.backward_transfer == 0
    # Untrained and not yet learnt: the first class of each two, which is half of the images.
    assert found.task_il.forward_transfer == 0
    assert np.triu(found.task_il.matrix_TT, k=1).max() == 0.5


def test_the_streaming_ridge_tells_stripes_apart_after_all_tasks(stream) -> None:
    found = streaming_ridge_over_stream(stream, seed=0, num_filters=20)
    assert found.task_il.average_accuracy > 0.9
    assert found.class_il.average_accuracy > 0.5
    assert found.memory_bytes == 8 * 161 * (161 + 10) + 4 * 20 * (108 + 1)


def test_scores_that_do_not_fit_are_refused(stream) -> None:
    for wrong in (np.zeros((8, 2)), np.full((8, 10), np.nan)):
        with pytest.raises(DataError, match=r"finite \[8, 10\] is needed"):
            over_stream(stream, lambda experience: None, lambda experience, wrong=wrong: wrong)
