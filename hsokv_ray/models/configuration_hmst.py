"""Configuration of the HMST model in transformers' form: what `config.json` of a checkpoint holds."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters

from hsokv_ray.errors import ConfigError
from hsokv_ray.models.presets import check_shape


@strict
class HMSTConfig(PreTrainedConfig):
    """Shape of an HMST model; the defaults are the micro preset.

    `hsokv_ray.models.presets.model_shape` returns these fields for a named size.
    """

    model_type = "hmst"
    keys_to_ignore_at_inference = ["past_key_values", "router_logits", "aux_loss"]
    default_theta = 10_000.0

    vocab_size: int = 8192
    hidden_size: int = 256
    intermediate_size: int = 384
    """Width of one expert, or of the dense feed-forward where `num_experts` is 1."""
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int | None = None
    """None: `hidden_size / num_attention_heads`."""
    hidden_act: str = "silu"
    max_position_embeddings: int = 512
    num_experts: int = 8
    """1 is a dense model, without a router."""
    num_experts_per_tok: int = 2
    shared_expert_intermediate_size: int = 0
    """Width of an expert that every token passes; 0 is none."""
    router_scoring: Literal["sigmoid", "softmax"] = "sigmoid"
    router_z_loss_coef: float = 1e-3
    router_aux_loss_coef: float = 0.0
    """Weight of the Switch balance loss."""
    output_router_logits: bool = False
    attention_dropout: float | int = 0.0
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    rope_parameters: RopeParameters | dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_dim is None:
            heads = max(1, self.num_attention_heads)
            if self.hidden_size % heads:
                raise ConfigError(
                    f"num_attention_heads: got {heads}, which does not divide hidden_size {self.hidden_size}; "
                    "give a divisor, or head_dim as well"
                )
            self.head_dim = self.hidden_size // heads
        check_shape(vars(self))
        super().__post_init__(**kwargs)

    @property
    def is_sparse(self) -> bool:
        """Whether the layers have a router and several experts."""
        return self.num_experts > 1
