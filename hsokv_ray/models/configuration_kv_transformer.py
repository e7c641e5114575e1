"""Configuration of the key-value transformer in transformers' form: what `config.json` of a checkpoint holds.

config = KVTransformerConfig.preset("tiny", vocab_size=2000, num_labels=20, memory={"capacity": 400})
"""

from dataclasses import field
from typing import Any, Literal, Self

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from hsokv_ray.errors import ConfigError
from hsokv_ray.memory.config import KeyValueConfig

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128},
    "base": {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 512},
}
"""Shapes by name."""


@strict
class KVTransformerConfig(PreTrainedConfig):
    """Shape of a key-value transformer; the defaults are the preset `base`.

    `num_labels` (default 2) is transformers' own field.
    """

    model_type = "kv_transformer"
    keys_to_ignore_at_inference = ["pooled", "hidden", "mixed", "gate", "retrieval"]

    vocab_size: int = 8192
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    intermediate_size: int = 512
    dropout: float | int = 0.1
    max_position_embeddings: int = 96
    """Longest sequence, in tokens."""
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    pad_token_id: int | None = 0
    """Where no attention mask is given, tokens with this id are padding."""
    head: Literal["classification", "language_model", "none"] = "classification"
    """What the mixed states become: logits over `num_labels`, over the vocabulary (causal attention), or nothing."""
    input: Literal["tokens", "vectors"] = "tokens"
    """vectors: ready vectors [B, input_dim] take the place of the encoder's layers; a projection and a norm remain."""
    input_dim: int | None = None
    """Dimensions of ready vectors."""
    memory: dict | None = field(default_factory=dict)
    """Values of `KeyValueConfig`; `key_dim` and `value_dim` default to `hidden_size`, and `exclude_stale` to whether
    the key encoder is frozen: live keys drift with every step, and a memory that left them out would be empty. None:
    no memory."""
    gate_init: float | int = 0.0
    """Bias of the gate before training; above 0 it leans on the memory."""
    key_encoder: Literal["live", "frozen"] = "live"
    """What makes keys and queries. live: the encoder that is trained, with gradient through the read; stored keys fall
    behind its weights until `reencode`. frozen: a copy that changes only on `update_key_encoder`."""
    key_versions: dict | None = None
    """Set by `save_pretrained`: `weights` is the digest of the weights that make keys, `memory` the version of the keys
    in the memory saved with them."""

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """Return the shape `tiny` (2 layers, 64 wide) or `base` (4 layers, 256 wide). Raises `ConfigError`."""
        if name not in PRESETS:
            raise ConfigError(f"preset: got {name!r}; {' or '.join(PRESETS)} is needed")
        return cls(**(PRESETS[name] | changes))

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_shape()
        if self.memory is not None:
            given = {
                "key_dim": self.hidden_size,
                "value_dim": self.hidden_size,
                "exclude_stale": self.key_encoder == "frozen",
            } | self.memory
            self.memory = KeyValueConfig(**given).model_dump(mode="json")
        super().__post_init__(**kwargs)

    def _check_shape(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: got {getattr(self, name)}; at least 1 is needed")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"num_attention_heads: got {self.num_attention_heads}, which does not divide hidden_size "
                f"{self.hidden_size}; give a divisor"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout: got {self.dropout}; a number in [0, 1) is needed")
        if self.input == "vectors" and (self.input_dim is None or self.input_dim < 1):
            raise ConfigError(f"input_dim: got {self.input_dim}; ready vectors need their number of dimensions")
        if self.input == "vectors" and self.head == "language_model":
            raise ConfigError("head: got 'language_model' for ready vectors; a language model needs input 'tokens'")
        if self.key_encoder == "frozen" and self.memory is None:
            raise ConfigError("key_encoder: got 'frozen' without a memory; give memory={} or key_encoder 'live'")
