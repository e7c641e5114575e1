"""Means with 95 % intervals: of right answers, over seeds, and of differences on the same items."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hsokv_ray.errors import DataError


@dataclass(frozen=True)
class Score:
    """A figure and its interval."""

    mean: float
    low: float
    """Lower end of the interval; NaN where nothing can be said, as with a single seed."""
    high: float
    n: int
    """Items or seeds it is taken over."""
    seeds: int = 1

    def __str__(self) -> str:
        of = f"{self.seeds} seeds" if self.seeds > 1 else f"n = {self.n}"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] ({of})"

    def percent(self) -> str:
        """Return mean and interval in percent, for tables."""
        return f"{100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(num_right: int, n: int, *, level: float = 0.95) -> Score:
    """Return the share of right answers with Wilson's interval (Wilson 1927), good for few items too.

    Raises `DataError` where `num_right` is not in [0, n] or there are no items.
    """
    if n < 1 or not 0 <= num_right <= n:
        raise DataError(f"wilson: got {num_right} right of {n}; 0 to n of at least one item are needed")
    z = float(stats.norm.ppf(0.5 + _checked(level) / 2))
    share = num_right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return Score(share, max(0.0, middle - half), min(1.0, middle + half), n)


def over_seeds(values: Sequence[float], *, items_per_seed: int = 1, level: float = 0.95) -> Score:
    """Return the mean of one figure per seed with Student's t interval; with one seed the ends are NaN.

    Args:
        values: one per seed.
        items_per_seed: test items behind each value; `Score.n` is all of them.

    Raises `DataError` where there is none, or one is not a number.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise DataError(f"over_seeds: got {x.tolist()}; one finite number per seed is needed")
    mean = float(x.mean())
    half = float("nan")
    if len(x) > 1:
        half = float(stats.t.ppf(0.5 + _checked(level) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return Score(mean, mean - half, mean + half, len(x) * items_per_seed, seeds=len(x))


def paired_bootstrap(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    *,
    seed: int,
    num_resamples: int = 10_000,
    level: float = 0.95,
) -> Score:
    """Return the mean of first - second with the percentile interval of a bootstrap over items (Efron 1979).

    Args:
        first, second: what two methods get on each of the same n items (1 or 0 for right or wrong, or any figure).
        seed: decides the resamples.

    Raises `DataError` where the two are not of one length, empty, or hold something else than numbers.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a) or not np.isfinite([a, b]).all():
        got = f"{list(a.shape)} and {list(b.shape)}"
        raise DataError(f"paired_bootstrap: got {got}; finite figures of both methods on the same items are needed")
    difference = a - b
    rng = np.random.default_rng(seed)
    means = np.array([difference[rng.integers(len(a), size=len(a))].mean() for _ in range(num_resamples)])
    low, high = np.quantile(means, [0.5 - _checked(level) / 2, 0.5 + level / 2])
    return Score(float(difference.mean()), float(low), float(high), len(a))


def _checked(level: float) -> float:
    if not 0 < level < 1:
        raise DataError(f"level: got {level}; between 0 and 1, as 0.95")
    return level
