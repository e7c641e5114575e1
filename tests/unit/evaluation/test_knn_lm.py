"""kNN-LM against a reference that compares every query with every entry and writes the whole distribution out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.errors import DataError
from hsokv_ray.evaluation.baselines.knn_lm import (
    Datastore,
    KnnLm,
    Neighbours,
    Queries,
    interpolate,
    knn_probabilities,
)

VOCAB_SIZE, HIDDEN, NUM_ENTRIES, NUM_QUERIES = 7, 5, 60, 23


def entries(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(NUM_ENTRIES, HIDDEN)).astype(np.float32), rng.integers(VOCAB_SIZE, size=NUM_ENTRIES)


def queries(seed: int = 1) -> tuple[Queries, np.ndarray]:
    """Queries, and the language model's whole distribution [Q, vocabulary]."""
    rng = np.random.default_rng(seed)
    whole = rng.dirichlet(np.ones(VOCAB_SIZE), size=NUM_QUERIES)
    targets = rng.integers(VOCAB_SIZE, size=NUM_QUERIES)
    hidden = rng.normal(size=(NUM_QUERIES, HIDDEN)).astype(np.float32)
    return Queries(hidden, targets, np.log(whole[np.arange(NUM_QUERIES), targets])), whole


def by_brute_force(keys, tokens, hidden, lm, *, num_neighbours: int, weight: float, temperature: float) -> np.ndarray:
    """The mixture's whole distribution, [Q, vocabulary]: equations 2 and 3 of the paper, term by term."""
    mixed = np.zeros_like(lm)
    for row, state in enumerate(hidden.astype(np.float64)):
        distances = [float(((state - key) ** 2).sum()) for key in keys.astype(np.float64)]
        knn = np.zeros(VOCAB_SIZE)
        for entry in sorted(range(len(keys)), key=distances.__getitem__)[:num_neighbours]:
            knn[tokens[entry]] += np.exp(-distances[entry] / temperature)
        mixed[row] = weight * knn / knn.sum() + (1 - weight) * lm[row]
    return mixed


@given(st.integers(0, 50), st.integers(1, NUM_ENTRIES), st.floats(0.05, 0.95), st.floats(0.3, 30))
def test_the_mixture_is_what_brute_force_gives(seed, num_neighbours, weight, temperature) -> None:
    keys, tokens = entries(seed)
    asked, lm = queries(seed + 1)
    settings = {"num_neighbours": num_neighbours, "weight": weight, "temperature": temperature}
    expected = by_brute_force(keys, tokens, asked.hidden_QD, lm, **settings)
    np.testing.assert_allclose(expected.sum(axis=1), 1)
    found = KnnLm(Datastore(keys, tokens), **settings).log_probabilities(asked)
    right = expected[np.arange(NUM_QUERIES), asked.targets_Q]
    np.testing.assert_allclose(np.exp(found), right, rtol=2e-4, atol=1e-9)


def test_weight_and_temperature_are_the_best_of_all_on_validation() -> None:
    keys, tokens = entries()
    asked, _ = queries()
    weights, temperatures = (0.0, 0.2, 0.5, 1.0), (0.5, 2.0, 8.0)
    datastore = Datastore(keys, tokens)
    losses = {
        (weight, temperature): -KnnLm(datastore, 8, weight, temperature).log_probabilities(asked).mean()
        for weight in weights
        for temperature in temperatures
    }
    chosen = KnnLm.choose(datastore, asked, num_neighbours=8, weights=weights, temperatures=temperatures)
    assert losses[chosen.weight, chosen.temperature] == min(losses.values())
    assert len(set(losses.values())) > len(temperatures)


def test_a_text_that_repeats_is_told_by_its_neighbours() -> None:
    keys, tokens = entries()
    far_apart = 100 * keys
    again = Queries(far_apart, tokens, np.full(NUM_ENTRIES, -np.log(VOCAB_SIZE)))
    knn = KnnLm.choose(Datastore(far_apart, tokens), again, weights=(0.0, 0.4, 0.9))
    # each finds itself alone: all of the neighbours' share, and the uniform model's part of the rest
    np.testing.assert_allclose(np.exp(knn.log_probabilities(again)), 0.9 + 0.1 / VOCAB_SIZE)


def test_far_neighbours_do_not_underflow() -> None:
    far = Neighbours(np.array([[1e6, 1e6 + 1]], np.float32), np.array([[3, 4]]))
    assert knn_probabilities(far, np.array([3]), 1.0)[0] == pytest.approx(1 / (1 + np.exp(-1)))


def test_a_weight_of_0_is_the_language_model_and_of_1_the_neighbours() -> None:
    lm, knn = np.log([0.2, 0.7]), np.array([0.5, 0.0])
    np.testing.assert_allclose(np.exp(interpolate(lm, knn, 0.0)), [0.2, 0.7])
    np.testing.assert_allclose(np.exp(interpolate(lm, knn, 1.0)), [0.5, 0.0])


def test_what_does_not_fit_is_refused() -> None:
    keys, tokens = entries()
    with pytest.raises(DataError, match="datastore: got states and tokens"):
        Datastore(keys, tokens[1:])
    with pytest.raises(DataError, match="queries: got"):
        Queries(keys, tokens, np.zeros(3))
    with pytest.raises(DataError, match="num_neighbours: got 0"):
        Datastore(keys, tokens).search(keys, 0)
    with pytest.raises(DataError, match="temperature: got 0"):
        knn_probabilities(Neighbours(keys, tokens[:, None]), tokens, 0.0)
    with pytest.raises(DataError, match="weight: got 1.5"):
        interpolate(np.zeros(2), np.zeros(2), 1.5)
