"""Features of images from whitened patches, without any gradient (Coates, Ng and Lee 2011; Coates and Ng 2011).

Every patch of the fitting images is normalised (brightness, contrast) and whitened (ZCA); some of them, at unit length,
are the filters. An image's features are its patches' rectified responses, both signs, summed over the four quadrants.

    N images, H x W their size, C channels, P = patch * patch * C numbers in a patch, F filters
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from hsokv_ray.errors import DataError

_CONTRAST_FLOOR = 10.0
"""Added to a patch's variance, of pixels 0 to 255 (Coates et al. 2011, section 3.1.1)."""
_WHITENING_FLOOR = 0.1
"""Added to the eigenvalues of the patches' covariance (Coates et al. 2011)."""
_BATCH = 100


@dataclass(frozen=True, eq=False)
class PatchFeatures:
    """Filters and the whitening before them; `PatchFeatures.fit` makes one."""

    filters_FP: np.ndarray
    """float32, whitening included: the response of a normalised patch x is filters @ x - offsets."""
    offsets_F: np.ndarray
    patch: int
    threshold: float
    """Responses below it count nothing."""

    @classmethod
    def fit(
        cls,
        images: np.ndarray,
        *,
        seed: int,
        num_filters: int = 100,
        patch: int = 6,
        num_patches: int = 40_000,
        threshold: float = 0.25,
    ) -> Self:
        """Return filters from random patches of `images`.

        Args:
            images: uint8 [N, H, W, C].
            seed: decides which patches are used.
            num_filters: F.
            patch: side of a patch, in pixels.
            num_patches: patches that the whitening is estimated from.
            threshold: see the field; 0.25 is the soft threshold of Coates and Ng (2011).

        Raises `DataError` where the images are too small for a patch, or there are none.
        """
        if not len(images) or min(images.shape[1:3]) < patch + 1 or num_filters > num_patches:
            got = f"{list(images.shape)} for {num_filters} filters of {patch} x {patch} from {num_patches} patches"
            raise DataError(f"patches: got {got}; images larger than a patch, and a patch per filter, are needed")
        rng = np.random.default_rng(seed)
        patches_NP = _normalised(_random_patches(images, patch, num_patches, rng))
        mean_P = patches_NP.mean(axis=0)
        values_P, vectors_PP = np.linalg.eigh(np.cov(patches_NP.T.astype(np.float64)))
        whitening_PP = vectors_PP @ np.diag(1 / np.sqrt(values_P + _WHITENING_FLOOR)) @ vectors_PP.T
        chosen_FP = (patches_NP[rng.permutation(len(patches_NP))[:num_filters]] - mean_P) @ whitening_PP
        chosen_FP /= np.linalg.norm(chosen_FP, axis=1, keepdims=True) + 1e-8
        filters_FP = (chosen_FP @ whitening_PP).astype(np.float32)
        return cls(filters_FP, filters_FP @ mean_P.astype(np.float32), patch, threshold)

    @property
    def dim(self) -> int:
        """Features of an image: 4 quadrants x 2 signs x F."""
        return 8 * len(self.filters_FP)

    @property
    def num_bytes(self) -> int:
        """Bytes of the filters."""
        return self.filters_FP.nbytes + self.offsets_F.nbytes

    def transform(self, images: np.ndarray) -> np.ndarray:
        """Return the features of uint8 images [N, H, W, C], float32 [N, dim]."""
        batches = [self._batch(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)]
        return np.concatenate(batches) if batches else np.empty((0, self.dim), np.float32)

    def _batch(self, images: np.ndarray) -> np.ndarray:
        patches = sliding_window_view(images, (self.patch, self.patch), axis=(1, 2))  # type: ignore[call-overload]
        num_images, rows, columns = patches.shape[:3]
        flat = _normalised(patches.reshape(num_images * rows * columns, -1))
        responses = (flat @ self.filters_FP.T - self.offsets_F).reshape(num_images, rows, columns, -1)
        both = [_quadrants(np.maximum(sign * responses - self.threshold, 0)) for sign in (1, -1)]
        return np.concatenate(both, axis=1)


def _random_patches(images: np.ndarray, patch: int, count: int, rng: np.random.Generator) -> np.ndarray:
    which = rng.integers(len(images), size=count)
    tops = rng.integers(images.shape[1] - patch + 1, size=count)
    lefts = rng.integers(images.shape[2] - patch + 1, size=count)
    windows = sliding_window_view(images, (patch, patch), axis=(1, 2))  # type: ignore[call-overload]
    return windows[which, tops, lefts].reshape(count, -1)


def _normalised(patches: np.ndarray) -> np.ndarray:
    """Return the patches, [n, P], with mean 0 and about unit contrast, float32."""
    patches = patches.astype(np.float32)
    patches -= patches.mean(axis=1, keepdims=True)
    patches /= np.sqrt(np.einsum("np,np->n", patches, patches) / patches.shape[1] + _CONTRAST_FLOOR)[:, None]
    return patches


def _quadrants(maps: np.ndarray) -> np.ndarray:
    """Return the sums over the four quadrants of maps [n, rows, columns, F], [n, 4 F]."""
    row, column = maps.shape[1] // 2, maps.shape[2] // 2
    quarters = [maps[:, rows, columns] for rows in _halves(row) for columns in _halves(column)]
    return np.concatenate([quarter.sum(axis=(1, 2)) for quarter in quarters], axis=1)


def _halves(middle: int) -> tuple[slice, slice]:
    return slice(None, middle), slice(middle, None)
