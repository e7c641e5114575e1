"""One run over a stream of tasks, judged class- and task-incrementally at once.

Both scenarios look at the same scores for all classes: class-IL takes the best of all, task-IL the best of the task's
(van de Ven and Tolias 2019). So one learner is trained once for both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hsokv_ray.data.tasks.split_cifar import Experience
from hsokv_ray.errors import DataError
from hsokv_ray.evaluation.baselines.patches import PatchFeatures
from hsokv_ray.evaluation.baselines.ridge import StreamingRidge
from hsokv_ray.evaluation.continual import Continual, continual_metrics


@dataclass(frozen=True, eq=False)
class Scenarios:
    """The figures of both."""

    class_il: Continual
    task_il: Continual
    memory_bytes: int = 0
    """What the learner keeps between tasks besides its weights; 0 where it was not said."""


def over_stream(
    stream: Sequence[Experience],
    learn: Callable[[Experience], None],
    scores: Callable[[Experience], np.ndarray],
) -> Scenarios:
    """Learn the tasks in their order and measure all of them before the first and after each.

    Args:
        learn: learns a task from its training (and validation) examples.
        scores: returns [n, num_labels], for the test examples of a task; called T + 1 times for each task.

    Raises `DataError` where scores are not finite or not one row for each test example.
    """
    rows = [_accuracies(stream, scores)]
    for experience in stream:
        learn(experience)
        rows.append(_accuracies(stream, scores))
    accuracies = np.array(rows)  # [1 + T, T, 2]
    class_il, task_il = (continual_metrics(accuracies[1:, :, i], untrained=accuracies[0, :, i]) for i in range(2))
    return Scenarios(class_il, task_il)


def streaming_ridge_over_stream(stream: Sequence[Experience], *, seed: int, num_filters: int = 100) -> Scenarios:
    """Return what ridge regression on patch features reaches in one pass, without gradients and without a buffer.

    Filters come from the first task only. The memory is the ridge's sums and the filters.
    """
    features = PatchFeatures.fit(stream[0].splits.train.inputs, seed=seed, num_filters=num_filters)
    ridge = StreamingRidge(features.dim, stream[0].splits.num_labels)
    # Features of a test set are needed T + 1 times and never change.
    test = {e.index: features.transform(e.splits.test.inputs) for e in stream}

    def learn(experience: Experience) -> None:
        for examples in (experience.splits.train, experience.splits.validation):
            ridge.update(features.transform(examples.inputs), examples.labels)

    found = over_stream(stream, learn, lambda experience: ridge.scores(test[experience.index]))
    return Scenarios(found.class_il, found.task_il, ridge.num_bytes + features.num_bytes)


def _accuracies(stream: Sequence[Experience], scores: Callable[[Experience], np.ndarray]) -> list[tuple[float, float]]:
    """Return (class-IL, task-IL) accuracy on the test of each task."""
    found = []
    for experience in stream:
        labels = experience.splits.test.labels
        values = np.asarray(scores(experience))
        needed = (len(labels), experience.splits.num_labels)
        if values.shape != needed or not np.isfinite(values).all():
            raise DataError(
                f"task {experience.index}: got scores {list(values.shape)}; finite {list(needed)} is needed"
            )
        own = np.array(experience.classes)
        of_task = own[values[:, own].argmax(axis=1)]
        found.append((float((values.argmax(axis=1) == labels).mean()), float((of_task == labels).mean())))
    return found
