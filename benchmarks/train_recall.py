#!/usr/bin/env python
"""Train the small LLaMA that answers `recall_tasks` inside its window of 512 tokens; minutes on a CPU.

    python benchmarks/train_recall.py [--output tests/fixtures/recall_llama] [--steps 2000] [--seed 0]

Two layers do it, as in every induction circuit (Olsson et al. 2022, In-context learning and induction heads): in the
first, one head looks at the token before and one at the key of the entry; in the second, a head per key-value head
looks for "the same key, and the symbol I have just said was the one before". Beside the loss of the answers, which
alone takes far longer to find this, four attention losses say where those heads should look. The last of them takes
queries and keys before the rotary embedding, against all tokens of the batch: that is how retrieval searches.

Positions have gaps of any size between entries, so that what is fetched may stand anywhere in the window. Entries are
asked many times a document (Arora et al. 2023, Zoology), and documents grow from 61 tokens to the window.

Shapes: R rows, T tokens, H heads, D head dim, P pairs of a token and where it should look.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from recall_tasks import (
    ASK,
    BOS,
    EOS,
    FILLER,
    KEYS,
    MIN_CELL_TOKENS,
    NUM_DECILES,
    PASS,
    PASSKEY_SYMBOLS,
    SYMBOLS,
    TASKS,
    VOCAB_SIZE,
    Recall,
    make_document,
    num_entries,
)
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

WINDOW = 512
BATCH_TOKENS = 2048
LONGEST = (64, 128, 256, 440)
"""Document lengths up to which the four stages go."""
CELLS = (6, 6, 6, 8, 12, 16, 32)
LEARNING_RATE, WARMUP_STEPS, DECAY_FROM = 2e-3, 50, 0.6
PREVIOUS_HEAD, ENTRY_HEAD, SOURCE_HEADS = 0, 2, (0, 2)
LOOK_PAIRS, SEARCH_PAIRS = 160, 512
"""Pairs of one attention loss and of one search loss; more of them cost time and teach little."""
MARGIN = float(np.log(131_072 / BATCH_TOKENS))
"""Nats by which a target must win: every other token counts as 64, so that a batch is as hard as a long document."""
SINKS = 16


class Batch(NamedTuple):
    """Ids and positions [R, T]; where the next token is copied from, and the key of a symbol's entry; -1: nowhere."""

    ids_RT: Tensor
    positions_RT: Tensor
    source_RT: Tensor
    entry_RT: Tensor
    document_tokens: int


class Scores(NamedTuple):
    """Queries and keys of a layer [R, H, T, D], before and after the rotary embedding; keys repeated over groups."""

    query_RHTD: Tensor
    key_RHTD: Tensor
    rotated_query_RHTD: Tensor
    rotated_key_RHTD: Tensor


class Losses(NamedTuple):
    """Means over tokens, in nats."""

    answer: Tensor
    previous: Tensor
    entry: Tensor
    source: Tensor
    search: Tensor


