"""kNN-LM (Khandelwal et al. 2020, arXiv:1911.00172): a language model mixed with the neighbours of its hidden state.

    datastore = Datastore(hidden_ND, next_tokens_N)                  # of the training text
    knn = KnnLm.choose(datastore, validation, num_neighbours=16)     # weight and temperature
    loss = -knn.log_probabilities(test).mean()

p(y | x) = weight p_kNN(y | x) + (1 - weight) p_LM(y | x)                                    equation 3
p_kNN(y | x) ~ sum over the neighbours (k, v) with v = y of exp(-d(k, x) / temperature)      equation 2

d is the squared Euclidean distance, as FAISS gives it and the authors used it.

Shapes: N entries, Q queries, K neighbours, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import faiss
import numpy as np

from hsokv_ray.errors import DataError

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TEMPERATURES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


@dataclass(frozen=True, eq=False)
class Queries:
    """Tokens of a text with what the language model makes of them. Raises `DataError`: lengths differ, or none."""

    hidden_QD: np.ndarray
    """States from which the next token is predicted, float."""
    targets_Q: np.ndarray
    """The next tokens, int."""
    log_probabilities_Q: np.ndarray
    """Of the targets, by the language model alone, in nats."""

    def __post_init__(self) -> None:
        lengths = [len(self.hidden_QD), len(self.targets_Q), len(self.log_probabilities_Q)]
        if len(set(lengths)) != 1 or not lengths[0]:
            raise DataError(f"queries: got {lengths} states, targets and probabilities; as many of each, at least one")


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest entries of each query, nearest first."""

    distances_QK: np.ndarray
    """Squared Euclidean, float32."""
    targets_QK: np.ndarray
    """int64."""


class Datastore:
    """Hidden states of a text and the token that follows each, searched exactly (FAISS' flat index).

    Args:
        keys_ND: float [N, D].
        targets_N: int [N].

    Raises:
        DataError: not one token per state, or none.
    """

    def __init__(self, keys_ND: np.ndarray, targets_N: np.ndarray) -> None:
        if keys_ND.ndim != 2 or targets_N.shape != keys_ND.shape[:1] or not len(keys_ND):
            got = f"{list(keys_ND.shape)} and {list(targets_N.shape)}"
            raise DataError(f"datastore: got states and tokens of shape {got}; [n, hidden] and [n] are needed")
        self._targets_N = targets_N.astype(np.int64)
        self._index = faiss.IndexFlatL2(keys_ND.shape[1])
        self._index.add(np.ascontiguousarray(keys_ND, np.float32))  # pyright: ignore[reportCallIssue]  faiss patches it

    def __len__(self) -> int:
        return len(self._targets_N)

    def search(self, hidden_QD: np.ndarray, num_neighbours: int) -> Neighbours:
        """Return the nearest entries, as many as asked for or as there are. Raises `DataError`: none is asked for."""
        if num_neighbours < 1:
            raise DataError(f"num_neighbours: got {num_neighbours}; at least 1 is needed")
        queries = np.ascontiguousarray(hidden_QD, np.float32)
        found = self._index.search(queries, min(num_neighbours, len(self)))  # pyright: ignore[reportCallIssue]
        return Neighbours(found[0], self._targets_N[found[1]])


def knn_probabilities(neighbours: Neighbours, targets_Q: np.ndarray, temperature: float) -> np.ndarray:
    """Return p_kNN of each target, float64 [Q]; 0 where no neighbour has it. Raises `DataError`: temperature."""
    if not temperature > 0:
        raise DataError(f"temperature: got {temperature}; above 0 is needed")
    distances_QK = neighbours.distances_QK.astype(np.float64)
    # the nearest one's distance cancels in the quotient
    weights_QK = np.exp(-(distances_QK - distances_QK.min(axis=1, keepdims=True)) / temperature)
    right_QK = neighbours.targets_QK == targets_Q[:, None]
    return (weights_QK * right_QK).sum(axis=1) / weights_QK.sum(axis=1)


def interpolate(log_probabilities_Q: np.ndarray, knn_Q: np.ndarray, weight: float) -> np.ndarray:
    """Return log(weight * knn + (1 - weight) * exp(log_probabilities)), float64 [Q]; -inf where both are 0.

    Raises:
        DataError: `weight` is outside [0, 1].
    """
    if not 0 <= weight <= 1:
        raise DataError(f"weight: got {weight}; a number in [0, 1] is needed")
    with np.errstate(divide="ignore"):
        return np.logaddexp(np.log(weight) + np.log(knn_Q), np.log1p(-weight) + log_probabilities_Q.astype(np.float64))


@dataclass(frozen=True, eq=False)
class KnnLm:
    """A datastore with the settings of the mixture."""

    datastore: Datastore
    num_neighbours: int
    weight: float
    """Share of the neighbours."""
    temperature: float

    @classmethod
    def choose(
        cls,
        datastore: Datastore,
        validation: Queries,
        *,
        num_neighbours: int = 16,
        weights: Sequence[float] = WEIGHTS,
        temperatures: Sequence[float] = TEMPERATURES,
    ) -> Self:
        """Return the mixture with the smallest mean loss on `validation`; of equal ones the first."""
        neighbours = datastore.search(validation.hidden_QD, num_neighbours)
        best, chosen = np.inf, (weights[0], temperatures[0])
        for temperature in temperatures:
            knn_Q = knn_probabilities(neighbours, validation.targets_Q, temperature)
            for weight in weights:
                loss = -interpolate(validation.log_probabilities_Q, knn_Q, weight).mean()
                if loss < best:
                    best, chosen = loss, (weight, temperature)
        return cls(datastore, num_neighbours, *chosen)

    def log_probabilities(self, queries: Queries) -> np.ndarray:
        """Return the mixture's log probability of each target in nats, float64 [Q]."""
        neighbours = self.datastore.search(queries.hidden_QD, self.num_neighbours)
        knn_Q = knn_probabilities(neighbours, queries.targets_Q, self.temperature)
        return interpolate(queries.log_probabilities_Q, knn_Q, self.weight)
