"""A tiny random Llama and a byte-level tokenizer, saved as a Hugging Face folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hsokv_ray.inference.checkpoints import resolve
from hsokv_ray.inference.generation import Generator
from hsokv_ray.inference.loading import load

TEXT = [
    "The quick brown fox jumps over the lazy dog.",
    "Pack my box with five dozen liquor jugs.",
    "def add(a, b):\n    return a + b\n",
]
WINDOW = 64


def _byte_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<eos>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def _tiny_llama(vocab_size: int) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=WINDOW,
                bos_token_id=0,
                eos_token_id=0,
                initializer_range=0.4,
            )
        )


def _save_model(folder: Path, *, vocab_size: int = 300, embeddings: int | None = None) -> Path:
    tokenizer = _byte_tokenizer(vocab_size)
    _tiny_llama(embeddings or len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama() -> Callable[[int], LlamaForCausalLM]:
    """`tiny_llama(vocab_size)`: always the same random model."""
    return _tiny_llama


@pytest.fixture(scope="session")
def save_model() -> Callable[..., Path]:
    """`save_model(folder, vocab_size=300, embeddings=None)`; embeddings default to the tokenizer's size."""
    return _save_model


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the model and its tokenizer; read only."""
    return _save_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def generator(llama: Path) -> Generator:
    """The model, ready to generate on the CPU."""
    return Generator(load(resolve(str(llama)), device="cpu"))
