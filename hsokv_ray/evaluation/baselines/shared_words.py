"""The training text that shares the most words with the test text, rare words counting most."""

from collections import Counter

import numpy as np

from hsokv_ray.data.tasks.base import Examples
from hsokv_ray.data.tasks.words import BLANK, words
from hsokv_ray.evaluation.baselines.texts import check_train, texts_of


def string_match(train: Examples, test: Examples) -> np.ndarray:
    """Return the label of the training text with the most shared words, int64 [len(test)].

    A shared word counts 1 / (training texts that hold it), so that a name given away decides; among equals the first
    training text wins. Raises `DataError` for inputs that are not texts.
    """
    check_train(train)
    known = [set(words(text)) - {BLANK} for text in texts_of(train)]
    weights = {word: 1 / count for word, count in Counter(word for text in known for word in text).items()}
    scores_MN = np.array(
        [
            [sum(weights[word] for word in sorted(text & asked)) for text in known]
            for asked in (set(words(text)) for text in texts_of(test))
        ]
    ).reshape(len(test), len(train))
    return train.labels[scores_MN.argmax(axis=1)]
