"""Vectors of a frozen encoder, with logistic regression or the nearest neighbour."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hsokv_ray.data.tasks.base import Examples
from hsokv_ray.errors import DataError
from hsokv_ray.evaluation.baselines.texts import check_train, nearest_labels


def logistic_regression(train: Examples, test: Examples, *, strength: float = 1.0) -> np.ndarray:
    """Return what logistic regression on standardised vectors predicts, int64 [len(test)].

    Args:
        train, test: of kind vectors, see `Splits.with_vectors`; the scale is that of the training vectors.
        strength: scikit-learn's C, the inverse of the L2 penalty.
    """
    _check(train, test)
    if len(np.unique(train.labels)) == 1:
        return np.full(len(test), train.labels[0])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    return model.fit(train.inputs, train.labels).predict(test.inputs).astype(np.int64)


def nearest(train: Examples, test: Examples) -> np.ndarray:
    """Return the label of the training vector with the largest cosine, the first among equals, int64 [len(test)]."""
    _check(train, test)
    return nearest_labels(train.inputs, train.labels, test.inputs)


def _check(train: Examples, test: Examples) -> None:
    check_train(train)
    if {train.kind, test.kind} != {"vectors"} or train.inputs.shape[1] != test.inputs.shape[1]:
        got = f"{train.kind} {list(train.inputs.shape)} and {test.kind} {list(test.inputs.shape)}"
        raise DataError(f"frozen vectors: got {got}; vectors of one size are needed: encode with Splits.with_vectors")
