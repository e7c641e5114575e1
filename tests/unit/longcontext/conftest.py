"""Tiny models with seeded weights, one of each served decoder family."""

from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hsokv_ray.models.configuration_hmst import HMSTConfig
from hsokv_ray.models.modeling_hmst import HMSTForCausalLM

WINDOW = 64
VOCAB = 97
_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": VOCAB,
    "max_position_embeddings": WINDOW,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.1,  # attention far from uniform, so that a wrong key shows
}
_MODELS: dict[str, Any] = {
    "llama-mha": lambda: LlamaForCausalLM(LlamaConfig(**_SHAPE, num_key_value_heads=4)),
    "llama-gqa": lambda: LlamaForCausalLM(LlamaConfig(**_SHAPE, num_key_value_heads=2)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_SHAPE, num_key_value_heads=2, sliding_window=None)),
    "mistral-sliding": lambda: MistralForCausalLM(
        MistralConfig(
            **(_SHAPE | {"max_position_embeddings": 4 * WINDOW}), num_key_value_heads=2, sliding_window=WINDOW
        )
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SHAPE, num_key_value_heads=2)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_SHAPE, num_key_value_heads=2, head_dim=16)),
    "hmst": lambda: HMSTForCausalLM(HMSTConfig(**_SHAPE, num_key_value_heads=2, num_experts=4)),
}
FAMILIES = list(_MODELS)


def make_model(name: str, seed: int = 0, implementation: str = "sdpa") -> Any:
    torch.manual_seed(seed)
    model = _MODELS[name]().eval()
    model.set_attn_implementation(implementation)
    return model


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Any:
    """A model of each family."""
    return make_model(request.param)


@pytest.fixture
def llama() -> Any:
    """A grouped-query LLaMA with a window of 64."""
    return make_model("llama-gqa")


@pytest.fixture
def text() -> torch.Tensor:
    """500 token ids."""
    return torch.randint(0, VOCAB, (500,), generator=torch.Generator().manual_seed(1))
