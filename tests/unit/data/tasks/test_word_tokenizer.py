"""Words to ids: fitted on training texts only, saved, cut and counted."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.data.tasks import WordTokenizer, text_examples
from hsokv_ray.data.tasks.word_tokenizer import BLANK_ID, NUM_SPECIAL, PAD_ID, SEPARATOR_ID, START_ID, UNKNOWN_ID
from hsokv_ray.data.tasks.words import words
from hsokv_ray.errors import DataError


def test_the_most_frequent_training_words_have_the_first_ids_and_others_are_unknown() -> None:
    tokenizer = WordTokenizer.fit(["B b ___ a", "c a b"], max_words=2)
    assert tokenizer.vocab_size == NUM_SPECIAL + 2
    encoded = tokenizer.encode(["b a c ___", "a"])
    assert encoded.input_ids.tolist() == [[START_ID, 5, 6, UNKNOWN_ID, BLANK_ID], [START_ID, 6, PAD_ID, PAD_ID, PAD_ID]]
    assert encoded.attention_mask.tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    assert WordTokenizer.fit(["a a b"], min_count=2).vocab_size == NUM_SPECIAL + 1


def test_pairs_are_separated_and_the_longer_text_is_cut_first() -> None:
    tokenizer = WordTokenizer.fit(["a b c d e f"])
    encoded = tokenizer.encode([("a b c d", "e f")], max_length=6)
    ids = dict(zip("abcdef", range(5, 11), strict=True))
    assert encoded.input_ids.tolist() == [[START_ID, ids["a"], ids["b"], SEPARATOR_ID, ids["e"], ids["f"]]]
    assert encoded.num_cut == 1


@given(st.lists(st.text(), min_size=1), st.integers(4, 20), st.integers(0, 1))
def test_ids_are_in_range_and_lengths_kept(texts: list[str], max_length: int, hashed: int) -> None:
    tokenizer = WordTokenizer.hashed(50) if hashed else WordTokenizer.fit(["some words to know"])
    encoded = tokenizer.encode(texts, max_length=max_length)
    assert encoded.input_ids.max() < tokenizer.vocab_size
    lengths = [min(len(words(text)), max_length - 1) + 1 for text in texts]
    assert encoded.attention_mask.sum(axis=1).tolist() == lengths
    assert encoded.num_cut == sum(len(words(text)) > max_length - 1 for text in texts)


@pytest.mark.parametrize("tokenizer", [WordTokenizer.fit(["b a é"]), WordTokenizer.hashed(7)], ids=["fitted", "hashed"])
def test_a_saved_tokenizer_encodes_alike(tmp_path: Path, tokenizer: WordTokenizer) -> None:
    tokenizer.save_pretrained(tmp_path / "new")
    loaded = WordTokenizer.from_pretrained(tmp_path / "new")
    texts = ["a b", "é unknown ___"]
    assert loaded.encode(texts).input_ids.tolist() == tokenizer.encode(texts).input_ids.tolist()
    assert loaded.vocab_size == tokenizer.vocab_size


def test_hashing_is_the_same_in_every_process() -> None:
    assert WordTokenizer.hashed(1000).id_of("glimmerous") == WordTokenizer.hashed(1000).id_of("glimmerous")
    # blake2b of "a", 8 bytes little-endian, as `python -c "import hashlib; ..."` gives it; not Python's salted hash.
    import hashlib

    expected = int.from_bytes(hashlib.blake2b(b"a", digest_size=8).digest(), "little") % 1000
    assert WordTokenizer.hashed(1000).id_of("a") == NUM_SPECIAL + expected


def test_examples_become_tokens() -> None:
    examples = WordTokenizer.fit(["a b"]).examples(text_examples(["a", "b a"], [1, 0]))
    assert (examples.kind, examples.inputs.shape, examples.labels.tolist()) == ("tokens", (2, 3), [1, 0])


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hold no word"):
        WordTokenizer.fit(["", "..."])
    with pytest.raises(DataError, match="at least 4 tokens"):
        WordTokenizer.hashed(5).encode(["a"], max_length=3)
    for arguments in ({}, {"vocabulary": ["a"], "num_buckets": 3}):
        with pytest.raises(DataError, match="not both"):
            WordTokenizer(**arguments)
    (tmp_path / "word_tokenizer.json").write_text("[]")
    with pytest.raises(DataError, match="not a word tokenizer"):
        WordTokenizer.from_pretrained(tmp_path)
