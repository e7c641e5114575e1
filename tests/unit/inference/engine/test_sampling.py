"""Tokens are drawn as transformers' `generate` draws them."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.inference.engine.requests import Sampling
from hsokv_ray.inference.engine.sampling import Sampler
from hsokv_ray.inference.loading import LoadedModel

CPU = torch.device("cpu")
OPTIONS: dict[str, tuple[Sampling, dict[str, Any]]] = {
    "temperature": (Sampling(temperature=1.7, seed=3), {"temperature": 1.7}),
    "top_k": (Sampling(top_k=7, seed=3), {"top_k": 7}),
    "top_p": (Sampling(top_p=0.8, temperature=0.9, seed=3), {"top_p": 0.8, "temperature": 0.9}),
    "min_p": (Sampling(min_p=0.05, seed=3), {"min_p": 0.05}),
    "repetition": (Sampling(repetition_penalty=1.3, seed=3), {"repetition_penalty": 1.3}),
    "bias": (
        Sampling(logit_bias={5: 9.0, 7: -50.0}, seed=3),
        {"sequence_bias": [[[5], 9.0], [[7], -50.0]]},
    ),
    "all": (
        Sampling(temperature=0.7, top_k=30, top_p=0.9, min_p=0.01, repetition_penalty=1.1, logit_bias={9: 2.0}, seed=3),
        {
            "temperature": 0.7,
            "top_k": 30,
            "top_p": 0.9,
            "min_p": 0.01,
            "repetition_penalty": 1.1,
            "sequence_bias": [[[9], 2.0]],
        },
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_draws_with_a_seed_are_those_of_generate(loaded: LoadedModel, text: list[int], name: str):
    sampling, options = OPTIONS[name]
    prompt = torch.tensor([text[:20]])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        output = loaded.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            max_new_tokens=15,
            pad_token_id=0,
            **{"top_k": 0, "top_p": 1.0, "temperature": 1.0} | options,
        )
    ids, expected = list(text[:20]), output[0, 20:].tolist()
    sampler = Sampler(sampling, 0, np.array(ids), CPU)
    for token in expected:
        with torch.no_grad():
            logits = loaded.model(torch.tensor([ids])).logits[0, -1]
        assert sampler(logits) == token
        ids.append(token)


LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=6, max_size=6).map(torch.tensor)


@given(logits=LOGITS, frequency=st.floats(-2, 2), presence=st.floats(-2, 2), steps=st.integers(1, 12))
def test_frequency_and_presence_penalties_count_the_answers_own_tokens(
    logits: torch.Tensor, frequency: float, presence: float, steps: int
):
    sampling = Sampling(temperature=0, frequency_penalty=frequency, presence_penalty=presence)
    sampler = Sampler(sampling, 0, np.array([0, 1, 2]), CPU)
    given_tokens: list[int] = []
    for _ in range(steps):
        counts = torch.bincount(torch.tensor(given_tokens, dtype=torch.int64), minlength=6)
        penalised = logits - frequency * counts - presence * (counts > 0)
        token = sampler(logits)
        assert penalised[token] >= penalised.max() - 1e-5
        given_tokens.append(token)


def test_choices_and_seeds_draw_apart_and_again():
    logits = torch.zeros(1000)

    def draws(seed: int | None, choice: int) -> list[int]:
        sampler = Sampler(Sampling(seed=seed), choice, np.array([1]), CPU)
        return [sampler(logits) for _ in range(8)]

    assert draws(5, 0) == draws(5, 0)
    assert draws(5, 1) == draws(6, 0)
    assert draws(5, 0) != draws(6, 0)
    assert draws(None, 0) != draws(None, 0)


def test_the_global_random_state_is_neither_read_nor_changed():
    before = torch.get_rng_state()
    sampler = Sampler(Sampling(seed=1), 0, np.array([1]), CPU)
    drawn = [sampler(torch.zeros(50)) for _ in range(5)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    sampler = Sampler(Sampling(seed=1), 0, np.array([1]), CPU)
    assert drawn == [sampler(torch.zeros(50)) for _ in range(5)]


@pytest.mark.parametrize("temperature", [0.0, 1e-40])
def test_no_temperature_takes_the_likeliest_token(temperature: float):
    sampler = Sampler(Sampling(temperature=temperature), 0, np.array([1]), CPU)
    assert sampler.is_plain
    assert sampler(torch.tensor([0.0, 3.0, 2.9])) == 1
