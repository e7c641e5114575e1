"""The attention function through which transformers' models reach a retrieval cache.

The function never sees the cache, so the cache hands out keys tagged with the layer they belong to; keys without a tag
go to the implementation the model had before. State therefore travels with the request, never with the model.
"""

import sys
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hsokv_ray.errors import ConfigError

PREFIX = "hsokv_retrieval_"
TAG = "_hsokv_layer"


class AttendingLayer(Protocol):
    """A cache layer that computes attention itself."""

    def attend(
        self,
        module: nn.Module,
        query_BHTD: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the output [B, T, H, D] for the queries, whose new keys and values are [B, K, T, D]."""
        ...


def tag(key: torch.Tensor, layer: AttendingLayer) -> torch.Tensor:
    """Return `key` marked as belonging to `layer`."""
    setattr(key, TAG, layer)
    return key


def register(base: str) -> str:
    """Register retrieval on top of the attention implementation `base`; return the name to give a model.

    Untagged keys (training, encoders, ordinary caches) take `base`, with its own masks. Raises `ConfigError` for an
    implementation whose masks are no tensors.
    """
    if base.startswith("flex"):
        raise ConfigError(f"long context cannot stand on {base!r}, whose masks are no tensors; use sdpa")
    name = PREFIX + base
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register(name, _over(base))
        # a name without a mask function would silently lose every mask
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS.get(base, sdpa_mask))
    return name


def base_of(name: str) -> str:
    """Return the implementation below `name`, which may be one of ours."""
    return name.removeprefix(PREFIX)


def _over(base: str) -> Any:
    def retrieval_attention_forward(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        layer: AttendingLayer | None = getattr(key, TAG, None)
        if layer is None:
            return _plain(base, module)(module, query, key, value, attention_mask, **kwargs)
        return layer.attend(module, query, key, value, attention_mask, **kwargs), None

    return retrieval_attention_forward


def _plain(base: str, module: nn.Module) -> Any:
    if base != "eager":
        return ALL_ATTENTION_FUNCTIONS[base]
    # every model file has its own eager function; the library looks it up there too
    return sys.modules[type(module).__module__].eager_attention_forward  # pyright: ignore[reportAttributeAccessIssue]
