"""TF-IDF of words and word pairs, with logistic regression or the nearest neighbour; fitted on training texts only."""

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from hsokv_ray.data.tasks.base import Examples
from hsokv_ray.evaluation.baselines.texts import check_train, texts_of


def tfidf_logistic_regression(train: Examples, test: Examples, *, strength: float = 10.0) -> np.ndarray:
    """Return what logistic regression on TF-IDF (1 + log tf) of 1-2 grams predicts, int64 [len(test)].

    Args:
        strength: scikit-learn's C, the inverse of the L2 penalty.
    """
    check_train(train)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    features = vectorizer.fit_transform(texts_of(train))
    if len(np.unique(train.labels)) == 1:
        return np.full(len(test), train.labels[0])
    model = LogisticRegression(C=strength, max_iter=1000).fit(features, train.labels)
    return model.predict(vectorizer.transform(texts_of(test))).astype(np.int64)


def tfidf_nearest(train: Examples, test: Examples) -> np.ndarray:
    """Return the label of the training text with the largest TF-IDF cosine, the first among equals, int64."""
    check_train(train)
    vectorizer = TfidfVectorizer()
    features = vectorizer.fit_transform(texts_of(train))
    # Rows of TfidfVectorizer have unit length already.
    similarity_MN = (vectorizer.transform(texts_of(test)) @ features.T).toarray()
    return train.labels[similarity_MN.argmax(axis=1)]
