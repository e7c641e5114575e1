"""Tiny encoder-decoder models with sharp attention, each twice: as it is, and attached to retrieval."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

from hsokv_ray.longcontext.attention import register
from hsokv_ray.longcontext.config import LongContextConfig, Resolved
from hsokv_ray.longcontext.encoder_decoder import resolve

VOCABULARY = 97
WINDOW = 32


@dataclass(frozen=True, repr=False)
class Pair:
    """One model twice, with the same weights."""

    plain: Any
    attached: Any

    def settings(self, **values: Any) -> Resolved:
        """Return settings with a window of 32 and blocks of 4 unless said otherwise."""
        defaults = {"enabled": True, "context_window_size": WINDOW, "block_size": 4, "index": "flat"}
        return resolve(LongContextConfig(**{**defaults, **values}), self.attached)


def bart(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=48,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        init_std=0.3,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
    )
    model = BartForConditionalGeneration(config).eval()
    for module in model.modules():  # biases are zero in a new model; trained ones are not
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            torch.nn.init.normal_(module.bias, std=0.3)
    return _never_ending(model)


def t5(*, gated: bool, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=48,
        d_kv=8,  # 4 heads of 8 are 32, not d_model, as in T5 v1.1
        d_ff=64,
        num_layers=3,  # the library's own cache has a layer per encoder layer
        num_decoder_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=not gated,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        initializer_factor=1.5,
    )
    model = T5ForConditionalGeneration(config).eval()
    if gated:  # an output layer of its own is drawn so wide that logits are in the tens
        with torch.no_grad():
            model.lm_head.weight *= 0.2
    return _never_ending(model)


def _never_ending(model: Any) -> Any:
    model.generation_config.eos_token_id = None  # random models end at random
    return model


BUILDERS: dict[str, Callable[[], Any]] = {
    "bart": bart,
    "t5": lambda: t5(gated=False),
    "t5_v1_1": lambda: t5(gated=True),
}


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def pair(request: pytest.FixtureRequest) -> Pair:
    plain, attached = BUILDERS[request.param](), BUILDERS[request.param]()
    attached.set_attn_implementation(register(attached.config._attn_implementation))
    return Pair(plain, attached)


@pytest.fixture(scope="module")
def bart_pair() -> Pair:
    attached = bart()
    attached.set_attn_implementation(register(attached.config._attn_implementation))
    return Pair(bart(), attached)


@pytest.fixture
def ids() -> Callable[..., np.ndarray]:
    """Make `count` token ids from a seed, none of them special."""

    def make(count: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(3, VOCABULARY, count)

    return make


@pytest.fixture
def other_bart() -> Any:
    return bart(seed=1)