def small_llama(seed: int) -> LlamaForCausalLM:
    """Return the model before training: 2 layers, 4 heads of 64, 2 key-value heads, width 128, 1.5 M parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=WINDOW,
        # half of the frequencies hardly turn inside the window: room for what a key is, wherever it stands
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight.normal_(0, weight.shape[1] ** -0.5)
        embedding = model.get_input_embeddings().weight.normal_()
        # LLaMA has no biases: a part common to all tokens, and to a kind, lets a head look at a distance, or at a kind
        for kind in (range(VOCAB_SIZE), SYMBOLS, FILLER, KEYS):
            embedding[kind.start : kind.stop] += torch.randn(model.config.hidden_size)
    return model


def make_batch(longest: int, rng: np.random.Generator) -> Batch:
    """Return rows of one document length, up to `longest`; no two rows share a key but PASS."""
    cell = int(rng.choice(CELLS))
    length = int(rng.integers(1 + NUM_DECILES * MIN_CELL_TOKENS, longest + 1))
    num = num_entries(length, cell)
    asked = min(num, max(NUM_DECILES, length // 8))
    total = min(WINDOW, length + 4 * asked + PASSKEY_SYMBOLS)
    rows = max(4, BATCH_TOKENS // total)
    ids, source, entry = (np.full((rows, total), fill) for fill in (EOS, -1, -1))
    keys = rng.permutation(len(KEYS))[: rows * num].reshape(rows, num) + KEYS.start
    for row in range(rows):
        _fill_row(ids[row], source[row], entry[row], keys[row], length, cell, asked, rng)
    positions = np.stack([_positions_with_gaps(row, rng) for row in entry])
    return Batch(*map(torch.from_numpy, (ids, positions, source, entry)), document_tokens=length)


def _fill_row(
    ids: np.ndarray,
    source: np.ndarray,
    entry: np.ndarray,
    keys: np.ndarray,
    length: int,
    cell: int,
    asked: int,
    rng: np.random.Generator,
) -> None:
    """Write a document and questions about `asked` of its entries into one row, in place."""
    passkey = int(rng.integers(len(keys)))
    document = make_document(length, rng, cell_tokens=cell, passkey_entry=passkey)
    keys[passkey] = PASS
    ids[:length] = document.ids_N
    ids[document.starts_E] = keys
    for offset in range(1, PASSKEY_SYMBOLS + 1):
        starts = document.starts_E[document.sizes_E >= offset]
        entry[starts + offset] = starts
    at = length
    for number in rng.permutation(len(keys))[:asked]:
        start, size = document.starts_E[number], document.sizes_E[number]
        key_at, end = at + 1, at + 2 + size
        if end > len(ids):
            break
        ids[at], ids[key_at:end] = ASK, ids[start : start + 1 + size]
        source[key_at : end - 1] = start + 1 + np.arange(size)
        entry[key_at + 1 : end] = key_at
        at = end


def _positions_with_gaps(entry_T: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return positions [T] inside the window: mostly with 1 to 6 gaps, none of them inside the sinks or an entry."""
    positions = np.arange(len(entry_T))
    room = WINDOW - len(entry_T)
    if rng.random() < 0.25 or room == 0:
        return positions
    num = int(rng.integers(1, 7))
    may_begin = SINKS + np.flatnonzero(entry_T[SINKS:] < 0)
    steps = np.zeros(len(entry_T), np.int64)
    gaps = rng.multinomial(int(rng.integers(room + 1)), rng.dirichlet(np.ones(num)))
    np.add.at(steps, rng.choice(may_begin, size=num), gaps)
    return positions + steps.cumsum()


def trace(model: LlamaForCausalLM, batch: Batch) -> tuple[Tensor, list[Scores]]:
    """Return the last hidden states [R, T, M] and what every layer matched: the model's forward, looked into."""
    hidden, traced = model.model.embed_tokens(batch.ids_RT), []
    turn = model.model.rotary_emb(hidden, batch.positions_RT)
    for layer in model.model.layers:
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        shape = (*normed.shape[:2], -1, attention.head_dim)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = (project(normed).view(shape).transpose(1, 2) for project in projections)
        key, value = (x.repeat_interleave(attention.num_key_value_groups, dim=1) for x in (key, value))
        scores = Scores(query, key, *apply_rotary_pos_emb(query, key, *turn))
        traced.append(scores)
        mixed = F.scaled_dot_product_attention(
            scores.rotated_query_RHTD, scores.rotated_key_RHTD, value, is_causal=True
        )
        hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.model.norm(hidden), traced


def losses_of(model: LlamaForCausalLM, batch: Batch) -> tuple[Losses, float]:
    """Return the losses of a batch, and the share of the answers' tokens that are right."""
    hidden, (first, second) = trace(model, batch)
    row, token = torch.nonzero(batch.source_RT >= 0, as_tuple=True)
    logits, right = model.lm_head(hidden[row, token]), batch.ids_RT[row, token + 1]
    before_RT = torch.arange(-1, batch.ids_RT.shape[1] - 1).expand_as(batch.ids_RT)
    losses = Losses(
        answer=F.cross_entropy(logits, right),
        previous=_look_loss(first, PREVIOUS_HEAD, _sample(before_RT, LOOK_PAIRS)),
        entry=_look_loss(first, ENTRY_HEAD, _sample(batch.entry_RT, LOOK_PAIRS)),
        source=_mean([_look_loss(second, head, _sample(batch.source_RT, LOOK_PAIRS)) for head in SOURCE_HEADS]),
        search=_mean(
            [_search_loss(second, head, _sample(batch.source_RT, SEARCH_PAIRS), batch) for head in SOURCE_HEADS]
        ),
    )
    return losses, (logits.argmax(-1) == right).float().mean().item()


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean()


