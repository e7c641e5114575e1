"""The fast twin of a byte-level BPE: the same merges run by `tiktoken`, proven to give the same ids.

`tokenizers` keeps one dictionary of merges; `tiktoken` merges by the rank of the joined bytes. The two agree when every
merge gives a new token, when looking a whole word up equals merging it, and when the word-splitting pattern means the
same in both regex engines. The first two are checked on the whole vocabulary, the third on sample text.
"""

import json
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import tiktoken
from numpy.typing import DTypeLike
from tokenizers import Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel

from hsokv_ray.errors import DataError

_GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
_SPACES = r"|\s+(?!\S)|\s+"


class FastBPE:
    """`tiktoken` running the merges of one `tokenizers` BPE; ids are those of the original.

    Raises `DataError` with the reason when the original cannot be expressed or the ids differ on the self-check.
    """

    def __init__(self, tokenizer: Tokenizer, *, dtype: DTypeLike = np.uint32) -> None:
        layout = json.loads(tokenizer.to_str())
        pattern = _pattern(layout)
        tokens = _tokens_by_rank(layout)
        self._encoding = _encoding(_grouped(pattern), tokens)
        self._ids = np.asarray(list(tokens.values()), dtype=dtype)
        self._check_whole_words(layout)
        self._check_sample(tokenizer)

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of `text`, 1-D of `dtype`. Raises `ValueError` where the regex gives up (1M spaces)."""
        return self._ids[self._encoding.encode_to_numpy(text, disallowed_special=())]

    def _check_whole_words(self, layout: dict[str, Any]) -> None:
        if layout["model"]["ignore_merges"]:
            return
        model = models.BPE(vocab=layout["model"]["vocab"], merges=[tuple(pair) for pair in layout["model"]["merges"]])
        special = {token["content"] for token in layout["added_tokens"]}
        for token, token_id in layout["model"]["vocab"].items():
            if token not in special and [piece.id for piece in model.tokenize(token)] != [token_id]:
                raise DataError(f"token {token!r} is not what its own merges give")

    def _check_sample(self, tokenizer: Tokenizer) -> None:
        for text in sample_texts():
            expected = tokenizer.encode(text, add_special_tokens=False).ids
            if self.encode(text).tolist() != expected:
                raise DataError(f"ids differ on the self-check, in {text[:40]!r}")


def sample_texts() -> list[str]:
    """Return the texts of the self-check: prose, code, white space, contractions, specials as text, unicode, bytes."""
    rng = random.Random(0)
    letters = [chr(c) for c in (*range(1, 0x3100), *range(0xA640, 0xAB70), *range(0xFE00, 0x10000), 0x1F600, 0x2F800)]
    spaces = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\x85", "\x1c", "\v", " \n ", "x", "1"]
    return [
        "It's the cat's; they'll say I'VE 42,000 reasons, don't they?  Yes.\n\n\tNo.   ",
        "def f(x):\n    if x  >= 10:\n\t\treturn {'a': [1, 2.5e-3]}  # it's ok\n\n\n",
        "the end of a line\nthe house in the\r\n and that was the\nthe end\n\n  of the",
        "<|endoftext|> <|pad|> a<|endoftext|>b </s> [PAD] <unk>",
        "".join(letters),
        " ".join(letters),
        "".join(rng.choice(spaces) for _ in range(2000)),
        "".join(chr(rng.randrange(256)) for _ in range(2000)),
        bytes(rng.randrange(256) for _ in range(4000)).decode("utf-8", errors="replace"),
        " ".join("".join(rng.choices("abcdefgh'1-_\u00e9\u4e2d", k=rng.randrange(1, 30))) for _ in range(400)),
    ]


def _pattern(layout: dict[str, Any]) -> str:
    model = layout["model"]
    if model["type"] != "BPE":
        raise DataError(f"the model is {model['type']}, not BPE")
    for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            raise DataError(f"the model uses {key}")
    if layout["normalizer"] is not None:
        raise DataError(f"the text is normalised ({layout['normalizer']['type']})")
    for token in layout["added_tokens"]:
        if not token["special"]:
            raise DataError(f"{token['content']!r} is an added token that is not special")
    return _splitting_pattern(layout["pre_tokenizer"] or {"type": "nothing"})


def _splitting_pattern(splitter: dict[str, Any]) -> str:
    steps = splitter["pretokenizers"] if splitter["type"] == "Sequence" else [splitter]
    if any(step["type"] == "ByteLevel" and step["add_prefix_space"] for step in steps):
        raise DataError("a space is put before the text")
    match steps:
        case [{"type": "ByteLevel", "use_regex": True}]:
            return _GPT2_PATTERN
        case [{"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": regex}}, byte_level]:
            if byte_level["type"] == "ByteLevel" and not byte_level["use_regex"]:
                return regex
    raise DataError(f"words are split by {' + '.join(step['type'] for step in steps)}, not by one byte-level pattern")


def _encoding(pattern: str, tokens: Iterable[bytes]) -> tiktoken.Encoding:
    ranks = {token: rank for rank, token in enumerate(tokens)}
    # Never encoded. Without one, tiktoken tries an empty pattern at every character: half the speed.
    special = {"<|endoftext|>": len(ranks)}
    try:
        return tiktoken.Encoding("hsokv_twin", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    except ValueError as error:
        raise DataError(f"tiktoken does not take the word pattern ({' '.join(str(error).split())})") from None


def _grouped(pattern: str) -> str:
    """Put what comes before the white space in one group: the same matches, but one pass of the linear-time engine.

    The closing `\\s+` only ever meets a single space, as longer runs match the alternative before it.
    """
    head, spaces, tail = pattern.rpartition(_SPACES)
    return rf"(?:{head})|\s+(?!\S)|\s" if spaces and not tail else pattern


def _tokens_by_rank(layout: dict[str, Any]) -> dict[bytes, int]:
    """Map the bytes of each mergeable token to its id, in the order in which merges apply."""
    vocab = layout["model"]["vocab"]
    to_byte = _alphabet()
    missing = to_byte.keys() - vocab.keys()
    if missing:
        raise DataError(f"{len(missing)} of 256 bytes are not in the vocabulary")
    ranked = list(to_byte)
    for left, right in layout["model"]["merges"]:
        ranked.append(left + right)
    if len(set(ranked)) != len(ranked):
        raise DataError("two merges give the same token")
    return {bytes(to_byte[char] for char in token): vocab[token] for token in ranked}


def _alphabet() -> dict[str, int]:
    """Map the 256 characters of the byte-level alphabet to their bytes."""
    printable = [byte for byte in range(256) if chr(byte) in ByteLevel.alphabet()]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}
