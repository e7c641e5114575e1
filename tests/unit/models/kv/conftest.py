"""Small models whose weights are large enough that a wrong path shows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hsokv_ray.models import KVTransformerConfig, TransformerWithKV

VOCAB_SIZE, NUM_LABELS, INPUT_DIM = 61, 7, 12


@pytest.fixture
def kv_config() -> Callable[..., KVTransformerConfig]:
    def make(**changes: Any) -> KVTransformerConfig:
        shape: dict[str, Any] = {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 24,
            "max_position_embeddings": 20,
            "initializer_range": 0.3,
            "num_labels": NUM_LABELS,
            "memory": {"capacity": 32, "top_k": 3},
        }
        return KVTransformerConfig(**(shape | changes))

    return make


@pytest.fixture
def kv_model(kv_config: Callable[..., KVTransformerConfig]) -> Callable[..., TransformerWithKV]:
    def make(seed: int = 0, **changes: Any) -> TransformerWithKV:
        torch.manual_seed(seed)
        return TransformerWithKV(kv_config(**changes))

    return make


@pytest.fixture
def some_ids() -> Callable[..., torch.Tensor]:
    def make(batch: int = 5, length: int = 9, seed: int = 1) -> torch.Tensor:
        return torch.randint(1, VOCAB_SIZE, (batch, length), generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def some_vectors() -> Callable[..., torch.Tensor]:
    def make(batch: int = 5, seed: int = 1) -> torch.Tensor:
        return torch.randn(batch, INPUT_DIM, generator=torch.Generator().manual_seed(seed))

    return make
