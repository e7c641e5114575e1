"""Continual learning, judged from the full matrix of accuracies.

R[i, j]  accuracy on the test of task j after learning tasks 0 to i; T tasks
b[j]     accuracy on task j of a model that has learnt nothing
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hsokv_ray.errors import DataError


@dataclass(frozen=True, eq=False)
class Continual:
    """What is reported of a stream of tasks; shares, not percent."""

    matrix_TT: np.ndarray
    average_accuracy: float
    """Mean of the last row: (1 / T) sum_j R[T-1, j] (Lopez-Paz and Ranzato 2017, equation 2)."""
    backward_transfer: float
    """(1 / (T-1)) sum_{j < T-1} R[T-1, j] - R[j, j] (equation 3), negative where tasks got worse. 0 for T = 1."""
    forward_transfer: float
    """(1 / (T-1)) sum_{j > 0} R[j-1, j] - b[j] (equation 4); NaN where b was not measured. 0 for T = 1."""
    forgetting: float
    """(1 / (T-1)) sum_{j < T-1} max_{i < T-1} R[i, j] - R[T-1, j] (Chaudhry et al. 2018, equation 3). 0 for T = 1."""


def continual_metrics(
    matrix: np.ndarray | Sequence[Sequence[float]], *, untrained: Sequence[float] | np.ndarray | None = None
) -> Continual:
    """Return the figures of an accuracy matrix.

    Args:
        matrix: [T, T], R above. Entries above the diagonal are only needed for forward transfer; NaN where they were
            not measured.
        untrained: [T], b above; None where it was not measured.

    Raises `DataError` where the matrix is not square, or an entry that is needed is not in [0, 1].
    """
    R = np.asarray(matrix, dtype=np.float64)
    if R.ndim != 2 or R.shape[0] != R.shape[1] or not len(R):
        raise DataError(f"accuracy matrix: got shape {list(R.shape)}; [tasks, tasks] is needed")
    if not _are_shares(R[np.tril_indices(len(R))]):
        raise DataError("accuracy matrix: an entry on or below the diagonal is not in [0, 1]; give shares, not percent")
    num_earlier = max(len(R) - 1, 1)
    diagonal, last = np.diag(R), R[-1]
    best = np.array([np.nanmax(R[:-1, j]) for j in range(len(R) - 1)])
    return Continual(
        matrix_TT=R,
        average_accuracy=float(last.mean()),
        backward_transfer=float((last - diagonal)[:-1].sum() / num_earlier),
        forward_transfer=_forward_transfer(R, untrained) / num_earlier,
        forgetting=float((best - last[:-1]).sum() / num_earlier),
    )


def accuracy_matrix(
    num_tasks: int, learn: Callable[[int], None], accuracy: Callable[[int], float]
) -> tuple[np.ndarray, np.ndarray]:
    """Learn the tasks in their order and measure all of them before the first and after each.

    Args:
        learn: learns task i, and nothing else than from its training examples.
        accuracy: returns the accuracy on the test of task j.

    Returns the matrix [T, T] and the accuracies of the untrained model [T].
    """
    untrained = np.array([accuracy(j) for j in range(num_tasks)])
    rows = []
    for i in range(num_tasks):
        learn(i)
        rows.append([accuracy(j) for j in range(num_tasks)])
    return np.array(rows), untrained


def _forward_transfer(R: np.ndarray, untrained: Sequence[float] | np.ndarray | None) -> float:
    if len(R) == 1:
        return 0.0
    before = np.diag(R, k=1)
    if untrained is None or np.isnan(before).any():
        return float("nan")
    b = np.asarray(untrained, dtype=np.float64)
    if b.shape != (len(R),) or not _are_shares(b) or not _are_shares(before):
        raise DataError(f"untrained: got {b.tolist()}; an accuracy in [0, 1] for each of {len(R)} tasks is needed")
    return float((before - b[1:]).sum())


def _are_shares(values: np.ndarray) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())
