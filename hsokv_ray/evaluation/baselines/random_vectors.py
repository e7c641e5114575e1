"""1-NN on means of random word vectors: what an encoder gives that has learnt nothing."""

import numpy as np

from hsokv_ray.data.tasks.base import Examples
from hsokv_ray.data.tasks.words import words
from hsokv_ray.evaluation.baselines.texts import check_train, nearest_labels, texts_of


def random_embedding_nearest(train: Examples, test: Examples, *, seed: int, dim: int = 64) -> np.ndarray:
    """Return the label of the nearest training text by cosine of mean random word vectors, int64 [len(test)].

    Args:
        seed: decides the vectors, normal in `dim` dimensions, one for each word of either set.
    """
    check_train(train)
    texts = [words(text) for text in (*texts_of(train), *texts_of(test))]
    vocabulary = {word: i for i, word in enumerate(sorted({word for text in texts for word in text}))}
    table_VD = np.random.default_rng(seed).standard_normal((max(len(vocabulary), 1), dim))
    means_ND = np.array([table_VD[[vocabulary[w] for w in text]].mean(0) if text else np.zeros(dim) for text in texts])
    return nearest_labels(means_ND[: len(train)], train.labels, means_ND[len(train) :])
