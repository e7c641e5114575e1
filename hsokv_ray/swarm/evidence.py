"""What strategies scored so far, by steps trained, and where to look next because of it.

The density model is a tree-structured Parzen estimator (Bergstra 2011) over whole strategies, as in BOHB
(arXiv:1807.01774, section 3.2): of candidates drawn around good strategies, take the one with the largest ratio of the
density of good ones to that of the rest. Scores of different numbers of steps are never compared: the model is that of
the largest number of steps with enough of them.

Shapes: N strategies, M candidates, D settings.
"""

import math
from bisect import insort
from typing import Any

import numpy as np

from hsokv_ray.swarm.space import Space, Strategy

NUM_CANDIDATES = 64
GOOD_SHARE = 0.25
MIN_BANDWIDTH = 0.05
"""In units of a setting's range."""
WIDENING = 2.0
"""Candidates are drawn this much wider than the density they are judged by."""
MAX_RECORDS = 512
MAX_STEPS = 16

_Record = tuple[float, int, list[float]]


class Evidence:
    """Scores of strategies, at most `MAX_RECORDS` for each of the `MAX_STEPS` largest numbers of steps.

    Args:
        space: what strategies are made of.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self._options = np.array([domain.num_options for domain in space.domains.values()])
        self._records: dict[int, list[_Record]] = {}
        self._count = 0

    def add(self, strategy: Strategy, step: int, score: float) -> None:
        """Note that `strategy` had `score` after `step` steps."""
        records = self._records.setdefault(step, [])
        self._count += 1
        insort(records, (-score, self._count, self.space.to_unit(strategy).tolist()), key=lambda record: record[:2])
        if len(records) > MAX_RECORDS:  # of the weaker half, the oldest says least
            records.remove(min(records[MAX_RECORDS // 2 :], key=lambda record: record[1]))
        if len(self._records) > MAX_STEPS:
            del self._records[min(self._records)]

    def units(self, min_step: int) -> np.ndarray | None:
        """Return strategies [N, D] at the largest number of steps that has enough, best first; None: none has.

        Args:
            min_step: fewer steps do not count.
        """
        enough = 2 * (len(self.space) + 1)
        steps = [step for step, records in self._records.items() if step >= min_step and len(records) >= enough]
        return np.array([record[2] for record in self._records[max(steps)]]) if steps else None

    def around_good(self, rng: np.random.Generator, units_ND: np.ndarray) -> Strategy:
        """Return the candidate that is likeliest good: the one with the largest density ratio of good to others."""
        num_good = max(math.ceil(GOOD_SHARE * len(units_ND)), len(self.space) + 1)
        good, others = units_ND[:num_good], units_ND[num_good:]
        widths = _widths(good)
        candidates = self._draw(rng, good, widths * WIDENING)
        ratio = self._log_density(candidates, good, widths) - self._log_density(candidates, others, _widths(others))
        return self.space.from_unit(candidates[int(ratio.argmax())])

    def to_json(self) -> dict[str, Any]:
        """Return what `load` reads."""
        return {"count": self._count, "records": [[s, [list(r) for r in rs]] for s, rs in self._records.items()]}

    def load(self, values: dict[str, Any]) -> None:
        """Take over what `to_json` returned."""
        self._count = values["count"]
        self._records = {step: [(r[0], r[1], list(r[2])) for r in records] for step, records in values["records"]}

    def _draw(self, rng: np.random.Generator, centres_ND: np.ndarray, widths_D: np.ndarray) -> np.ndarray:
        centres = centres_ND[rng.integers(len(centres_ND), size=NUM_CANDIDATES)]
        near = centres + widths_D * rng.standard_normal(centres.shape)
        near = 1 - np.abs(1 - np.abs(near) % 2)  # mirrored at the ends of the range
        anywhere = rng.random(centres.shape)
        keep = rng.random(centres.shape) >= np.minimum(widths_D, 0.5)
        return np.where(self._options > 0, np.where(keep, centres, anywhere), near)

    def _log_density(self, at_MD: np.ndarray, points_ND: np.ndarray, widths_D: np.ndarray) -> np.ndarray:
        apart = at_MD[:, None, :] - points_ND[None, :, :]
        numbers = -0.5 * (apart / widths_D) ** 2 - np.log(widths_D)
        num_options = np.maximum(self._options, 2)
        same = np.floor(at_MD * num_options)[:, None, :] == np.floor(points_ND * num_options)[None, :, :]
        other = np.minimum(widths_D, 0.5)
        choices = np.where(same, np.log(1 - other), np.log(other / (num_options - 1)))
        logs = np.where(self._options > 0, choices, numbers).sum(-1)
        top = logs.max(-1, keepdims=True)
        return top[:, 0] + np.log(np.exp(logs - top).mean(-1))


def _widths(points_ND: np.ndarray) -> np.ndarray:
    """Scott's rule for each setting."""
    num, dim = points_ND.shape
    return np.maximum(points_ND.std(0) * num ** (-1 / (dim + 4)), MIN_BANDWIDTH)
