"""A small trained model finds what stands anywhere in a long text, and does not without retrieval.

The model (`benchmarks/train_recall.py`) reads 512 tokens; accuracy over more documents and lengths is in
`benchmarks/results/longcontext.md`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recall_tasks import NUM_DECILES, Document, entry_of_decile, make_document
from transformers import LlamaForCausalLM

from hsokv_ray.longcontext import LongContext, LongContextConfig, Memory

FIXTURE = Path(__file__).parents[2] / "fixtures" / "recall_llama"


@pytest.fixture(scope="module")
def model() -> Any:
    return LlamaForCausalLM.from_pretrained(FIXTURE, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def in_window_accuracy() -> float:
    """Of the model on multi-key questions inside its window, measured when it was trained."""
    return json.loads((FIXTURE / "training.json").read_text())["in_window_exact_match"]["multi_key"]


def is_answered(lc: LongContext, memory: Memory, document: Document, entry: int) -> bool:
    recall = document.ask(entry)
    answer = lc.generate(
        memory, prompt=recall.question_ids, max_new_tokens=len(recall.answer_ids), do_sample=False, eos_token_id=None
    )
    return answer.token_ids == recall.answer_ids.tolist()


def ask_deciles(lc: LongContext, length: int, seed: int, passkey_decile: int, per_decile: int) -> tuple[bool, int]:
    """Return whether the passkey was answered, and how many of `per_decile` other entries in each decile."""
    rng = np.random.default_rng([length, seed])
    hidden = entry_of_decile(length, passkey_decile, rng)
    document = make_document(length, rng, passkey_entry=hidden)
    memory = lc.encode(document.ids_N)
    entries = [entry_of_decile(length, decile, rng) for decile in range(NUM_DECILES) for _ in range(per_decile)]
    right = sum(is_answered(lc, memory, document, entry) for entry in entries if entry != hidden)
    return is_answered(lc, memory, document, hidden), right + entries.count(hidden)


@pytest.fixture(scope="module")
def answers(model: Any) -> dict[int, list[tuple[bool, int, int]]]:
    """Of each document by length: whether its passkey was answered, other entries answered, and asked for."""
    with LongContext(model, config=LongContextConfig(enabled=True)) as lc:
        short = [(*ask_deciles(lc, 8192, decile, decile, per_decile=3), 30) for decile in range(NUM_DECILES)]
        long = {length: [(*ask_deciles(lc, length, 0, 3, per_decile=15), 150)] for length in (32_768, 131_072)}
    return {8192: short, **long}


def test_every_passkey_is_found_and_other_keys_as_well_as_in_the_window_but_for_2_points(
    answers: dict[int, list[tuple[bool, int, int]]], in_window_accuracy: float
):
    every = [document for documents in answers.values() for document in documents]
    assert all(passkey for passkey, _, _ in every)
    right, asked = (sum(document[i] for document in every) for i in (1, 2))
    assert right / asked >= in_window_accuracy - 0.02


@pytest.mark.parametrize("length", [8192, 32_768, 131_072])
def test_no_length_is_significantly_worse_than_that(
    answers: dict[int, list[tuple[bool, int, int]]], in_window_accuracy: float, length: int
):
    right, asked = (sum(document[i] for document in answers[length]) for i in (1, 2))
    least = in_window_accuracy - 0.02
    assert right / asked >= least - 1.96 * (least * (1 - least) / asked) ** 0.5


@pytest.mark.parametrize("settings", [{"budget_tokens": 0}, {"max_source_length": 440, "on_too_long": "truncate"}])
def test_sinks_and_window_alone_or_the_beginning_alone_find_almost_nothing(model: Any, settings: dict[str, Any]):
    with LongContext(model, config=LongContextConfig(enabled=True, **settings)) as lc:
        done = [ask_deciles(lc, 8192, decile, decile, per_decile=2) for decile in range(NUM_DECILES)]
    assert sum(passkey for passkey, _ in done) <= 1
    assert sum(right for _, right in done) / 200 < 0.15
