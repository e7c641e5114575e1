"""Keys of images from features that never change: whitened patches, then principal components, both of the first task.

What is written under such a key is found under it for ever; a trained encoder moves on and leaves its keys behind.

Shapes: N images, F features, K key dimensions.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from hsokv_ray.errors import ConfigError
from hsokv_ray.evaluation.baselines.patches import PatchFeatures

PATCH = 6
"""Side of a patch, in pixels."""
MAX_FITTED = 1000
"""Images that the components are estimated from."""


def fixed_key_flops(shape: tuple[int, ...], *, num_filters: int, key_dim: int) -> int:
    """Return the FLOPs of the key of one image of `shape` [height, width, channels]: its matrix products."""
    places = (shape[0] - PATCH + 1) * (shape[1] - PATCH + 1)
    num_features = 8 * num_filters  # 4 quadrants, 2 signs
    return 2 * places * num_filters * PATCH * PATCH * shape[2] + 2 * num_features * key_dim


@dataclass(frozen=True, eq=False)
class FixedKeys:
    """Images to keys; `FixedKeys.fit` makes one."""

    patches: PatchFeatures
    mean_F: np.ndarray
    components_FK: np.ndarray
    """Principal components; each is divided by the fourth root of its variance, half way to whitening."""

    @classmethod
    def fit(cls, images: np.ndarray, *, key_dim: int, num_filters: int, seed: int = 0) -> Self:
        """Return keys of `key_dim` dimensions from uint8 `images` [N, H, W, C].

        Raises:
            ConfigError: there are not that many components.
            DataError: the images are too small for a patch.
        """
        images = images[:MAX_FITTED]
        patches = PatchFeatures.fit(images, seed=seed, num_filters=num_filters, patch=PATCH)
        features_NF = patches.transform(images).astype(np.float64)
        most = min(features_NF.shape)
        if key_dim > most:
            raise ConfigError(
                f"key_dim: got {key_dim}; at most {most}, of {num_filters} filters and {len(images)} images"
            )
        mean_F = features_NF.mean(axis=0)
        variances, directions = np.linalg.eigh(np.cov((features_NF - mean_F).T))
        largest = directions[:, ::-1][:, :key_dim]
        # an eigenvector's sign is arbitrary: made positive at its largest entry it is the same on every machine
        largest = largest * np.sign(largest[np.abs(largest).argmax(axis=0), np.arange(key_dim)])
        scale = np.maximum(variances[::-1][:key_dim], 1e-9) ** -0.25
        return cls(patches, mean_F.astype(np.float32), (largest * scale).astype(np.float32))

    @property
    def num_bytes(self) -> int:
        """Bytes of filters, mean and components: weights, though none is trained."""
        return self.patches.num_bytes + self.mean_F.nbytes + self.components_FK.nbytes

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the keys of uint8 `images` [N, H, W, C], float32 [N, K] at unit length."""
        keys_NK = (self.patches.transform(images) - self.mean_F) @ self.components_FK
        return keys_NK / np.maximum(np.linalg.norm(keys_NK, axis=1, keepdims=True), 1e-12)


class KeyTable:
    """The fixed keys of one set of images, each computed when it is first asked for.

    Args:
        keys: makes them.
        images: uint8 [N, H, W, C].
    """

    def __init__(self, keys: FixedKeys, images: np.ndarray) -> None:
        self._keys, self._images = keys, images
        self._table_NK = np.zeros((len(images), keys.components_FK.shape[1]), np.float32)
        self._known_N = np.zeros(len(images), bool)

    def at(self, rows: np.ndarray) -> np.ndarray:
        """Return the keys of `rows`, int64 [n], float32 [n, K]."""
        missing = np.unique(rows[~self._known_N[rows]])
        if len(missing):
            self._table_NK[missing] = self._keys(self._images[missing])
            self._known_N[missing] = True
        return self._table_NK[rows]
