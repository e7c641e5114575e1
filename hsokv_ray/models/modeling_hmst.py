"""The HMST language model: a decoder with grouped-query attention and sparse experts.

A transformers model in every respect (`generate`, `save_pretrained`, Trainer, PEFT, lm-evaluation-harness). The
library reads this file's text to learn what may be switched: `@use_experts_implementation` and a class
`...Attention(nn.Module)` that calls `ALL_ATTENTION_FUNCTIONS.get_interface(` have to stand here.

Shapes: B batch, T time, N tokens (B times T), D hidden size, H heads, E experts, K experts per token, F expert width,
V vocabulary.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, initialization
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.integrations import use_experts_implementation
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.llama.modeling_llama import (
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from hsokv_ray.models.configuration_hmst import HMSTConfig
from hsokv_ray.models.experts import SORTED
from hsokv_ray.models.loss import IGNORE_INDEX, auxiliary_loss, cross_entropy_sum, fused_cross_entropy_sum, shift_left
from hsokv_ray.models.presets import FUSED_LOSS_VOCAB_SIZE
from hsokv_ray.models.router import HMSTRouter, Routing


class LayerOutput(NamedTuple):
    """What a decoder layer hands on: the hidden states [B, T, D], and the routing of a sparse layer."""

    hidden_states: torch.Tensor
    routing: Routing | None


class ResidualLinear(nn.Linear):
    """A projection that writes to the residual stream; its weights start smaller."""


class HMSTAttention(nn.Module):
    """Grouped-query attention with rotary positions, computed by transformers' attention interface."""

    def __init__(self, config: HMSTConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        assert config.head_dim is not None, "HMSTConfig fills it in"
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        query_size = config.num_attention_heads * self.head_dim
        key_size = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.o_proj = ResidualLinear(query_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output [B, T, D], and the attention weights where the implementation has them."""
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        q_BHTD = self.q_proj(hidden_states).view(heads).transpose(1, 2)
        k_BHTD = self.k_proj(hidden_states).view(heads).transpose(1, 2)
        v_BHTD = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        q_BHTD, k_BHTD = apply_rotary_pos_emb(q_BHTD, k_BHTD, *position_embeddings)
        if past_key_values is not None:
            k_BHTD, v_BHTD = past_key_values.update(k_BHTD, v_BHTD, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention_forward
        )
        dropout = self.config.attention_dropout if self.training else 0.0
        output_BTHD, weights = attend(
            self, q_BHTD, k_BHTD, v_BHTD, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(output_BTHD.reshape(*hidden_states.shape[:-1], -1)), weights


class HMSTMLP(nn.Module):
    """SwiGLU feed-forward of the dense model, and the shared expert of the sparse one."""

    def __init__(self, config: HMSTConfig, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * intermediate_size, bias=False)
        self.down_proj = ResidualLinear(intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
        return self.down_proj(self.act_fn(gate) * up)


@use_experts_implementation
class HMSTExperts(nn.Module):
    """SwiGLU experts as 3-D parameters: `gate_up_proj` [E, 2F, D] and `down_proj` [E, D, F].

    The decorator sends the call to the implementation the configuration names; `forward` here is `eager`, the plain
    reference the others are compared with.
    """

    def __init__(self, config: HMSTConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.hidden_dim = config.hidden_size
        self.intermediate_dim = config.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * self.intermediate_dim, self.hidden_dim))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, self.hidden_dim, self.intermediate_dim))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the weighted sum of each token's experts.

        Args:
            hidden_states: [N, D].
            top_k_index: [N, K] int64, the experts of each token; E marks a slot to leave out.
            top_k_weights: [N, K].
        """
        output_ND = torch.zeros_like(hidden_states)
        # unbind once: `W[e]` in a loop makes autograd build a full-size zero gradient for every expert
        weights = zip(self.gate_up_proj.unbind(), self.down_proj.unbind(), strict=True)
        for expert, (gate_up, down) in enumerate(weights):
            token, slot = torch.where(top_k_index == expert)
            gate, up = F.linear(hidden_states[token], gate_up).chunk(2, dim=-1)
            result = F.linear(self.act_fn(gate) * up, down) * top_k_weights[token, slot, None]
            output_ND = output_ND.index_add(0, token, result.to(output_ND.dtype))
        return output_ND


class HMSTSparseMoeBlock(nn.Module):
    """Router, experts and, where configured, the shared expert every token passes."""

    def __init__(self, config: HMSTConfig) -> None:
        super().__init__()
        self.router = HMSTRouter(config)
        self.experts = HMSTExperts(config)
        shared_size = config.shared_expert_intermediate_size
        self.shared_expert = HMSTMLP(config, shared_size) if shared_size else None

    def forward(self, hidden_states: torch.Tensor) -> LayerOutput:
        hidden_ND = hidden_states.reshape(-1, hidden_states.shape[-1])
        routing = self.router(hidden_ND)
        output_ND = self.experts(hidden_ND, routing.index_NK, routing.weights_NK)
        if self.shared_expert is not None:
            output_ND = output_ND + self.shared_expert(hidden_ND)
        return LayerOutput(output_ND.view_as(hidden_states), routing)


class HMSTDecoderLayer(GradientCheckpointingLayer):
    """Attention, then experts (or one dense feed-forward), each after a norm and added to the residual stream."""

    def __init__(self, config: HMSTConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = HMSTAttention(config, layer_idx)
        self.mlp = HMSTSparseMoeBlock(config) if config.is_sparse else HMSTMLP(config, config.intermediate_size)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> LayerOutput:
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attended
        output = self.mlp(self.post_attention_layernorm(hidden_states))
        if isinstance(output, LayerOutput):
            return LayerOutput(hidden_states + output.hidden_states, output.routing)
        return LayerOutput(hidden_states + output, None)


class HMSTPreTrainedModel(PreTrainedModel):
    """Initialisation and the flags by which transformers knows what the model can do."""

    config: HMSTConfig
    config_class = HMSTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HMSTDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _keep_in_fp32_modules_strict = ["router"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": HMSTDecoderLayer, "attentions": HMSTAttention}

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """Return the implementation asked for, or the sorted one.

        Where the device and dtype are known, `experts.fastest_experts_implementation` names the fastest.
        """
        return super().get_correct_experts_implementation(requested_experts or SORTED)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights; those that write to the residual stream are scaled by 1/sqrt(2 layers), as in GPT-2."""
        super()._init_weights(module)
        std = self.config.initializer_range
        residual_std = std / (2 * self.config.num_hidden_layers) ** 0.5
        if isinstance(module, ResidualLinear):
            initialization.normal_(module.weight, std=residual_std)
        elif isinstance(module, HMSTExperts):
            initialization.normal_(module.get_parameter("gate_up_proj"), std=std)
            initialization.normal_(module.get_parameter("down_proj"), std=residual_std)
        elif isinstance(module, HMSTRouter):
            initialization.normal_(module.weight, std=std)
            initialization.zeros_(module.expert_bias)
            initialization.zeros_(module.tokens_per_expert)


class HMSTModel(HMSTPreTrainedModel):
    """The decoder without a head: token ids (or embeddings) to hidden states."""

    def __init__(self, config: HMSTConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(HMSTDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)  # pyright: ignore[reportArgumentType]  reads shared fields only
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """Return the last hidden states [B, T, D] and each sparse layer's router logits [N, E].

        Args:
            input_ids: [B, T]; or give `inputs_embeds` [B, T, D].
            attention_mask: [B, past + T], 0 at padding; or a ready 4-D mask.
            position_ids: [B, T]. Where they restart within a row (and there is neither mask nor cache), attention
                does not cross the restart: packed documents.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("HMSTModel.forward: give exactly one of input_ids and inputs_embeds")
        embeds_BTD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        # a cache would switch off the search for packed documents
        if use_cache and past_key_values is None and not self.training:
            past_key_values = DynamicCache(config=self.config)
        # Positions that were not given cannot restart: without them the mask needs no look at the data, and SDPA
        # takes its causal path.
        mask = create_causal_mask(self.config, embeds_BTD, attention_mask, past_key_values, position_ids)
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(embeds_BTD.shape[1], device=embeds_BTD.device)[None] + past
        rotary = self.rotary_emb(embeds_BTD, position_ids)
        valid_N = _valid_tokens(attention_mask, embeds_BTD.shape[1])

        hidden_states, router_logits = embeds_BTD, []
        for layer in cast("Iterable[HMSTDecoderLayer]", self.layers):
            hidden_states, routing = layer(
                hidden_states,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                position_embeddings=rotary,
                **kwargs,
            )
            if routing is not None:
                router_logits.append(routing.logits_NE)
                if self.training and isinstance(layer.mlp, HMSTSparseMoeBlock):
                    layer.mlp.router.count(routing.index_NK, valid_N)
        return MoeModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states),
            past_key_values=past_key_values,
            router_logits=tuple(router_logits),  # pyright: ignore[reportArgumentType]  upstream says a tuple of one
        )


class HMSTForCausalLM(HMSTPreTrainedModel, GenerationMixin):
    """The language model: `HMSTModel` and a head over the vocabulary."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: HMSTConfig) -> None:
        super().__init__(config)
        self.model = HMSTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        output_router_logits: bool | None = None,
        skip_logits: bool | None = None,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Return logits [B, T, V] and, with targets, the loss.

        `loss` is cross entropy plus `aux_loss` (router z-loss and Switch loss, already weighted), so the plain cross
        entropy is `loss - aux_loss`. Both are means over the targets; with `num_items_in_batch` they are sums over
        the targets divided by it, so the losses of micro-batches and workers add up to the loss of the whole batch
        (all but the Switch loss, which is not a sum over tokens: each micro-batch has its own, weighted by its share).

        Args:
            labels: [B, T] token ids, shifted here; -100 is ignored.
            shift_labels: (a keyword) [B, T] targets already shifted; -100 is ignored. Takes precedence over `labels`.
            logits_to_keep: last positions (or an index) to compute logits for, where no loss is asked for; 0 is all.
            num_items_in_batch: targets in the whole batch, over all micro-batches and workers.
            output_router_logits: also return each layer's router logits [N, E].
            skip_logits: compute the loss without ever holding the logits, which are then None. None: while training
                with a vocabulary of 32,000 and more.
        """
        # not in the signature: Trainer evaluates a loss only where every argument named `...label...` is given
        shift_labels = kwargs.pop("shift_labels", None)
        if shift_labels is None and labels is not None:
            shift_labels = shift_left(labels)
        if use_cache is None and (self.training or shift_labels is not None):
            use_cache = False
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = loss = aux_loss = None
        if shift_labels is None:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(outputs.last_hidden_state[:, kept])
        else:
            if skip_logits is None:
                skip_logits = self.training and self.config.vocab_size >= FUSED_LOSS_VOCAB_SIZE
            logits = None if skip_logits else self.lm_head(outputs.last_hidden_state)
            targets_N = shift_labels.flatten()
            num_items = targets_N.ne(IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
            aux_loss = auxiliary_loss(
                outputs.router_logits, targets_N=targets_N, num_items=num_items, config=self.config
            )
            loss = aux_loss + self._cross_entropy_sum(outputs.last_hidden_state, logits, targets_N) / num_items
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits if output_router_logits else None,
        )

    def _cross_entropy_sum(
        self, hidden_BTD: torch.Tensor, logits: torch.Tensor | None, targets_N: torch.Tensor
    ) -> torch.Tensor:
        if logits is None:
            return fused_cross_entropy_sum(hidden_BTD.flatten(0, 1), self.lm_head, targets_N)
        return cross_entropy_sum(logits.flatten(0, 1), targets_N)


def _valid_tokens(attention_mask: torch.Tensor | None, num_tokens: int) -> torch.Tensor | None:
    if attention_mask is None or attention_mask.dim() != 2:
        return None
    return attention_mask[:, -num_tokens:].flatten().bool()


AutoConfig.register("hmst", HMSTConfig, exist_ok=True)
AutoModel.register(HMSTConfig, HMSTModel, exist_ok=True)
AutoModelForCausalLM.register(HMSTConfig, HMSTForCausalLM, exist_ok=True)
