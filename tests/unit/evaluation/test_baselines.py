"""Baselines against brute force, and at what they are meant to see."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from hsokv_ray.data.tasks import Examples, text_examples
from hsokv_ray.errors import DataError
from hsokv_ray.evaluation import baselines
from hsokv_ray.evaluation.baselines import (
    PatchFeatures,
    StreamingRidge,
    additive,
    additive_vectors,
    logistic_regression,
    majority,
    nearest,
    random_embedding_nearest,
    streaming_ridge,
    string_match,
    tfidf_logistic_regression,
    tfidf_nearest,
)

TEXT_BASELINES = {
    "string match": string_match,
    "random embedding": lambda train, test: random_embedding_nearest(train, test, seed=0),
    "TF-IDF 1-NN": tfidf_nearest,
    "TF-IDF + LR": tfidf_logistic_regression,
}


def _vectors(rows, labels) -> Examples:
    return Examples("vectors", np.array(rows, np.float64), np.array(labels, np.int64))


def test_every_name_can_be_imported_twice() -> None:
    for _ in range(2):
        assert all(callable(getattr(baselines, name)) for name in baselines.__all__)


@given(st.lists(st.integers(0, 4), min_size=1), st.integers(0, 5))
def test_majority_is_the_most_frequent_label(labels: list[int], num_tests: int) -> None:
    train = text_examples([f"t{i}" for i in range(len(labels))], labels)
    predicted = majority(train, text_examples(["x"] * num_tests, [0] * num_tests))
    assert predicted.shape == (num_tests,)
    assert all(labels.count(label) == max(map(labels.count, labels)) for label in predicted.tolist())


@pytest.mark.parametrize("name", list(TEXT_BASELINES))
def test_a_text_seen_in_training_gets_its_label(name: str) -> None:
    train = text_examples(["red apples fall", "blue whales sing", "green cars stop"], [2, 0, 1])
    assert TEXT_BASELINES[name](train, train).tolist() == [2, 0, 1]
    pairs = text_examples([("red apples", "fall"), ("blue whales", "sing")], [1, 0])
    assert TEXT_BASELINES[name](pairs, pairs).tolist() == [1, 0]


@pytest.mark.parametrize("name", list(TEXT_BASELINES))
def test_nothing_to_learn_from_and_other_inputs_are_refused(name: str) -> None:
    test = text_examples(["a"], [0])
    with pytest.raises(DataError, match="at least one is needed"):
        TEXT_BASELINES[name](test.select([]), test)
    with pytest.raises(DataError, match="reads texts"):
        TEXT_BASELINES[name](_vectors([[1.0]], [0]), test)


def test_nearest_is_the_largest_cosine() -> None:
    rng = np.random.default_rng(0)
    train, test = _vectors(rng.normal(size=(30, 5)), range(30)), _vectors(rng.normal(size=(20, 5)), [0] * 20)
    cosines = [
        [np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for b in train.inputs.tolist()]
        for a in test.inputs.tolist()
    ]
    assert nearest(train, test).tolist() == np.argmax(cosines, axis=1).tolist()
    with pytest.raises(DataError, match="vectors of one size"):
        nearest(train, _vectors([[1.0]], [0]))


def test_logistic_regression_separates_what_a_line_separates_whatever_the_scale() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 3)) * [1e-3, 1, 1e3]
    labels = (rows[:, 0] > 0).astype(np.int64)
    train, test = _vectors(rows[:150], labels[:150]), _vectors(rows[150:], labels[150:])
    assert (logistic_regression(train, test) == test.labels).mean() > 0.9
    assert logistic_regression(train.select(train.labels == 1), test).tolist() == [1] * 50


def test_additive_sums_known_words_less_function_words() -> None:
    vectors = {"red": np.array([1.0, 0.0]), "sky": np.array([0.0, 2.0]), "the": np.array([9.0, 9.0])}
    assert additive_vectors(["The red, red sky unknown", "the"], vectors).tolist() == [[2, 2], [0, 0]]
    train = text_examples(["red", "sky"], [0, 1])
    assert additive(train, text_examples(["a sky", "red sky red red"], [0, 0]), vectors=vectors).tolist() == [1, 0]
    with pytest.raises(DataError, match="no word vectors"):
        additive_vectors(["x"], {})


@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.floats(0.01, 10))
def test_a_stream_in_any_pieces_gives_joint_ridge_regression(sizes: list[int], ridge: float) -> None:
    rng = np.random.default_rng(sum(sizes))
    n, dim = sum(sizes), 4
    x, y = rng.normal(size=(n, dim)), rng.integers(3, size=n)
    stream = StreamingRidge(dim, 3, ridge=ridge)
    for part in np.split(np.arange(n), np.cumsum(sizes)[:-1]):
        stream.update(x[part], y[part])
    with_constant = np.c_[x, np.ones(n)]
    penalty = ridge * (with_constant**2).sum() / (dim + 1) / n
    joint = Ridge(alpha=penalty, fit_intercept=False).fit(with_constant, np.eye(3)[y])
    assert np.allclose(stream.scores(x), joint.predict(with_constant), atol=1e-8)
    assert set(stream.predict(x, classes=[1, 2]).tolist()) <= {1, 2}
    assert stream.num_bytes == 8 * (dim + 1) * (dim + 1 + 3)


def test_a_stream_without_examples_knows_nothing_and_labels_out_of_range_are_refused() -> None:
    stream = StreamingRidge(2, 3)
    assert stream.scores(np.ones((1, 2))).tolist() == [[0, 0, 0]]
    with pytest.raises(DataError, match=r"label 3 of example 0 is outside \[0, 2\]"):
        stream.update(np.zeros((1, 2)), np.array([3]))


def test_patch_features_are_the_sums_of_rectified_responses_to_normalised_patches() -> None:
    images = np.random.default_rng(0).integers(256, size=(6, 9, 9, 3), dtype=np.uint8)
    features = PatchFeatures.fit(images, seed=0, num_filters=5, patch=4, num_patches=500)
    expected = np.zeros((6, 2, 2, 2, 5))  # image, sign, lower, right, filter
    for i, top, left in np.ndindex(6, 6, 6):
        # Channels first, as the filters are.
        patch = images[i, top : top + 4, left : left + 4].transpose(2, 0, 1).astype(float).ravel()
        patch = (patch - patch.mean()) / np.sqrt(patch.var() + 10)
        response = features.filters_FP @ patch - features.offsets_F
        for sign in (0, 1):
            expected[i, sign, top // 3, left // 3] += np.maximum((-response if sign else response) - 0.25, 0)
    assert features.dim == 40
    assert np.allclose(features.transform(images), expected.reshape(6, 40), atol=1e-3)


def test_the_ridge_on_patches_tells_stripes_apart() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(100, size=(60, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(60) % 2
    images[labels == 0, ::4] += 120
    images[labels == 1, :, ::4] += 120
    examples = Examples("images", images, labels)
    train, test = examples.select(np.arange(40)), examples.select(np.arange(40, 60))
    assert (streaming_ridge(train, test, seed=0, num_filters=10) == test.labels).all()
    with pytest.raises(DataError, match="images are needed"):
        streaming_ridge(text_examples(["a"], [0]), test, seed=0)


def test_images_smaller_than_a_patch_are_refused() -> None:
    with pytest.raises(DataError, match="images larger than a patch"):
        PatchFeatures.fit(np.zeros((1, 5, 5, 3), np.uint8), seed=0)
