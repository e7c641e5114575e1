import json
import math
from collections import Counter

import numpy as np
import pytest

from hsokv_ray.data import (
    Blocks,
    DataConfig,
    HeldOut,
    read_held_out,
    read_in_process,
    resolve_plan,
    sample_tokens,
    train_tokenizer,
    training_sample,
    unigram_baseline,
)
from hsokv_ray.errors import DataError


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["document number 0123456789 "] * 20, 300)


@pytest.fixture
def plan(tmp_path):
    lines = (json.dumps({"text": f"document number {i}"}) for i in range(300))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    return resolve_plan(DataConfig(source=str(tmp_path / "a.jsonl"), val_split=0.2), seed=0)


def texts(tokens, tokenizer):
    return [text for text in tokenizer.decode(tokens).split("<|endoftext|>") if text]


def test_held_out_blocks_and_training_text_share_no_document_and_miss_none(plan, tokenizer):
    both = [
        sample_tokens(plan, read_in_process(plan, tokenizer=tokenizer, split=split), max_tokens=10**6)
        for split in ("train", "val")
    ]
    train, val = (texts(tokens, tokenizer) for tokens in both)
    assert not set(train) & set(val)
    assert sorted(train + val) == sorted(f"document number {i}" for i in range(300))


def test_blocks_join_to_the_held_out_tokens_and_only_the_last_is_padded(plan, tokenizer):
    reader = read_in_process(plan, tokenizer=tokenizer, split="val")
    tokens = sample_tokens(plan, reader, max_tokens=10**6)
    held_out = read_held_out(plan, reader, seq_len=32, max_tokens=10**6, pad_id=tokenizer.pad_id)
    blocks = held_out.blocks
    predicted = [row[1 : n + 1] for row, n in zip(blocks.tokens, blocks.num_targets, strict=True)]
    np.testing.assert_array_equal(np.concatenate(predicted), tokens[1:])
    assert (blocks.num_targets[:-1] == 32).all()
    assert (blocks.tokens[-1, blocks.num_targets[-1] + 1 :] == tokenizer.pad_id).all()
    assert held_out.num_targets == len(tokens) - 1


def test_no_more_tokens_than_asked_for_are_held_out(plan, tokenizer):
    reader = read_in_process(plan, tokenizer=tokenizer, split="val")
    assert read_held_out(plan, reader, seq_len=32, max_tokens=70).num_targets == 70


def test_saved_blocks_come_back_and_a_damaged_file_is_refused(plan, tokenizer, tmp_path):
    reader = read_in_process(plan, tokenizer=tokenizer, split="val")
    held_out = read_held_out(plan, reader, seq_len=16, max_tokens=100)
    path = tmp_path / "held_out.safetensors"
    held_out.save(path)
    loaded = HeldOut.load(path)
    np.testing.assert_array_equal(loaded.blocks.tokens, held_out.blocks.tokens)
    np.testing.assert_array_equal(loaded.blocks.num_targets, held_out.blocks.num_targets)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="not the held-out blocks"):
        HeldOut.load(path)


def test_batches_cover_every_block_once(plan, tokenizer):
    held_out = read_held_out(
        plan, read_in_process(plan, tokenizer=tokenizer, split="val"), seq_len=16, max_tokens=10**6
    )
    batches = list(held_out.batches(4, document_mask=False, eos_id=tokenizer.eos_id))
    np.testing.assert_array_equal(np.concatenate([b.input_ids for b in batches]), held_out.blocks.tokens[:, :-1])
    assert sum(batch.num_targets for batch in batches) == held_out.num_targets
    assert [batch.first_index for batch in batches] == list(range(0, held_out.num_blocks, 4))


def test_nothing_held_out_is_an_error_that_says_what_to_do(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "one document"}')
    plan = resolve_plan(DataConfig(source=str(tmp_path), val_split=0), seed=0)
    reader = read_in_process(plan, tokenizer=tokenizer, split="val")
    with pytest.raises(DataError, match="no document is held out.*--val-split"):
        read_held_out(plan, reader, seq_len=8, max_tokens=100)


def test_a_corpus_shorter_than_one_block_is_an_error_with_both_lengths(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": "document"}')
    plan = resolve_plan(DataConfig(source=str(tmp_path), val_split=0), seed=0)
    num_tokens = len(tokenizer.encode("document")) + 1
    reader = read_in_process(plan, tokenizer=tokenizer, split="train")
    with pytest.raises(DataError, match=f"has {num_tokens} tokens, one block needs 65; lower --seq-len"):
        training_sample(plan, reader, seq_len=64, max_tokens=10)


def test_the_unigram_baseline_is_the_textbook_formula():
    rng = np.random.default_rng(0)
    sample = rng.integers(0, 7, 500)
    tokens = rng.integers(0, 9, (3, 11))
    held_out = HeldOut(blocks=Blocks(tokens=tokens, num_targets=np.array([10, 10, 4]), first_index=0))
    baseline = unigram_baseline(sample, held_out, vocab_size=9)
    counts = Counter(sample.tolist())
    entropy = -sum(n / 500 * math.log(n / 500) for n in counts.values())
    targets = [*tokens[0, 1:], *tokens[1, 1:], *tokens[2, 1:5]]
    cross_entropy = -sum(math.log((counts[int(t)] + 1) / 509) for t in targets) / len(targets)
    assert baseline.entropy == pytest.approx(entropy)
    assert baseline.cross_entropy == pytest.approx(cross_entropy)
    assert (baseline.num_sample_tokens, baseline.num_held_out_tokens) == (500, 24)
