"""Continual learning's figures against worked examples and plain loops over the published equations."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hsokv_ray.errors import DataError
from hsokv_ray.evaluation import accuracy_matrix, continual_metrics


def test_a_worked_example() -> None:
    found = continual_metrics([[0.9, 0.5, 0.4], [0.7, 0.8, 0.6], [0.6, 0.7, 0.9]], untrained=[0.5, 0.5, 0.5])
    assert found.average_accuracy == pytest.approx((0.6 + 0.7 + 0.9) / 3)
    assert found.backward_transfer == pytest.approx(((0.6 - 0.9) + (0.7 - 0.8)) / 2)
    assert found.forward_transfer == pytest.approx(((0.5 - 0.5) + (0.6 - 0.5)) / 2)
    assert found.forgetting == pytest.approx(((0.9 - 0.6) + (0.8 - 0.7)) / 2)


@given(hnp.arrays(float, st.integers(2, 6).map(lambda n: (n, n)), elements=st.floats(0, 1)))
def test_the_figures_are_the_published_sums(R: np.ndarray) -> None:
    T, b = len(R), R[0][::-1]
    found = continual_metrics(R, untrained=b)
    assert found.average_accuracy == pytest.approx(sum(R[T - 1, i] for i in range(T)) / T)
    assert found.backward_transfer == pytest.approx(sum(R[T - 1, i] - R[i, i] for i in range(T - 1)) / (T - 1))
    assert found.forward_transfer == pytest.approx(sum(R[i - 1, i] - b[i] for i in range(1, T)) / (T - 1))
    forgotten = [max(R[k, j] for k in range(T - 1)) - R[T - 1, j] for j in range(T - 1)]
    assert found.forgetting == pytest.approx(sum(forgotten) / (T - 1))


def test_what_was_not_measured_is_not_invented() -> None:
    nan = float("nan")
    found = continual_metrics([[1.0, nan], [0.5, 1.0]], untrained=[0.1, 0.1])
    assert math.isnan(found.forward_transfer)
    assert (found.backward_transfer, found.forgetting, found.average_accuracy) == (-0.5, 0.5, 0.75)
    assert math.isnan(continual_metrics([[1.0, 0.2], [0.5, 1.0]]).forward_transfer)


def test_one_task_transfers_nothing() -> None:
    found = continual_metrics([[0.8]])
    assert (found.average_accuracy, found.backward_transfer, found.forgetting) == (0.8, 0, 0)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([[0.5, 0.5]], "tasks, tasks"),
        ([], "tasks, tasks"),
        ([[90.0]], "not percent"),
        ([[0.5, 0.5], [float("nan"), 0.5]], "not in"),
    ],
)
def test_what_is_no_accuracy_matrix_is_refused(matrix, message) -> None:
    with pytest.raises(DataError, match=message):
        continual_metrics(matrix)


def test_untrained_accuracies_must_fit() -> None:
    with pytest.raises(DataError, match="for each of 2 tasks"):
        continual_metrics([[1.0, 0.2], [0.5, 1.0]], untrained=[0.5])


def test_the_matrix_is_measured_before_the_first_and_after_every_task() -> None:
    learnt: list[int] = []
    matrix, untrained = accuracy_matrix(3, learnt.append, lambda task: 1.0 if task in learnt else 0.25)
    assert untrained.tolist() == [0.25] * 3
    assert matrix.tolist() == [[1, 0.25, 0.25], [1, 1, 0.25], [1, 1, 1]]
