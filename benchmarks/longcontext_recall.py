"""Exact answers of a small trained model over long documents, read by each system: accuracy beside the times.

The model, its window and its tasks are those of `recall_tasks.py`; a document holds one passkey and many other entries,
and is read once for all questions about it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from longcontext_peers import SYSTEMS, Reader, full, make_reader
from recall_tasks import NUM_DECILES, Recall, make_document, num_entries
from transformers import LlamaForCausalLM

FIXTURE = Path(__file__).parents[1] / "tests" / "fixtures" / "recall_llama"
CHUNK = 128
TRUNCATED = "truncated"
"""The newest tokens that fit the window, and nothing else."""
FULL_UP_TO = 16_384
"""Full attention is read for real; past this it takes long, and long before it has left its trained positions."""


def measure_recall(*, quick: bool) -> list[dict[str, Any]]:
    """Return a row per system and length: shares of exact answers, and how many were asked."""
    model = LlamaForCausalLM.from_pretrained(FIXTURE, attn_implementation="sdpa").eval()
    window = model.config.max_position_embeddings
    within = window * 7 // 8
    all_of_them = tuple(range(NUM_DECILES))
    plan = {within: all_of_them, 4096: all_of_them, 16_384: all_of_them, 32_768: all_of_them}
    plan |= dict.fromkeys((65_536, 131_072), all_of_them[1::2])  # reading these takes longest
    if quick:
        plan = dict.fromkeys((within, 4096), (2, 7))
    rows = []
    with torch.inference_mode():
        for length, deciles in plan.items():
            for name in (*SYSTEMS, TRUNCATED):
                if name != "full" or length <= FULL_UP_TO:
                    rows.append({"system": name, "context": length, **share(name, model, length, deciles)})
    return rows


def share(
    name: str, model: LlamaForCausalLM, length: int, deciles: Sequence[int], num_questions: int = 20
) -> dict[str, Any]:
    """Return the shares of exact answers of one system, to the same questions as all others.

    Args:
        deciles: where the passkey stands, document by document.
        num_questions: for other entries of each document.
    """
    passkeys, values = [], []
    for decile in deciles:
        reader = _reader(name, model)
        recalls = questions(length, decile, num_questions, np.random.default_rng([length, decile]))
        document = torch.from_numpy(recalls[0].document_ids)[None]
        room = model.config.max_position_embeddings - 16
        reader.read(document[:, -room:] if name == TRUNCATED else document)
        first, *others = [is_answered(reader, recall) for recall in recalls]
        passkeys.append(first)
        values += others
    return {
        "passkey": float(np.mean(passkeys)),
        "passkeys": len(passkeys),
        "multi_key": float(np.mean(values)),
        "multi_keys": len(values),
    }


def questions(length: int, decile: int, number: int, rng: np.random.Generator) -> list[Recall]:
    """Return the question for the passkey in `decile` of a document, then `number` for other entries, spread evenly."""
    entries = num_entries(length)
    hidden = int((decile + rng.random()) / NUM_DECILES * entries)
    document = make_document(length, rng, passkey_entry=hidden)
    others = [entry for entry in range(entries) if entry != hidden]
    chosen = [others[int((i + rng.random()) / number * len(others))] for i in range(number)]
    return [document.ask(entry) for entry in (hidden, *chosen)]


def is_answered(reader: Reader, recall: Recall) -> bool:
    """Return whether the greedy answer is the right one, token for token."""
    asked = reader.fork()
    ids = torch.from_numpy(recall.question_ids)[None]
    for token in recall.answer_ids:
        best = asked.forward(ids).argmax()
        if best != token:
            return False
        ids = best.view(1, 1)
    return True


def _reader(name: str, model: LlamaForCausalLM) -> Reader:
    makers: dict[str, Callable[[], Reader]] = {TRUNCATED: lambda: full(model, chunk=CHUNK)}
    return makers.get(name, lambda: make_reader(name, model, chunk=CHUNK))()
