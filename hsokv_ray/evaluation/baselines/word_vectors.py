"""Additive: a new word is the sum of the vectors of the words around it (Lazaridou et al. 2017)."""

from collections.abc import Mapping, Sequence

import numpy as np

from hsokv_ray.data.tasks.base import Examples
from hsokv_ray.data.tasks.words import FUNCTION_WORDS, words
from hsokv_ray.errors import DataError
from hsokv_ray.evaluation.baselines.texts import check_train, nearest_labels, texts_of


def additive_vectors(texts: Sequence[str], vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the sum of the word vectors of each text, float64 [n, D]; function and unknown words are passed over.

    Args:
        vectors: word -> [D]. Raises `DataError` where there are none.
    """
    if not vectors:
        raise DataError("additive: got no word vectors; give a mapping of words to vectors")
    dim = len(next(iter(vectors.values())))
    known = [[w for w in words(text) if w in vectors and w not in FUNCTION_WORDS] for text in texts]
    rows = [np.sum([vectors[w] for w in text], axis=0) if text else np.zeros(dim) for text in known]
    return np.array(rows, dtype=np.float64).reshape(len(texts), dim)


def additive(train: Examples, test: Examples, *, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the label of the training text whose sum of word vectors has the largest cosine, int64 [len(test)]."""
    check_train(train)
    sums_ND, sums_MD = (additive_vectors(texts_of(examples), vectors) for examples in (train, test))
    return nearest_labels(sums_ND, train.labels, sums_MD)
