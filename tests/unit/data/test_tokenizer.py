import json
import re

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from hsokv_ray.data.fast_bpe import sample_texts
from hsokv_ray.data.tokenizer import TextTokenizer, check_vocabulary, load_tokenizer, train_tokenizer
from hsokv_ray.errors import DataError

TEXTS = ["the cat sat on the mat\n", "def f(x):\n    return x + 1\n", "h\u00e9llo w\u00f6rld \u4f60\u597d\n"] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(iter(TEXTS), 400)


def word_level(folder, **config):
    vocab = {"[UNK]": 0, "the": 1, "cat": 2, "</s>": 3}
    slow = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    slow.pre_tokenizer = pre_tokenizers.Whitespace()
    slow.add_special_tokens([AddedToken("</s>", special=True)])
    folder.mkdir()
    slow.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_text_comes_back_byte_for_byte(tokenizer):
    for text in [*TEXTS, *sample_texts()]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_end_of_text_and_padding_are_different_ids(tokenizer):
    assert (tokenizer.eos_id, tokenizer.pad_id) == (0, 1)
    assert tokenizer.dtype == np.uint16
    assert tokenizer.encode(TEXTS[0]).dtype == np.uint16


def test_training_twice_gives_the_same_tokenizer(tokenizer):
    again = train_tokenizer(iter(TEXTS), 400)
    assert again.fingerprint == tokenizer.fingerprint
    assert train_tokenizer(iter(TEXTS), 300).fingerprint != tokenizer.fingerprint


def test_a_saved_folder_loads_here_and_in_transformers_with_the_same_ids(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for loaded in (load_tokenizer(tmp_path), load_tokenizer(tmp_path / "tokenizer.json")):
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.backend == "tiktoken"
        for text in TEXTS[:3]:
            assert loaded.encode(text).tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    assert (theirs.eos_token_id, theirs.pad_token_id) == (0, 1)
    assert len(theirs) == tokenizer.vocab_size


def test_special_tokens_in_a_text_are_text_on_both_backends(tokenizer, tmp_path):
    text = "a<|endoftext|>b<|pad|>"
    assert not {0, 1} & set(tokenizer.encode(text).tolist())
    slow = load_tokenizer(word_level(tmp_path / "words", eos_token="</s>"))
    assert slow.backend == "tokenizers"
    assert slow.eos_id not in slow.encode("the cat </s>")


def test_the_slow_path_says_why(tmp_path):
    slow = load_tokenizer(word_level(tmp_path / "words", eos_token="</s>"))
    assert "WordLevel, not BPE" in slow.reason
    assert [ids.tolist() for ids in slow.encode_documents(["the cat", "cat"])] == [[1, 2], [2]]


def test_a_million_spaces_fall_back_to_the_slow_path(tokenizer):
    text = " " * 1_200_000 + "x"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text


def test_lone_surrogates_are_replaced_on_both_paths(tokenizer):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer._encode_slowly(["a\ud800b"])[0]) == "a\ufffdb"


def test_ids_that_do_not_fit_16_bits_are_32_bits_wide():
    vocab = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"<|endoftext|>": 70_000}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    wrapped = TextTokenizer(tokenizer, eos_token="<|endoftext|>")
    assert (wrapped.vocab_size, wrapped.dtype) == (70_001, np.uint32)
    assert wrapped.pad_id == wrapped.eos_id


def test_a_tokenizer_without_end_of_text_is_refused(tmp_path):
    with pytest.raises(DataError, match='no end-of-text token.*add "eos_token"'):
        load_tokenizer(word_level(tmp_path / "words"))
    with pytest.raises(DataError, match="'<end>' is not in its vocabulary"):
        load_tokenizer(word_level(tmp_path / "other", eos_token={"content": "<end>"}))


def test_a_name_that_cannot_be_loaded_says_what_to_give_instead(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="cannot load 'no-such/tokenizer'.*give a local folder"):
        load_tokenizer("no-such/tokenizer")


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=re.escape(str(tmp_path)) + ".*cannot be read"):
        load_tokenizer(tmp_path)


def test_training_needs_text_and_room_for_the_bytes():
    with pytest.raises(DataError, match="no text to train"):
        train_tokenizer(iter([]), 400)
    with pytest.raises(DataError, match="--vocab-size: got 100; at least 258"):
        train_tokenizer(iter(TEXTS), 100)


def test_a_vocabulary_larger_than_the_models_is_refused(tokenizer):
    check_vocabulary(tokenizer, tokenizer.vocab_size)
    with pytest.raises(DataError, match=f"{tokenizer.vocab_size} ids.*vocabulary {tokenizer.vocab_size - 1}"):
        check_vocabulary(tokenizer, tokenizer.vocab_size - 1)
