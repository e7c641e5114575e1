import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from hsokv_ray.data.fast_bpe import FastBPE, sample_texts
from hsokv_ray.errors import DataError

# The word patterns published with GPT-2, Llama 3 and Qwen 2.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CORPUS = [
    *sample_texts(),
    "the cat's house isn't the dog's house; 2026 was 1,234 days ago\n\n  indeed   it was\t\n" * 5,
]


def train(splitter, **extra):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        **extra,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def split_by(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


SPLITTERS = {
    "byte level": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    "gpt2": split_by(GPT2),
    "llama3": split_by(LLAMA3),
    "qwen2": split_by(QWEN2),
}
TOKENIZERS = {name: train(splitter) for name, splitter in SPLITTERS.items()}
TWINS = {name: FastBPE(tokenizer) for name, tokenizer in TOKENIZERS.items()}


@pytest.mark.parametrize("name", SPLITTERS)
@settings(deadline=None)
@given(text=st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\t'sS1.\u00a0\u2028e"))))
def test_the_twin_gives_the_ids_of_tokenizers_on_any_text(name, text):
    expected = TOKENIZERS[name].encode(text, add_special_tokens=False).ids
    assert TWINS[name].encode(text).tolist() == expected


@pytest.mark.parametrize("name", ["byte level", "llama3"])
def test_the_twin_gives_the_ids_of_tokenizers_on_every_character(name):
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for start in range(0, len(characters), 50_000):
        text = " a".join(characters[start : start + 50_000 : 11])
        assert TWINS[name].encode(text).tolist() == TOKENIZERS[name].encode(text, add_special_tokens=False).ids


def test_special_tokens_in_a_text_are_text():
    twin = TWINS["byte level"]
    assert twin.encode("a<|endoftext|>b").tolist().count(0) == 0
    assert len(twin.encode("<|endoftext|>")) > 1


def refusal(tokenizer):
    with pytest.raises(DataError) as caught:
        FastBPE(tokenizer)
    return str(caught.value)


def test_what_cannot_be_expressed_is_refused_with_the_reason():
    lower = train(SPLITTERS["byte level"])
    lower.normalizer = normalizers.Lowercase()
    assert "normalised (Lowercase)" in refusal(lower)
    assert "a space is put before" in refusal(train(pre_tokenizers.ByteLevel(add_prefix_space=True)))
    assert "split by Whitespace" in refusal(train(pre_tokenizers.Whitespace()))
    added = train(SPLITTERS["byte level"])
    added.add_tokens([AddedToken("    ", special=False)])
    assert "not special" in refusal(added)
    assert "WordLevel, not BPE" in refusal(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))


def test_a_vocabulary_without_all_bytes_is_refused():
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = SPLITTERS["byte level"]
    assert "254 of 256 bytes" in refusal(tokenizer)


ALPHABET = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def by_hand(merges, splitter):
    vocab = ALPHABET | {left + right: 256 + i for i, (left, right) in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = splitter
    return tokenizer


def test_a_token_that_its_own_merges_do_not_give_is_refused():
    # "abc" is only reached from "a" + "bc", but "ab" is merged first, so the word "abc" is never one token.
    tokenizer = by_hand([("a", "b"), ("b", "c"), ("a", "bc")], SPLITTERS["byte level"])
    assert tokenizer.encode("abc").ids == [256, ALPHABET["c"]]
    assert "'abc' is not what its own merges give" in refusal(tokenizer)


def test_a_pattern_that_means_something_else_to_the_other_engine_is_refused():
    # In Oniguruma $ is also the end of a line, in the Rust engine the end of the text only.
    tokenizer = by_hand([("t", "h"), ("th", "e")], split_by(r"[a-z]+$|[a-z]|[^a-z]+"))
    assert tokenizer.encode("the\nthe").ids == [257, ALPHABET["\u010a"], 257]
    assert "self-check" in refusal(tokenizer)


def test_a_pattern_the_other_engine_does_not_take_is_refused():
    # Blocks of Unicode are properties in Oniguruma only.
    assert "does not take the word pattern" in refusal(train(split_by(r"\p{In_Basic_Latin}+|[^a]")))
