"""A small image model: a key, a body that reads the key, and a gated read of a memory under the same key.

    net = SmallNet(SmallNetConfig(key_features="live", key_dim=64))
    keys_BK = net.keys(images)                       # or fixed keys, made elsewhere
    scored = net(keys_BK, retrieval)                 # retrieval None: without a memory

The body sees nothing of an image but its key. So what the memory holds can be rehearsed: a stored key is an input
(latent replay, Pellegrini et al. 2020, arXiv:1912.01100).

Shapes: B images, K key_dim, D hidden_size, L labels.
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hsokv_ray.errors import ConfigError
from hsokv_ray.memory.retrieval import GatedRead, Retrieval
from hsokv_ray.models.kv_flops import GATE_HIDDEN_SIZE, Product

KeyFeatures = Literal["live", "fixed"]

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"channels": (16, 32), "hidden_size": 64},
    "base": {"channels": (32, 64), "hidden_size": 256},
}
"""Shapes by name."""

_KERNEL = 3
_SHRINK = 4
"""Two poolings by 2."""


@dataclass(frozen=True)
class SmallNetConfig:
    """Shape of the model."""

    key_features: KeyFeatures = "live"
    """live: a convolutional net makes the keys and learns. fixed: keys are given, as `FixedKeys` makes them."""
    image_size: int = 16
    """Side that images are averaged to, in pixels; divisible by 4."""
    channels: tuple[int, int] = (16, 32)
    """Of the two convolutions."""
    key_dim: int = 128
    hidden_size: int = 64
    num_labels: int = 10
    has_memory: bool = True
    """Whether there is a gate and what it mixes in."""
    gate_init: float = 0.0
    """Bias of the gate before training."""

    def __post_init__(self) -> None:
        if self.image_size < _SHRINK or self.image_size % _SHRINK:
            raise ConfigError(f"image_size: got {self.image_size}; a multiple of {_SHRINK} is needed")

    @property
    def flat_size(self) -> int:
        """Numbers that are left of an image after both poolings."""
        return self.channels[1] * (self.image_size // _SHRINK) ** 2


@dataclass(frozen=True, eq=False)
class Scored:
    """What the model says."""

    logits_BL: Tensor
    gate_B: Tensor | None
    """Share of the memory, 0 where nothing hit; None without a memory."""


class SmallNet(nn.Module):
    """Keys, body, gated read and classifier."""

    def __init__(self, config: SmallNetConfig) -> None:
        super().__init__()
        self.config, size = config, config.hidden_size
        self.extractor = _extractor(config) if config.key_features == "live" else None
        self.body = nn.Sequential(
            nn.Linear(config.key_dim, size), nn.GELU(), nn.Linear(size, size), nn.GELU(), nn.LayerNorm(size)
        )
        self.classifier = nn.Linear(size, config.num_labels)
        self.gated_read: GatedRead | None = None
        if config.has_memory:
            self.gated_read = GatedRead(size, config.num_labels, gate_hidden_size=GATE_HIDDEN_SIZE)
            self._init_read(self.gated_read)

    @torch.no_grad()
    def _init_read(self, read: GatedRead) -> None:
        nn.init.constant_(cast("nn.Linear", read.gate[-1]).bias, self.config.gate_init)
        if isinstance(read.value_proj, nn.Linear):  # an identity where there are as many labels as hidden dimensions
            # The classifier's own directions, as long as states: what the memory says is read from the start.
            directions = F.normalize(self.classifier.weight, dim=-1) * self.config.hidden_size**0.5
            read.value_proj.weight.copy_(directions.T)

    def keys(self, pixels: Tensor) -> Tensor:
        """Return the keys [B, K] of `pixels` as `pixels_of` makes them, at unit length."""
        assert self.extractor is not None, "fixed keys are made elsewhere"
        return F.normalize(self.extractor(pixels), dim=-1)

    def forward(self, keys_BK: Tensor, retrieval: Retrieval | None) -> Scored:
        """Return logits [B, L] from keys at unit length and what the memory gave for them."""
        state_BD = self.body(keys_BK * self.config.key_dim**0.5)
        if retrieval is None or self.gated_read is None:
            return Scored(self.classifier(state_BD), None)
        mixed = self.gated_read(state_BD, retrieval)
        return Scored(self.classifier(mixed.output), mixed.gate)


def pixels_of(images: np.ndarray, image_size: int) -> Tensor:
    """Return uint8 images [B, H, W, C] as float32 [B, C, image_size, image_size] about 0, averaged over squares.

    Raises:
        ConfigError: the images are smaller.
    """
    if min(images.shape[1:3]) < image_size:
        raise ConfigError(f"image_size: got {image_size} for images {list(images.shape[1:3])}; no more than that")
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().sub(127.5).div(64.0)
    return F.adaptive_avg_pool2d(pixels, image_size)


def extractor_products(config: SmallNetConfig, num_images: int) -> list[Product]:
    """Return the products that make the keys of `num_images` images; none for fixed keys, which are made elsewhere."""
    if config.key_features == "fixed":
        return []
    inputs = (3, config.channels[0])
    areas = (config.image_size**2, (config.image_size // 2) ** 2)
    sizes = [
        2 * num_images * _KERNEL**2 * channels_in * channels_out * area
        for channels_in, channels_out, area in zip(inputs, config.channels, areas, strict=True)
    ]
    # images have no gradient
    return [Product(sizes[0], 1), Product(sizes[1]), Product(2 * num_images * config.flat_size * config.key_dim)]


def head_products(config: SmallNetConfig, num_keys: int, num_entries: int, top_k: int) -> list[Product]:
    """Return the products from keys to logits, the read of a memory of `num_entries` included where there is one."""
    size, learns = config.hidden_size, config.key_features == "live"
    products = [
        Product(2 * num_keys * config.key_dim * size, 1 + learns),
        Product(2 * num_keys * size * size),
        Product(2 * num_keys * size * config.num_labels),
    ]
    if not config.has_memory:
        return products
    return [
        *products,
        *read_products(config, num_keys, num_entries, top_k),
        Product(2 * num_keys * config.num_labels * size, 1 + learns),
        Product(2 * num_keys * 2 * size * GATE_HIDDEN_SIZE),
        Product(2 * num_keys * GATE_HIDDEN_SIZE),
    ]


def read_products(config: SmallNetConfig, num_keys: int, num_entries: int, top_k: int) -> list[Product]:
    """Return the products of a read: scores, and the weighted sum of values."""
    learns, entries = config.key_features == "live", max(num_entries, 1)
    return [
        Product(2 * num_keys * entries * config.key_dim, 1 * learns),
        Product(2 * num_keys * min(top_k, entries) * config.num_labels, 1 * learns),
    ]


def forward_flops(products: list[Product]) -> int:
    """Return the FLOPs of a forward pass."""
    return sum(product.flops for product in products)


def step_flops(products: list[Product]) -> int:
    """Return the FLOPs of a forward and a backward pass."""
    return sum(product.flops * (1 + product.num_learnt) for product in products)


def _extractor(config: SmallNetConfig) -> nn.Sequential:
    first, second = config.channels
    return nn.Sequential(
        nn.Conv2d(3, first, _KERNEL, padding=1),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, _KERNEL, padding=1),
        nn.BatchNorm2d(second),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(config.flat_size, config.key_dim),
        # Centred, or all keys come to lie in one direction: what turns every image to the classes of a new task.
        nn.BatchNorm1d(config.key_dim, affine=False),
    )
