"""A stream of tasks, step by step: which images a step sees, and the accuracy of each task whenever one ends.

Step n of a training of N steps belongs to task n * T // N of T. A task's images come in permutations of them all, one
after the other; an image is new when it is shown for the first time.

Shapes: B batch, n images, L labels, T tasks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hsokv_ray.data.tasks import Experience
from hsokv_ray.errors import ConfigError, RunError
from hsokv_ray.evaluation.continual import Continual, continual_metrics

SCENARIOS = ("class_il", "task_il")
Judged = Literal["validation", "test"]


@dataclass(frozen=True, eq=False)
class Shown:
    """Images of one step."""

    task: int
    rows_B: np.ndarray
    """Of the task's training images, int64."""
    is_new_B: np.ndarray
    """bool: shown for the first time."""

    @property
    def ids(self) -> list[str]:
        """Names that no two images of the stream share."""
        return [f"{self.task}.{row}" for row in self.rows_B]


@dataclass(frozen=True)
class Order:
    """Which images come when.

    Args:
        sizes: training images of each task.
        total_steps: of the whole training, at least one per task.
    """

    sizes: tuple[int, ...]
    total_steps: int

    def __post_init__(self) -> None:
        if self.total_steps < len(self.sizes):
            raise ConfigError(
                f"total_steps: got {self.total_steps}; {len(self.sizes)} tasks need a step each, at least"
            )

    def task_of(self, step: int) -> int:
        """Return the task of the step that follows `step` finished ones; the last one from `total_steps` on."""
        return min(step * len(self.sizes) // self.total_steps, len(self.sizes) - 1)

    def ended_by(self, step: int) -> int | None:
        """Return the task whose last step was the one that made `step` finished; None: none ended."""
        if not 0 < step <= self.total_steps:
            return None
        task = self.task_of(step - 1)
        return task if step == self.total_steps or self.task_of(step) != task else None

    def show(self, task: int, begin: int, num: int, *, seed: int) -> Shown:
        """Return the `num` images of `task` that follow the `begin` images already shown of it."""
        size = self.sizes[task]
        position_B = np.arange(begin, begin + num)
        epochs_B, places_B = np.divmod(position_B, size)
        orders = {e: np.random.default_rng((seed, task, e)).permutation(size) for e in np.unique(epochs_B).tolist()}
        rows = [int(orders[epoch][place]) for epoch, place in zip(epochs_B.tolist(), places_B.tolist(), strict=True)]
        return Shown(task, np.array(rows, np.int64), epochs_B == 0)


def row_of(stream: Sequence[Experience], split: Judged, scores: Callable[[int], np.ndarray]) -> dict[str, list[float]]:
    """Return the accuracy on every task of the stream, by scenario.

    Args:
        scores: task -> [n, L] for its images in `split`.

    Raises:
        RunError: a score is no finite number.
    """
    found: dict[str, list[float]] = {scenario: [] for scenario in SCENARIOS}
    for experience in stream:
        scores_nL, labels_n = scores(experience.index), experience.splits.of(split).labels
        if not np.isfinite(scores_nL).all():
            raise RunError(f"task {experience.index}: scores are not finite; train with a lower learning rate")
        own = np.array(experience.classes)
        found["class_il"].append(float((scores_nL.argmax(axis=1) == labels_n).mean()))
        found["task_il"].append(float((own[scores_nL[:, own].argmax(axis=1)] == labels_n).mean()))
    return found


def figures(rows: Sequence[dict[str, list[float]]]) -> dict[str, Any]:
    """Return average accuracy, transfer and forgetting of both scenarios from T + 1 rows, the first of the untrained.

    Raises:
        RunError: a task has not ended yet.
    """
    if not rows or len(rows) != len(rows[0]["class_il"]) + 1:
        raise RunError(
            f"accuracy matrix: got {len(rows)} rows, and the stream has not ended; train to total_steps first"
        )
    return {
        name: _json(continual_metrics([row[name] for row in rows[1:]], untrained=rows[0][name])) for name in SCENARIOS
    }


def _json(found: Continual) -> dict[str, Any]:
    return {**vars(found), "matrix_TT": found.matrix_TT.tolist()}