def _sample(target_RT: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, tokens and targets [P] of at most `most` of the tokens that have a target."""
    row, token = torch.nonzero(target_RT >= 0, as_tuple=True)
    chosen = torch.randperm(len(row))[:most]
    row, token = row[chosen], token[chosen]
    return row, token, target_RT[row, token]


def _look_loss(scores: Scores, head: int, pairs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return the mean negative log of the attention that `head` gives to the targets."""
    row, token, target = pairs
    query_PD, key_PTD = scores.rotated_query_RHTD[row, head, token], scores.rotated_key_RHTD[row, head]
    logits_PT = torch.einsum("pd,ptd->pt", query_PD, key_PTD) * query_PD.shape[-1] ** -0.5
    later_PT = torch.arange(logits_PT.shape[1]) > token[:, None]
    return _loss_with_margin(logits_PT.masked_fill(later_PT, -torch.inf), target)


def _search_loss(scores: Scores, head: int, pairs: tuple[Tensor, Tensor, Tensor], batch: Batch) -> Tensor:
    """Return the same before the rotary embedding, over the documents of all rows; a passkey only over its own's."""
    row, token, target = pairs
    num_rows, num_tokens = batch.ids_RT.shape
    query_PD, keys = scores.query_RHTD[row, head, token], scores.key_RHTD[:, head].flatten(0, 1)
    logits = query_PD @ keys.T * query_PD.shape[-1] ** -0.5
    entry = batch.entry_RT[row, token]
    asks_passkey = batch.ids_RT[row, torch.where(entry < 0, token, entry)] == PASS
    of_row = torch.arange(num_rows).repeat_interleave(num_tokens)
    in_question = (torch.arange(num_tokens) >= batch.document_tokens).repeat(num_rows)
    hidden = in_question | (asks_passkey[:, None] & (of_row != row[:, None]))
    return _loss_with_margin(logits.masked_fill(hidden, -torch.inf), row * num_tokens + target)


def _loss_with_margin(logits_PT: Tensor, target_P: Tensor) -> Tensor:
    handicap = F.one_hot(target_P, logits_PT.shape[1]) * MARGIN
    return F.cross_entropy(logits_PT - handicap, target_P)


def train(model: LlamaForCausalLM, *, steps: int, seed: int) -> dict[str, float]:
    """Train `model` in place; return the mean losses of the last 50 steps, in nats."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    history: list[list[float]] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, steps)
        losses, accuracy = losses_of(model, make_batch(LONGEST[min(3, 8 * step // steps)], rng))
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append([loss.item() for loss in losses] + [accuracy])
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}", json.dumps(_means(history)), flush=True)
    return _means(history)


def _learning_rate(step: int, steps: int) -> float:
    done = step / steps
    decay = 1.0 if done < DECAY_FROM else max(0.02, (1 - done) / (1 - DECAY_FROM))
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * decay


def _means(history: list[list[float]]) -> dict[str, float]:
    names = [*Losses._fields, "token_accuracy"]
    return dict(zip(names, np.mean(history[-50:], axis=0).round(4).tolist(), strict=True))


def num_right(model: LlamaForCausalLM, asked: list[Recall]) -> int:
    """Return how many of `asked`, of one length, the plain model answers exactly, document and question in sight."""
    ids = torch.from_numpy(np.stack([np.concatenate(recall[:2]) for recall in asked]))
    answers = np.stack([recall.answer_ids for recall in asked])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=answers.shape[1],
        min_new_tokens=answers.shape[1],
        do_sample=False,
    )
    return int((output[:, ids.shape[1] :].numpy() == answers).all(axis=1).sum())


def in_window_accuracy(model: LlamaForCausalLM, *, num_questions: int, seed: int) -> dict[str, float]:
    """Return the share of exact answers of both tasks over lengths of 64 tokens to nearly the window."""
    rng, lengths = np.random.default_rng(seed), (64, 128, 256, WINDOW - 8)
    each = num_questions // len(lengths)
    return {
        name: sum(num_right(model, [task(n, i % NUM_DECILES, rng) for i in range(each)]) for n in lengths)
        / (each * len(lengths))
        for name, task in TASKS.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the fixture of recall_tasks.")
    parser.add_argument("--output", type=Path, default=Path("tests/fixtures/recall_llama"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=2000, help="of each task, for the accuracy in the record")
    args = parser.parse_args()
    model = small_llama(args.seed)
    means = train(model, steps=args.steps, seed=args.seed)
    model.half().save_pretrained(args.output)  # what is measured is what is stored
    model = LlamaForCausalLM.from_pretrained(args.output, dtype=torch.float32)
    accuracy = in_window_accuracy(model, num_questions=args.questions, seed=args.seed + 1)
    record = {
        "seed": args.seed,
        "steps": args.steps,
        "torch": torch.__version__,
        "last_50_steps": means,
        "in_window_exact_match": accuracy,
        "questions_of_each_task": args.questions,
    }
    (args.output / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
