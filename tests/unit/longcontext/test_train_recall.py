"""The recall model: its training batches are right, and the stored one answers inside its window."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recall_tasks import BOS, EOS, KEYS, NUM_DECILES, PASS, TASKS
from train_recall import CELLS, LONGEST, SINKS, WINDOW, Batch, make_batch, num_right, small_llama, trace, train
from transformers import LlamaForCausalLM

FIXTURE = Path(__file__).parents[2] / "fixtures" / "recall_llama"


@pytest.fixture(params=range(len(LONGEST) * len(CELLS)))
def batch(request: pytest.FixtureRequest) -> Batch:
    return make_batch(LONGEST[request.param % len(LONGEST)], np.random.default_rng(request.param))


def test_what_an_answer_is_copied_from_is_the_answer_in_the_document(batch: Batch) -> None:
    row, token = torch.nonzero(batch.source_RT >= 0, as_tuple=True)
    source = batch.source_RT[row, token]
    assert (batch.ids_RT[row, source] == batch.ids_RT[row, token + 1]).all()
    assert (source < batch.document_tokens).all()
    assert (token >= batch.document_tokens).all()


def test_the_key_of_a_symbol_is_the_nearest_key_before_it(batch: Batch) -> None:
    row, token = torch.nonzero(batch.entry_RT >= 0, as_tuple=True)
    is_key = (batch.ids_RT >= KEYS.start) | (batch.ids_RT == PASS)
    at = torch.where(is_key, torch.arange(batch.ids_RT.shape[1]), -1).cummax(dim=1).values
    assert (batch.entry_RT[row, token] == at[row, token]).all()


def test_rows_share_no_key_and_ask_none_twice(batch: Batch) -> None:
    assert (batch.ids_RT[:, 0] == BOS).all()
    for part in (batch.ids_RT[:, : batch.document_tokens], batch.ids_RT[:, batch.document_tokens :]):
        keys = part[part >= KEYS.start]
        assert len(keys.unique()) == len(keys)
        assert ((part == PASS).sum(dim=1) <= 1).all()


def test_positions_rise_inside_the_window_and_jump_neither_in_the_sinks_nor_in_an_entry(batch: Batch) -> None:
    steps = batch.positions_RT.diff(dim=1)
    assert (batch.positions_RT[:, 0] == 0).all()
    assert (steps >= 1).all()
    assert batch.positions_RT.max() < WINDOW
    assert (steps[:, : SINKS - 1] == 1).all()
    assert (steps[batch.entry_RT[:, 1:] >= 0] == 1).all()


def test_the_traced_forward_is_the_models_own() -> None:
    model = small_llama(0).eval()
    batch = make_batch(64, np.random.default_rng(0))
    with torch.no_grad():
        hidden, scores = trace(model, batch)
        expected = model.model(
            input_ids=batch.ids_RT, attention_mask=torch.ones_like(batch.ids_RT), position_ids=batch.positions_RT
        )
    torch.testing.assert_close(hidden, expected.last_hidden_state)
    assert len(scores) == model.config.num_hidden_layers


def test_training_is_reproduced_by_its_seed() -> None:
    means = []
    for _ in range(2):
        model = small_llama(3)
        means.append(train(model, steps=2, seed=3))
    assert means[0] == means[1]


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_stored_model_answers_inside_its_window(name: str) -> None:
    model = LlamaForCausalLM.from_pretrained(FIXTURE, dtype=torch.float32).eval()
    rng, num = np.random.default_rng(20_000), 100
    asked = [TASKS[name](400, i % NUM_DECILES, rng) for i in range(num)]
    assert num_right(model, asked) >= 0.98 * num
    record = json.loads((FIXTURE / "training.json").read_text())
    assert record["in_window_exact_match"][name] >= 0.995
    assert model.config.eos_token_id == EOS


def test_the_stored_model_is_below_five_megabytes() -> None:
    assert sum(path.stat().st_size for path in FIXTURE.iterdir()) < 5_000_000
