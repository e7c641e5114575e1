"""What a key-value memory knows about each entry beside key and value: confidence, use, success, age.

Confidence c moves with feedback s in [0, 1]: c += step * (s - 0.5), kept in [min_confidence, 1]. The success rate is
over feedbacks, not over retrievals: an entry is often retrieved without anyone saying whether that helped.

Utility, by which entries are evicted, lowest first:
    0.3 c + 0.3 (S + 1) / (F + 2) + 0.2 * 2 ** (-age / half_life) + 0.2 log(1 + R) / log(1 + max R)
with S the sum of feedbacks, F their number (Laplace's rule of succession: 0.5 without any), R the retrievals, and age
in operations of the memory since the entry was last written or retrieved. Time is such a count, never a wall clock, so
that a run is reproducible.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from hsokv_ray.memory.config import LifecycleConfig


class Stage(IntEnum):
    """How settled an entry is."""

    LEARNING = 0
    REINFORCEMENT = 1
    MATURE = 2


_NAMES = ("confidence", "retrievals", "feedbacks", "successes", "created", "last_used")


@dataclass(eq=False)
class Lifecycle:
    """The standing of `capacity` slots; slots that hold nothing are zero.

    Args:
        config: numbers of the rules.
        capacity: slots.
    """

    config: LifecycleConfig
    capacity: int

    def __post_init__(self) -> None:
        self.clock = 0
        """Operations so far."""
        self.confidence = np.zeros(self.capacity)
        self.retrievals = np.zeros(self.capacity, np.int64)
        self.feedbacks = np.zeros(self.capacity, np.int64)
        self.successes = np.zeros(self.capacity)
        self.created = np.zeros(self.capacity, np.int64)
        self.last_used = np.zeros(self.capacity, np.int64)

    def tick(self) -> int:
        """Count one operation; return the time it has."""
        self.clock += 1
        return self.clock

    def start(self, slots: np.ndarray) -> None:
        """Make `slots` new entries; after the first tick, so that `created` is at least 1."""
        self.clear(slots)
        self.confidence[slots] = self.config.initial_confidence
        self.created[slots] = self.last_used[slots] = self.clock

    def clear(self, slots: np.ndarray) -> None:
        """Forget `slots`."""
        for name in _NAMES:
            getattr(self, name)[slots] = 0

    def touch(self, slots: np.ndarray) -> None:
        """Note that `slots` were used now."""
        self.last_used[slots] = self.clock

    def retrieve(self, slots: np.ndarray) -> None:
        """Count one retrieval per mention of a slot."""
        np.add.at(self.retrievals, slots, 1)
        self.touch(slots)

    def judge(self, slots: np.ndarray, success: np.ndarray) -> None:
        """Apply feedback: `slots` int64 [n], a slot any number of times, and `success` float [n] in [0, 1].

        The steps of one slot are added up before they are bounded, so their order does not matter.
        """
        np.add.at(self.feedbacks, slots, 1)
        np.add.at(self.successes, slots, success)
        np.add.at(self.confidence, slots, self.config.confidence_step * (success - 0.5))
        self.confidence[slots] = self.confidence[slots].clip(self.config.min_confidence, 1.0)

    def stages(self, slots: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the `Stage` of each of `slots`, int64."""
        bounds = [self.config.learning_retrievals, self.config.mature_retrievals]
        return np.searchsorted(bounds, self.retrievals[slots], side="right")

    def strength(self, slots: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return confidence times the boost of the stage, float64."""
        start, end = self.config.learning_retrievals, self.config.mature_retrievals
        progress = ((self.retrievals[slots] - start) / max(end - start, 1)).clip(0, 1)
        return self.confidence[slots] * (self.config.boost + (1 - self.config.boost) * progress)

    def utility(self) -> np.ndarray:
        """Return the utility of every slot, float64; see the head of this file."""
        success = (self.successes + 1) / (self.feedbacks + 2)
        recency = 0.5 ** ((self.clock - self.last_used) / self.config.recency_half_life)
        frequency = np.log1p(self.retrievals) / np.log1p(max(int(self.retrievals.max()), 1))
        return 0.3 * self.confidence + 0.3 * success + 0.2 * recency + 0.2 * frequency

    def arrays(self, slots: np.ndarray) -> dict[str, np.ndarray]:
        """Return the standing of `slots` by name."""
        return {name: getattr(self, name)[slots] for name in _NAMES}

    def restore(self, slots: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        """Take over what `arrays` returned."""
        for name in _NAMES:
            getattr(self, name)[slots] = arrays[name]

    def problems(self, used: np.ndarray) -> list[str]:
        """Return what is wrong; `used` bool [capacity] says which slots hold an entry."""
        found, config = [], self.config
        low, high = config.min_confidence, 1.0
        checks = {
            f"confidence outside [{low}, {high}]": used & ~((self.confidence >= low) & (self.confidence <= high)),
            "a negative count": (self.retrievals < 0) | (self.feedbacks < 0),
            "successes that do not fit the feedbacks": ~((self.successes >= 0) & (self.successes <= self.feedbacks)),
            "times out of order": used
            & ~((self.created >= 1) & (self.created <= self.last_used) & (self.last_used <= self.clock)),
            "a standing without an entry": ~used & np.any([getattr(self, name) != 0 for name in _NAMES], axis=0),
        }
        for what, bad in checks.items():
            if bad.any():
                found.append(f"{int(bad.sum())} slots with {what}, first {int(np.flatnonzero(bad)[0])}")
        return found
