"""How different the agents of a population are: by what they try, and by where they come from."""

from collections.abc import Sequence

import numpy as np

from hsokv_ray.swarm.space import Space, Strategy

NUM_BINS = 5


def strategy_entropy(space: Space, strategies: Sequence[Strategy]) -> float:
    """Return the entropy of `strategies` in [0, 1]: mean over settings of H / H_max.

    H is the entropy of a setting's histogram, over its options or over `NUM_BINS` equal parts of its range (log ranges
    in log space); H_max the log of the smaller of number of bins and number of strategies. Fewer than 2 strategies: 1.
    """
    if len(strategies) < 2:
        return 1.0
    units_ND = np.array([space.to_unit(strategy) for strategy in strategies])
    shares = [
        _entropy(units, domain.num_options) for units, domain in zip(units_ND.T, space.domains.values(), strict=True)
    ]
    return float(np.mean(shares))


def distinct_ancestors(ancestors: Sequence[str]) -> float:
    """Return the share of different names among `ancestors`, in (0, 1]; none: 1."""
    return len(set(ancestors)) / len(ancestors) if ancestors else 1.0


def _entropy(units: np.ndarray, num_options: int) -> float:
    num_bins = num_options or NUM_BINS
    if num_bins == 1:
        return 1.0
    counts = np.bincount(np.minimum((units * num_bins).astype(int), num_bins - 1), minlength=num_bins)
    shares = counts[counts > 0] / len(units)
    return float(-(shares * np.log(shares)).sum() / np.log(min(num_bins, len(units))))
