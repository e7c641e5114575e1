"""Ridge regression that learns from a stream in one pass: the sums it keeps are all that joint training would need.

For features x (with a constant) and one-hot labels y it keeps A = sum x x^T and B = sum x y^T; the weights
(A + ridge I)^-1 B after a stream are those of ridge regression on all of it at once, in whatever order it came.
"""

from collections.abc import Sequence

import numpy as np

from hsokv_ray.data.tasks.base import Examples, check_labels
from hsokv_ray.errors import DataError
from hsokv_ray.evaluation.baselines.patches import PatchFeatures


class StreamingRidge:
    """The sums, and predictions from them.

    Args:
        dim: features of an example.
        num_labels: classes.
        ridge: penalty, in units of the mean diagonal of A divided by the examples seen.
    """

    def __init__(self, dim: int, num_labels: int, *, ridge: float = 10.0) -> None:
        self.num_examples = 0
        self._ridge = ridge
        self._A = np.zeros((dim + 1, dim + 1))
        self._B = np.zeros((dim + 1, num_labels))
        self._weights: np.ndarray | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the sums: the whole memory of the stream."""
        return self._A.nbytes + self._B.nbytes

    def update(self, features: np.ndarray, labels: np.ndarray) -> None:
        """Add examples: features [n, dim], labels int [n]. Raises `DataError` for a label out of range."""
        check_labels(labels, self._B.shape[1], where="streaming ridge")
        x = _with_constant(features)
        self._A += x.T @ x
        np.add.at(self._B.T, labels, x)
        self.num_examples += len(x)
        self._weights = None

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return the regression's value for each class, float64 [n, num_labels]; all 0 before the first example."""
        if not self.num_examples:
            return np.zeros((len(features), self._B.shape[1]))
        if self._weights is None:
            penalty = self._ridge * np.trace(self._A) / len(self._A) / self.num_examples
            self._weights = np.linalg.solve(self._A + penalty * np.eye(len(self._A)), self._B)
        return _with_constant(features) @ self._weights

    def predict(self, features: np.ndarray, classes: Sequence[int] | None = None) -> np.ndarray:
        """Return labels, int64 [n].

        Args:
            classes: labels to choose from (task-IL); None: all that were seen, the others score 0 or less.
        """
        scores = self.scores(features)
        allowed = np.arange(scores.shape[1]) if classes is None else np.asarray(classes)
        return allowed[scores[:, allowed].argmax(axis=1)]


def streaming_ridge(train: Examples, test: Examples, *, seed: int, num_filters: int = 100) -> np.ndarray:
    """Return what ridge regression on patch features of `train` predicts for `test`, int64 [len(test)]."""
    _check_images(train, test)
    features = PatchFeatures.fit(train.inputs, seed=seed, num_filters=num_filters)
    ridge = StreamingRidge(features.dim, int(train.labels.max()) + 1)
    ridge.update(features.transform(train.inputs), train.labels)
    return ridge.predict(features.transform(test.inputs))


def _with_constant(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features, np.ones((len(features), 1))], axis=1, dtype=np.float64)


def _check_images(*sets: Examples) -> None:
    for examples in sets:
        if examples.kind != "images" or not len(examples):
            raise DataError(f"streaming ridge: got {len(examples)} {examples.kind}; images are needed")
