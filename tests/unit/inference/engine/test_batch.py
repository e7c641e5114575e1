"""A step of many choices gives each the logits it would have alone."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from hsokv_ray.inference.engine.batch import Batch
from hsokv_ray.inference.engine.choice import Choice
from hsokv_ray.inference.engine.config import EngineConfig
from hsokv_ray.inference.engine.requests import Sampling
from hsokv_ray.inference.engine.sampling import Sampler
from hsokv_ray.inference.engine.served import ServedModel
from hsokv_ray.inference.engine.text_reading import TextReading, plain_reading, read_side_by_side
from hsokv_ray.inference.loading import LoadedModel
from hsokv_ray.models.configuration_hmst import HMSTConfig
from hsokv_ray.models.modeling_hmst import HMSTForCausalLM

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.1,
}
FAMILIES: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)),
    "hmst": lambda: HMSTForCausalLM(HMSTConfig(**SHAPE, num_experts=4)),
}


@pytest.fixture(params=FAMILIES)
def served(request: pytest.FixtureRequest, loaded: LoadedModel) -> Any:
    torch.manual_seed(0)
    served = ServedModel(LoadedModel(FAMILIES[request.param]().eval(), loaded.tokenizer, loaded.source), EngineConfig())
    yield served
    served.close()


@torch.no_grad()
def choice(served: ServedModel, ids: list[int]) -> Choice:
    reading = _reading(served, ids[:-1])
    while reading.num_left:
        reading.read(512)
    greedy = Sampling(temperature=0)
    sampler = Sampler(greedy, 0, np.array(ids), served.device)
    return Choice(served, greedy, 0, reading.rows, sampler, ids[-1], 99, "length")


@torch.no_grad()
def steps(batch: Batch, choices: list[Choice], num_steps: int) -> list[torch.Tensor]:
    batch.keep(choices)
    logits = []
    for _ in range(num_steps):
        logits.append(batch.step())
        for each, token in zip(choices, logits[-1].argmax(-1).tolist(), strict=True):
            each.token = token
    return logits


@torch.no_grad()
def test_logits_inside_the_window_are_the_plain_models(served: ServedModel, text: list[int]):
    prompts = [text[:1], text[5:25], text[30:80]]
    batch = Batch(served.model)
    logits = steps(batch, [choice(served, prompt) for prompt in prompts], 8)
    for row, prompt in enumerate(prompts):
        ids = list(prompt)
        for step in logits:
            torch.testing.assert_close(step[row], served.model(torch.tensor([ids])).logits[0, -1], atol=1e-4, rtol=0)
            ids.append(int(step[row].argmax()))


def test_logits_past_the_window_are_those_of_the_row_alone(served: ServedModel, text: list[int]):
    prompts = [text[:300], text[10:30], text[50:250], text[:64], text[:63]]
    batch = Batch(served.model)
    together = steps(batch, [choice(served, prompt) for prompt in prompts], 20)
    for row, prompt in enumerate(prompts):
        for step, alone in zip(together, steps(Batch(served.model), [choice(served, prompt)], 20), strict=True):
            torch.testing.assert_close(step[row], alone[0], atol=1e-4, rtol=0)


def test_choices_that_join_and_leave_do_not_change_the_others(served: ServedModel, text: list[int]):
    batch, stays = Batch(served.model), choice(served, text[:100])
    alone = steps(Batch(served.model), [choice(served, text[:100])], 12)
    got = steps(batch, [stays], 3)[0:3]
    got += [step[1:] for step in steps(batch, [choice(served, text[7:90]), stays], 4)]
    got += [step[:1] for step in steps(batch, [stays, choice(served, text[3:9])], 5)]
    torch.testing.assert_close(torch.stack(got), torch.stack(alone), atol=1e-4, rtol=0)


def test_a_row_that_raises_takes_no_other_with_it(served: ServedModel, text: list[int]):
    def broken(*args: Any) -> None:
        raise ValueError("this row is broken")

    prompts = [text[:90], text[10:200], text[20:40]]
    choices = [choice(served, prompt) for prompt in prompts]
    choices[1].rows[1].observer = broken
    batch = Batch(served.model)
    (logits,) = steps(batch, choices, 1)
    assert list(batch.errors) == [1]
    assert "this row is broken" in str(batch.errors[1])
    for row in (0, 2):
        (alone,) = steps(Batch(served.model), [choice(served, prompts[row])], 1)
        torch.testing.assert_close(logits[row], alone[0], atol=1e-4, rtol=0)


@torch.no_grad()
def test_pieces_side_by_side_give_the_rows_of_each_alone(served: ServedModel, text: list[int]):
    prompts = [text[:300], text[10:30], text[50:250], text[:64], text[:63]]
    together = [_reading(served, prompt) for prompt in prompts]
    while left := [reading for reading in together if reading.num_left]:
        assert not read_side_by_side(served, [(reading, reading.next_piece(32)) for reading in left])
    for reading, prompt in zip(together, prompts, strict=True):
        alone = _reading(served, prompt)
        while alone.num_left:
            alone.read(512)
        for row, other in zip(reading.rows, alone.rows, strict=True):
            assert (row.length, row.position) == (other.length, other.position)
            torch.testing.assert_close(row.local.keys, other.local.keys, atol=1e-4, rtol=0)
            torch.testing.assert_close(row.local.values, other.local.values, atol=1e-4, rtol=0)


def _reading(served: ServedModel, ids: list[int]) -> TextReading:
    return plain_reading(served, ids, served.recorder(None, served.settings), served.settings)
