"""Passages carry the attention that the model itself pays."""

from typing import Any

import numpy as np
import pytest
import torch

from hsokv_ray.inference.engine import Engine, EngineConfig, Finished
from hsokv_ray.inference.loading import LoadedModel

from .conftest import generation, ids_of

SINKS, BLOCK, LOCAL = 4, 4, 16


def finished(events: list[Any]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


@pytest.fixture
def engine(loaded: LoadedModel) -> Any:
    """Everything is fetched and stands where it was: attention is the plain model's."""
    config = {
        "enabled": True,
        "positions": "native",
        "budget_tokens": 100_000,
        "block_size": BLOCK,
        "sink_tokens": SINKS,
        "local_tokens": LOCAL,
    }
    with Engine(loaded, EngineConfig(long_context=config, max_passages=10_000)) as engine:
        yield engine


@pytest.mark.parametrize("document", [0, 130])
def test_with_everything_fetched_masses_are_the_plain_models_attention(
    engine: Engine, loaded: LoadedModel, text: list[int], document: int
):
    length, num_new = 230, 4
    after = engine.encode(text[:document]).result(60) if document else None
    ask = generation(text[document:length], max_tokens=num_new, ignore_eos=True, passages=True, after=after)
    events = list(engine.submit(ask))
    ids = text[:length] + ids_of(events)
    expected = attention(loaded.model, ids)[:, length - 1 : length - 1 + num_new]  # [L and H, new, M]
    passages = finished(events).passages
    assert passages
    assert sum(passage.end - passage.begin for passage in passages) >= length - SINKS - 3 * LOCAL
    for passage in passages:
        assert passage.begin >= SINKS
        assert (passage.begin - SINKS) % BLOCK == 0
    masses = np.zeros(len(ids))
    for query in range(num_new):  # a block counts from the step on in which it has left the local part
        far = engine_far(length + query)
        masses[SINKS:far] += expected[:, query, SINKS:far].sum(0).numpy()
    masses /= expected.shape[0] * num_new
    for passage in passages:
        assert passage.mass == pytest.approx(masses[passage.begin : passage.end].sum(), abs=1e-4)


def engine_far(num_tokens: int) -> int:
    """Return where the local part begins when `num_tokens` have been taken: whole blocks leave before a token comes."""
    return SINKS + max(0, (num_tokens - 1 - SINKS - LOCAL) // BLOCK) * BLOCK


@torch.no_grad()
def attention(model: Any, ids: list[int]) -> torch.Tensor:
    """Return attention weights [layers times heads, T, T] of the plain model."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        weights = model(torch.tensor([ids]), output_attentions=True).attentions
    finally:
        model.set_attn_implementation(implementation)
    return torch.cat([layer[0] for layer in weights])


def test_passages_are_the_heaviest_and_neighbours_are_one(loaded: LoadedModel, text: list[int]):
    with Engine(loaded, EngineConfig(max_passages=5)) as engine:
        first = finished(list(engine.submit(generation(text[:300], passages=True)))).passages
        without = finished(list(engine.submit(generation(text[:300])))).passages
        short = finished(list(engine.submit(generation(text[:20], passages=True)))).passages
    assert without is None
    assert short == ()
    assert first
    assert len(first) <= 5
    assert [passage.mass for passage in first] == sorted((passage.mass for passage in first), reverse=True)
    places = sorted((passage.begin, passage.end) for passage in first)
    assert all(end < begin for (_, end), (begin, _) in zip(places, places[1:], strict=False))
    assert sum(passage.mass for passage in first) < 1


def test_what_was_generated_is_no_passage_of_the_input(loaded: LoadedModel, text: list[int]):
    length = 201  # within a block
    with Engine(loaded, EngineConfig(max_passages=10_000)) as engine:
        ask = generation(text[:length], max_tokens=300, ignore_eos=True, passages=True, n=2)
        passages = finished(list(engine.submit(ask))).passages
    assert passages
    assert all(passage.begin < passage.end <= length for passage in passages)
    assert max(passage.end for passage in passages) == length, "the block that the answer begins in ends with the input"
