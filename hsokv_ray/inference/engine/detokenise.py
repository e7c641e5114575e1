"""Text as its tokens come, in whole characters."""

from collections.abc import Callable, Sequence
from typing import Any

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What an unfinished character decodes to."""

_MOST_HELD = 16
"""Tokens held until a character is complete; past these, bytes that are no text are taken for what they are."""

_CHARACTER_TOKENS = 4
"""Tokens of an unfinished character, at most: its bytes."""

Decode = Callable[[Sequence[int]], str]


def decoder_of(tokenizer: Any) -> Decode:
    """Return what turns token ids into text without special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return lambda ids: tokenizer.decode(ids, skip_special_tokens=True)
    return lambda ids: backend.decode(list(ids), skip_special_tokens=True)  # a tenth of the time


class Detokenizer:
    """Decodes one sequence step by step; the work of a step does not grow with the sequence.

    The text of a token may depend on the one before it (a space is dropped at the beginning), so the newest tokens are
    decoded together with those whose text was given last, and that text is taken off.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._given: list[int] = []
        self._held: list[int] = []
        self._num_given = 0
        """Characters of the tokens above whose text was given."""

    def step(self, token: int) -> str:
        """Return the text that `token` completes; "" where a character is unfinished."""
        self._held.append(token)
        text = self._text()
        if text.endswith(_REPLACEMENT):
            return "" if len(self._held) < _MOST_HELD else self._give_broken(text)
        if text:
            return self._give(text)
        if len(self._held) >= _MOST_HELD:  # special tokens, which have no text
            self._held = []
        return ""

    def end(self) -> str:
        """Return what is held; unfinished characters become replacement characters."""
        return self._give(self._text()) if self._held else ""

    def _text(self) -> str:
        return self._decode(self._given + self._held)[self._num_given :]

    def _give(self, text: str) -> str:
        self._given, self._held = self._held, []
        self._num_given = len(self._decode(self._given))
        return text

    def _give_broken(self, text: str) -> str:
        """Give all but the last character, which may still be completed."""
        self._given, self._held = [], self._held[-_CHARACTER_TOKENS:]
        self._num_given = len(self._decode(self._held)) - 1
        return text[:-1]
