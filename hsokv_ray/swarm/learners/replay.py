"""Rehearsal within a number of bytes: which examples of a stream are kept, and raw images that are kept so.

places = reservoir.offer(len(batch))            # where each is to be put; -1: nowhere
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hsokv_ray.errors import ConfigError

NOWHERE = -1
LABEL_BYTES = 1


class Reservoir:
    """Reservoir sampling: after n examples each of them is kept with the same chance, capacity / n (Vitter 1985, R).

    Args:
        capacity: places.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ConfigError(f"reservoir: got {capacity} places; at least 1 is needed: give the memory more bytes")
        self.capacity = capacity
        self.num_seen = 0

    def __len__(self) -> int:
        return min(self.num_seen, self.capacity)

    def offer(self, num: int, rng: np.random.Generator) -> np.ndarray:
        """Return the place each of `num` new examples takes, int64, -1 for none; a place may be taken again."""
        numbers = np.arange(self.num_seen, self.num_seen + num)
        drawn = rng.integers(0, numbers + 1)
        self.num_seen += num
        places = np.where(numbers < self.capacity, numbers, drawn)
        return np.where(places < self.capacity, places, NOWHERE)


class ImageReplay:
    """Raw images and labels, a reservoir of the stream: experience replay (Chaudhry et al. 2019, arXiv:1902.10486).

    Args:
        num_bytes: what it may hold; an image counts its pixels, one byte each, and a byte for the label.
        shape: of an image, [height, width, channels].
    """

    def __init__(self, num_bytes: int, shape: tuple[int, ...]) -> None:
        self._bytes_each = int(np.prod(shape)) + LABEL_BYTES
        self.reservoir = Reservoir(num_bytes // self._bytes_each)
        self.images = np.zeros((self.reservoir.capacity, *shape), np.uint8)
        self.labels = np.zeros(self.reservoir.capacity, np.uint8)

    def __len__(self) -> int:
        return len(self.reservoir)

    @property
    def num_bytes(self) -> int:
        """Bytes of what is held now."""
        return len(self) * self._bytes_each

    def offer(self, images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> None:
        """Show the images [n, ...] of the stream and their labels [n]; some are kept."""
        places = self.reservoir.offer(len(images), rng)
        # one by one: of two that are given the same place the later stays
        for place, image, label in zip(places, images, labels, strict=True):
            if place != NOWHERE:
                self.images[place], self.labels[place] = image, label

    def sample(self, num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return up to `num` different images and their labels; none while it is empty."""
        picked = rng.permutation(len(self))[:num]
        return self.images[picked], self.labels[picked].astype(np.int64)

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of what is held."""
        held = slice(0, len(self))
        arrays = {"replay.images": self.images[held], "replay.labels": self.labels[held]}
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def load(self, tensors: dict[str, Tensor], num_seen: int) -> None:
        """Take over what `tensors` returned."""
        self.reservoir.num_seen = num_seen
        self.images[: len(self)] = tensors["replay.images"].numpy()
        self.labels[: len(self)] = tensors["replay.labels"].numpy()


def generator_state(rng: np.random.Generator) -> dict[str, Any]:
    """Return the state of a generator as JSON."""
    return dict(rng.bit_generator.state)


def generator_of(state: dict[str, Any]) -> np.random.Generator:
    """Return a generator that goes on where `generator_state` was taken."""
    rng = np.random.default_rng(0)
    rng.bit_generator.state = state
    return rng
