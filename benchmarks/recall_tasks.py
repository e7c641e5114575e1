"""Associative recall over documents of any length: `passkey` and `multi_key`, in ids of a small vocabulary.

A document is filler words with entries scattered over it. An entry is a key and the symbols that belong to it; a key
stands once in a document. `passkey` hides one long entry, under the key PASS, among the entries of other keys and asks
for it; `multi_key` asks for one of the many. The document alone is the memory; the question is the prompt; the answer
is read off greedily, token for token.

Use: `recall = TASKS["multi_key"](8192, 3, np.random.default_rng(0))`; a document that takes long to encode may be asked
several times: `document = make_document(8192, rng)`, `recall = document.ask(entry_of_decile(8192, 3, rng))`.

Shapes: N tokens, E entries, S symbols an entry can have.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hsokv_ray.errors import ConfigError

BOS, ASK, PASS, EOS = 0, 1, 2, 3
SYMBOLS = range(4, 68)
"""What values and passkeys are made of; some stand loose in the filler too."""
FILLER = range(68, 256)
KEYS = range(256, 4352)
VOCAB_SIZE = KEYS.stop

PASSKEY_SYMBOLS = 5
VALUE_SYMBOLS = 2
NUM_DECILES = 10
CELL_TOKENS = 32
"""One entry stands in every so many tokens, more where a document is so long that the keys would not do."""
MIN_CELL_TOKENS = 1 + PASSKEY_SYMBOLS
LOOSE_SYMBOLS = 0.02
"""Share of the filler that is symbols without a key."""


class Recall(NamedTuple):
    """One question about one document; int64 ids of one dimension."""

    document_ids: np.ndarray
    question_ids: np.ndarray
    answer_ids: np.ndarray


class Document(NamedTuple):
    """Ids [N]; of every entry its key [E], first position [E], number of symbols [E] and symbols [E, S]."""

    ids_N: np.ndarray
    keys_E: np.ndarray
    starts_E: np.ndarray
    sizes_E: np.ndarray
    symbols_ES: np.ndarray

    def ask(self, entry: int) -> Recall:
        """Return the question for `entry`."""
        answer = self.symbols_ES[entry, : self.sizes_E[entry]]
        return Recall(self.ids_N, np.array([ASK, self.keys_E[entry]]), answer)


def passkey(length: int, decile: int, rng: np.random.Generator) -> Recall:
    """Return a document of `length` tokens with a passkey in its `decile` (0 to 9), and the question for it.

    Raises `ConfigError`: the document is too short for ten deciles, or there is no such decile.
    """
    entry = entry_of_decile(length, decile, rng)
    return make_document(length, rng, passkey_entry=entry).ask(entry)


def multi_key(length: int, decile: int, rng: np.random.Generator) -> Recall:
    """Return a document of `length` tokens full of entries, and the question for one in its `decile` (0 to 9).

    Raises `ConfigError`: the document is too short for ten deciles, or there is no such decile.
    """
    entry = entry_of_decile(length, decile, rng)
    return make_document(length, rng).ask(entry)


TASKS: dict[str, Callable[[int, int, np.random.Generator], Recall]] = {"passkey": passkey, "multi_key": multi_key}


def num_entries(length: int, cell_tokens: int = CELL_TOKENS) -> int:
    """Return how many entries a document of `length` tokens holds: one a cell, ten at least.

    Raises `ConfigError`: too short for ten.
    """
    shortest = 1 + NUM_DECILES * MIN_CELL_TOKENS
    if length < shortest:
        raise ConfigError(f"a document of {length} tokens has no ten deciles with an entry; ask for {shortest} or more")
    return max(NUM_DECILES, min((length - 1) // max(cell_tokens, MIN_CELL_TOKENS), len(KEYS)))


def make_document(
    length: int, rng: np.random.Generator, *, cell_tokens: int = CELL_TOKENS, passkey_entry: int | None = None
) -> Document:
    """Return a document of `length` tokens, with one entry in every `cell_tokens`.

    `passkey_entry` has the key PASS and 5 symbols in place of 2. Raises `ConfigError` as `num_entries` does.
    """
    num = num_entries(length, cell_tokens)
    width = (length - 1) // num
    keys_E = rng.permutation(len(KEYS))[:num] + KEYS.start
    sizes_E = np.full(num, VALUE_SYMBOLS)
    if passkey_entry is not None:
        keys_E[passkey_entry], sizes_E[passkey_entry] = PASS, PASSKEY_SYMBOLS
    starts_E = 1 + np.arange(num) * width + rng.integers(0, width - sizes_E)
    # no symbol twice in an entry: (key, symbol) then says which symbol comes next
    symbols_ES = rng.random((num, len(SYMBOLS))).argsort(axis=1)[:, :PASSKEY_SYMBOLS] + SYMBOLS.start
    ids_N = _filler(length, rng)
    ids_N[0] = BOS
    ids_N[starts_E] = keys_E
    for offset in range(PASSKEY_SYMBOLS):
        held = sizes_E > offset
        ids_N[starts_E[held] + 1 + offset] = symbols_ES[held, offset]
    return Document(ids_N, keys_E, starts_E, sizes_E, symbols_ES)


def entry_of_decile(length: int, decile: int, rng: np.random.Generator) -> int:
    """Return the number of an entry in a decile (0 to 9) of `make_document(length, ...)`, any of them alike.

    Raises `ConfigError` as the tasks do.
    """
    if not 0 <= decile < NUM_DECILES:
        raise ConfigError(f"decile {decile}: there are 0 to {NUM_DECILES - 1}; give one of them")
    num = num_entries(length)
    return int((decile + rng.random()) / NUM_DECILES * num)


def _filler(length: int, rng: np.random.Generator) -> np.ndarray:
    """Return [length] words of falling frequency (Zipf, from rank 5 on), some of them loose symbols."""
    shares = 1 / np.arange(5, 5 + len(FILLER))
    words = rng.choice(len(FILLER), size=length, p=shares / shares.sum()) + FILLER.start
    loose = rng.integers(SYMBOLS.start, SYMBOLS.stop, size=length)
    return np.where(rng.random(length) < LOOSE_SYMBOLS, loose, words)
