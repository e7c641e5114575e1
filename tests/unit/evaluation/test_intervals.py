"""Intervals against scipy's own."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hsokv_ray.errors import DataError
from hsokv_ray.evaluation import over_seeds, paired_bootstrap, wilson


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.95]))
def test_wilson_is_scipys(counts: tuple[int, int], level: float) -> None:
    num_right, n = counts
    expected = stats.binomtest(num_right, n).proportion_ci(level, method="wilson")
    score = wilson(num_right, n, level=level)
    assert (score.mean, score.n) == (num_right / n, n)
    assert score.low == pytest.approx(expected.low, abs=1e-12)
    assert score.high == pytest.approx(expected.high, abs=1e-12)


def test_three_of_five_is_anything_between_23_and_88_percent() -> None:
    """Wilson 1927 for 3 of 5, as tabulated by Brown, Cai and DasGupta (2001): what one-shot scores on 5 items say."""
    score = wilson(3, 5)
    assert (round(score.low, 2), round(score.high, 2)) == (0.23, 0.88)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=10).filter(lambda x: np.std(x) > 1e-6))
def test_the_interval_over_seeds_is_students(values: list[float]) -> None:
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    score = over_seeds(values, items_per_seed=200)
    assert (score.low, score.high) == (pytest.approx(low), pytest.approx(high))
    assert (score.seeds, score.n) == (len(values), 200 * len(values))


def test_one_seed_has_no_interval() -> None:
    score = over_seeds([0.5])
    assert score.mean == 0.5
    assert math.isnan(score.low)
    assert math.isnan(score.high)


def test_the_paired_bootstrap_is_scipys_percentile_interval() -> None:
    rng = np.random.default_rng(0)
    a = rng.random(300) < 0.7
    b = np.where(rng.random(300) < 0.8, a, ~a)
    expected = stats.bootstrap(
        (a.astype(float) - b,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(1)
    ).confidence_interval
    score = paired_bootstrap(a, b, seed=0)
    assert score.mean == pytest.approx(a.mean() - b.mean())
    assert score.low == pytest.approx(expected.low, abs=0.006)
    assert score.high == pytest.approx(expected.high, abs=0.006)
    assert score == paired_bootstrap(a, b, seed=0)


def test_pairing_tells_what_separate_intervals_cannot() -> None:
    a = np.arange(200) % 2 == 0
    b = a.copy()
    b[:20:2] = False  # wrong where a is right, on ten items, and the same on all others
    assert wilson(int(b.sum()), 200).high > wilson(int(a.sum()), 200).low
    assert paired_bootstrap(a, b, seed=0).low > 0


@pytest.mark.parametrize("counts", [(3, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(counts) -> None:
    with pytest.raises(DataError, match="0 to n of at least one item"):
        wilson(*counts)


@pytest.mark.parametrize("values", [[], [float("nan")], [[1.0]]])
def test_what_is_no_list_of_figures_is_refused(values) -> None:
    with pytest.raises(DataError, match="one finite number per seed"):
        over_seeds(values)


@pytest.mark.parametrize("pair", [([1], [1, 0]), ([], []), ([float("inf")], [1])])
def test_unpaired_figures_are_refused(pair) -> None:
    with pytest.raises(DataError, match="on the same items"):
        paired_bootstrap(*pair, seed=0)


def test_a_level_is_a_share() -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        wilson(1, 2, level=95)


def test_a_score_reads_well() -> None:
    assert wilson(3, 5).percent() == "60.0 [23.1, 88.2]"
    assert str(over_seeds([0.5, 0.7])).endswith("(2 seeds)")
