"""What the text baselines share: plain texts out of examples, and the nearest row by cosine."""

import numpy as np

from hsokv_ray.data.tasks.base import Examples
from hsokv_ray.errors import DataError


def texts_of(examples: Examples) -> list[str]:
    """Return one text per example; the two of a pair are joined by a space. Raises `DataError` for other kinds."""
    if examples.kind == "texts":
        return examples.inputs.tolist()
    if examples.kind == "pairs":
        return [f"{a} {b}" for a, b in examples.inputs.tolist()]
    raise DataError(f"this baseline reads texts: got {examples.kind}; give texts or pairs of texts")


def check_train(train: Examples) -> None:
    """Raise `DataError` where there is nothing to learn from."""
    if not len(train):
        raise DataError("train: got no examples; at least one is needed")


def nearest_labels(train_ND: np.ndarray, labels_N: np.ndarray, test_MD: np.ndarray) -> np.ndarray:
    """Return the label of the row of `train_ND` with the largest cosine to each row of `test_MD`, int64 [M].

    Among equals the first one wins; a row of zeros has cosine 0 with all.
    """
    return labels_N[np.argmax(_unit(test_MD) @ _unit(train_ND).T, axis=1)]


def _unit(rows_ND: np.ndarray) -> np.ndarray:
    lengths_N1 = np.linalg.norm(rows_ND, axis=1, keepdims=True)
    return rows_ND / np.where(lengths_N1 > 0, lengths_N1, 1)
