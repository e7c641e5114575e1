"""The point of it all: one sight of a word is enough with the memory, and nothing without it."""

import pytest
import torch

from hsokv_ray.models import BaselineTransformer, KVTransformerConfig, TransformerWithKV
from hsokv_ray.models.kv_statistics import accuracy

NUM_WORDS, NUM_KINDS, NUM_OPTIONS = 10, 3, 8


def episode(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Definitions, contexts (the same features in other words, in another order), and each word's random place."""
    combination = torch.randperm(NUM_OPTIONS**NUM_KINDS, generator=generator)[:NUM_WORDS]
    features = torch.stack([combination // NUM_OPTIONS**i % NUM_OPTIONS for i in range(NUM_KINDS)], dim=1)
    named = 1 + features + NUM_OPTIONS * torch.arange(NUM_KINDS)
    definitions, contexts = (
        torch.stack([row[torch.randperm(NUM_KINDS, generator=generator)] for row in rows])
        for rows in (named, named + NUM_OPTIONS * NUM_KINDS)
    )
    return definitions, contexts, torch.randperm(NUM_WORDS, generator=generator)


def config_of(**changes) -> KVTransformerConfig:
    shape = {
        "vocab_size": 1 + 2 * NUM_OPTIONS * NUM_KINDS,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "dropout": 0.0,
        "num_labels": NUM_WORDS,
        "memory": {"capacity": NUM_WORDS, "top_k": NUM_WORDS},
    }
    return KVTransformerConfig(**(shape | changes))


def show(model: TransformerWithKV, definitions: torch.Tensor, labels: torch.Tensor) -> None:
    if model.memory is not None:
        with model.memory.writable():
            model.memory.remove(model.memory.ids)
            model.write(definitions, labels=labels)


def train(model: TransformerWithKV, num_steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(num_steps):
        definitions, contexts, labels = episode(generator)
        show(model, definitions, labels)
        optimizer.zero_grad()
        model(contexts, labels=labels).loss.backward()
        optimizer.step()


@torch.no_grad()
def one_shot_accuracy(model: TransformerWithKV, **options) -> float:
    """Over 200 words in 20 episodes that training did not see."""
    generator, found = torch.Generator().manual_seed(10**6), []
    model.eval()
    for _ in range(20):
        definitions, contexts, labels = episode(generator)
        show(model, definitions, labels)
        found.append(accuracy(model(contexts, **options).logits, labels))
    return sum(found) / len(found)


@pytest.mark.parametrize("seed", [0, 1])
def test_one_sight_of_a_word_is_enough_with_the_memory_and_chance_without(seed) -> None:
    torch.manual_seed(seed)
    model, baseline = TransformerWithKV(config_of()), BaselineTransformer(config_of())
    assert one_shot_accuracy(model) < 0.5
    train(model.train(), 80)
    train(baseline, 80)
    assert one_shot_accuracy(model) > 0.9
    assert one_shot_accuracy(model, use_memory=False) < 0.3
    assert one_shot_accuracy(baseline) < 0.3
