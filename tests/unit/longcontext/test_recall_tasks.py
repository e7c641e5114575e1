"""Recall tasks: what a document must be for its question to have one answer, found by nothing but reading it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recall_tasks import (
    ASK,
    BOS,
    FILLER,
    KEYS,
    NUM_DECILES,
    PASS,
    PASSKEY_SYMBOLS,
    SYMBOLS,
    TASKS,
    VALUE_SYMBOLS,
    VOCAB_SIZE,
    Recall,
    make_document,
    multi_key,
    num_entries,
    passkey,
)

from hsokv_ray.errors import ConfigError

lengths = st.integers(61, 4000)
deciles = st.integers(0, NUM_DECILES - 1)
seeds = st.integers(0, 2**32 - 1)
names = st.sampled_from(sorted(TASKS))


@given(names, lengths, deciles, seeds)
def test_a_scan_of_the_document_finds_the_one_answer_in_its_decile(name: str, length: int, decile: int, seed: int):
    recall = TASKS[name](length, decile, np.random.default_rng(seed))
    document = recall.document_ids.tolist()
    assert len(document) == length
    assert document[0] == BOS
    ask, key = recall.question_ids.tolist()
    assert ask == ASK
    assert document.count(key) == 1
    at = document.index(key)
    assert document[at + 1 : at + 1 + len(recall.answer_ids)] == recall.answer_ids.tolist()
    width = (length - 1) / num_entries(length)  # an entry may stand anywhere in its cell, cells do not end with deciles
    assert decile / NUM_DECILES * length - width - 1 <= at <= (decile + 1) / NUM_DECILES * length + width + 1


@given(names, lengths, deciles, seeds)
def test_no_key_stands_twice_and_every_tenth_of_the_document_has_some(name: str, length: int, decile: int, seed: int):
    ids = TASKS[name](length, decile, np.random.default_rng(seed)).document_ids
    at = np.flatnonzero((ids >= KEYS.start) | (ids == PASS))
    assert len(set(ids[at])) == len(at) == num_entries(length)
    assert at[0] <= length / NUM_DECILES + 1
    assert np.diff(at).max() <= 2 * length / len(at)
    assert ids.min() >= 0
    assert ids.max() < VOCAB_SIZE
    assert ASK not in ids


@given(lengths, deciles, seeds)
def test_a_passkey_is_five_different_symbols_under_the_only_pass_among_keys_with_two(
    length: int, decile: int, seed: int
):
    recall = passkey(length, decile, np.random.default_rng(seed))
    assert recall.question_ids[1] == PASS
    assert len(set(recall.answer_ids)) == PASSKEY_SYMBOLS
    assert set(recall.answer_ids) <= set(SYMBOLS)
    other = multi_key(length, decile, np.random.default_rng(seed))
    assert PASS not in other.document_ids
    assert len(other.answer_ids) == VALUE_SYMBOLS


def test_filler_is_varied_and_symbols_stand_in_it_without_a_key():
    ids = multi_key(8192, 4, np.random.default_rng(0)).document_ids
    words = ids[(ids >= FILLER.start) & (ids < FILLER.stop)]
    assert set(words) == set(FILLER)
    assert np.bincount(words).max() < 0.15 * len(words)
    is_symbol = (ids >= SYMBOLS.start) & (ids < SYMBOLS.stop)
    assert is_symbol.sum() > num_entries(8192) * VALUE_SYMBOLS * 1.1


@pytest.mark.parametrize("length", [131_072, 524_288])
def test_the_longest_documents_use_nearly_every_key_once(length: int):
    document = make_document(length, np.random.default_rng(0))
    assert len(document.ids_N) == length
    assert len(set(document.keys_E)) == len(document.keys_E) >= len(KEYS) - 1


@given(names, lengths, deciles, seeds)
def test_a_seed_reproduces_a_question(name: str, length: int, decile: int, seed: int):
    first, second = (TASKS[name](length, decile, np.random.default_rng(seed)) for _ in range(2))
    for field in Recall._fields:
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))


def test_every_symbol_and_every_key_is_asked_for():
    rng = np.random.default_rng(0)
    asked = [multi_key(200, i % NUM_DECILES, rng) for i in range(2000)]
    assert {symbol for recall in asked for symbol in recall.answer_ids} == set(SYMBOLS)
    keys = {int(recall.question_ids[1]) for recall in asked}
    assert keys <= set(KEYS)
    assert len(keys) > 1300  # 2000 draws of 4096 keys give 1582 different ones on average


@pytest.mark.parametrize(("length", "decile"), [(60, 0), (8192, 10), (8192, -1)])
@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_document_without_ten_deciles_or_a_decile_that_is_none_is_an_error(name: str, length: int, decile: int):
    with pytest.raises(ConfigError, match="ten deciles|decile"):
        TASKS[name](length, decile, np.random.default_rng(0))
