"""Split-CIFAR-10: the ten classes come two at a time, as five tasks one after the other (Zenke et al. 2017).

In class-incremental learning (class-IL) the answer is one of all classes; in task-incremental learning (task-IL) one of
the two classes of the image's task, which is told (van de Ven and Tolias 2019). Labels are 0 to 9 in both.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hsokv_ray.data.tasks.base import Examples, Splits, without_inputs_of
from hsokv_ray.data.tasks.cifar import CLASSES, Cifar10, load_cifar10
from hsokv_ray.errors import DataError

VALIDATION_SHARE = 0.1
"""Share of the training images of each class that is kept for validation."""


@dataclass(frozen=True, eq=False)
class Experience:
    """One task of the stream."""

    index: int
    classes: tuple[int, ...]
    """Labels of its images."""
    splits: Splits


class SplitCifar:
    """Split-CIFAR-10 over images that are already read.

    Args:
        cifar: the images.
        num_tasks: tasks of equally many classes.

    Raises `DataError` where the ten classes cannot be divided among the tasks.
    """

    name = "split_cifar10"
    num_labels = len(CLASSES)

    def __init__(self, cifar: Cifar10, *, num_tasks: int = 5) -> None:
        if num_tasks < 1 or self.num_labels % num_tasks:
            raise DataError(f"num_tasks: got {num_tasks}; {self.num_labels} classes divide into 1, 2, 5 or 10 tasks")
        self._cifar = cifar
        self._num_tasks = num_tasks

    @classmethod
    def from_folder(
        cls, folder: str | Path, *, train_per_class: int | None = None, test_per_class: int | None = None
    ) -> "SplitCifar":
        """Read the images of `folder`, see `load_cifar10`."""
        return cls(load_cifar10(folder, train_per_class=train_per_class, test_per_class=test_per_class))

    def classes(self, task: int) -> tuple[int, ...]:
        """Return the labels of a task: 0 and 1, 2 and 3, ... as in the published tables."""
        size = self.num_labels // self._num_tasks
        return tuple(range(task * size, (task + 1) * size))

    def splits(self, seed: int) -> Splits:
        """Return all tasks at once, for joint training; `seed` decides order and validation images."""
        train, validation = self._divided(seed)
        return Splits(
            name=self.name,
            num_labels=self.num_labels,
            train=train,
            validation=validation,
            test=self._cifar.test,
            source=self._cifar.source,
        )

    def experiences(self, seed: int) -> list[Experience]:
        """Return the tasks in their order; `seed` decides the order of images and which are for validation."""
        whole = self.splits(seed)
        return [self._experience(task, whole) for task in range(self._num_tasks)]

    def _experience(self, task: int, whole: Splits) -> Experience:
        classes = self.classes(task)
        parts = {name: _of_classes(whole.of(name), classes) for name in ("train", "validation", "test")}
        splits = Splits(name=f"{self.name}/{task}", num_labels=self.num_labels, source=whole.source, **parts)
        return Experience(task, classes, splits)

    def _divided(self, seed: int) -> tuple[Examples, Examples]:
        """Return training and validation images; those that are also in the test, or in both, are left out of them."""
        rng = np.random.default_rng(seed)
        images = without_inputs_of(self._cifar.train, self._cifar.test)
        order = rng.permutation(len(images))
        is_validation = np.zeros(len(images), dtype=bool)
        for label in range(self.num_labels):
            of_label = order[images.labels[order] == label]
            is_validation[of_label[: round(VALIDATION_SHARE * len(of_label))]] = True
        validation = images.select(order[is_validation[order]])
        return without_inputs_of(images.select(order[~is_validation[order]]), validation), validation


def _of_classes(examples: Examples, classes: tuple[int, ...]) -> Examples:
    return examples.select(np.isin(examples.labels, classes))
