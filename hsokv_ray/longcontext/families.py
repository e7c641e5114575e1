"""What long context has to know of a model, read from its configuration; and which models it can serve."""

from dataclasses import dataclass
from typing import Any

import torch

from hsokv_ray.errors import ConfigError

DECODERS = ("llama", "mistral", "qwen2", "qwen3", "hmst")
ENCODER_DECODERS = ("bart", "t5")
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class DecoderShape:
    """A decoder-only model as its cache sees it."""

    num_layers: int
    num_key_value_heads: int
    head_dim: int
    window: int
    """Tokens the model was trained to attend to; the sliding window where it has one."""
    inv_freq: torch.Tensor
    """[head_dim / 2], radians per position."""


def is_encoder_decoder(model: Any) -> bool:
    """Return whether `model` is of a served encoder-decoder family; False for a served decoder.

    Raises `ConfigError` for every other model.
    """
    family = model.config.model_type
    if family in ENCODER_DECODERS:
        return True
    if family in DECODERS:
        return False
    served = ", ".join((*DECODERS, *ENCODER_DECODERS))
    raise ConfigError(f"long context cannot serve the model family {family!r}; it serves: {served}")


def decoder_shape(model: Any) -> DecoderShape:
    """Return the shape of a decoder-only `model`. Raises `ConfigError`: rotary positions that depend on the length."""
    config = model.config
    rotary = model.base_model.rotary_emb
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if kind not in _ROPE_TYPES:
        raise ConfigError(
            f"the model's rotary positions are of type {kind!r}, which change with the length of the input, so kept "
            f"keys would not fit later ones; long context serves {', '.join(_ROPE_TYPES)}"
        )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if 2 * rotary.inv_freq.numel() != head_dim:
        raise ConfigError(
            f"the model rotates {2 * rotary.inv_freq.numel()} of {head_dim} dimensions; long context serves models "
            "that rotate all"
        )
    return DecoderShape(
        num_layers=config.num_hidden_layers,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=head_dim,
        window=_window(config),
        inv_freq=rotary.inv_freq,
    )


def _window(config: Any) -> int:
    sliding = getattr(config, "sliding_window", None)
    in_use = getattr(config, "use_sliding_window", True)  # Qwen names a size and says apart whether it counts
    if sliding and in_use:
        return min(sliding, config.max_position_embeddings)
    return config.max_position_embeddings
