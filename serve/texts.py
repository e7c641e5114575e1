"""From texts to token ids in a replica, and from token ranges back to characters."""

import threading
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np

from hsokv_ray.errors import ConfigError
from hsokv_ray.inference.engine.requests import Sampling
from serve.calls import GenerateCall
from serve.chat import PLAIN_STOP, has_template, render

_KEPT_BYTES = 256 * 2**20
_SLICE = 2**20
"""Characters that are counted at once; a tokenizer needs some hundred bytes for each."""
_SLACK = 1.01
"""Cutting a text into slices for counting makes a few tokens more of it."""


class Texts:
    """Uses one tokenizer from many threads.

    Args:
        tokenizer: a transformers tokenizer.
        vocab_size: token ids are below it.
        max_tokens: of a text that is tokenised. A longer one is refused before its ids take memory.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, max_tokens: int) -> None:
        self._tokenizer, self._vocab_size, self.max_tokens = tokenizer, vocab_size, max_tokens
        self._max_characters = max_tokens * max(map(len, tokenizer.get_vocab()), default=1)
        self._kept = _KeptIds(_KEPT_BYTES)

    def prompt(self, call: GenerateCall) -> tuple[list[int], Sampling]:
        """Return the ids of the prompt, and the sampling, which a chat without a template ends at the user's turn.

        Raises `ConfigError`: the template refuses the messages, or an id is not the model's.
        """
        begins = not call.documents
        if call.messages is not None:
            ids = self._chat_ids(call, begins)
            stops = () if has_template(self._tokenizer) else (PLAIN_STOP,)
            return ids, replace(call.sampling, stop=(*call.sampling.stop, *stops))
        if isinstance(call.prompt, tuple):
            return self._checked(list(call.prompt)), call.sampling
        return self._ids(call.prompt, begins) or [self._first_token()], call.sampling

    def piece(self, sha256: str, text: str | None, *, begins: bool) -> np.ndarray | None:
        """Return the ids [N] of a piece of a document; None where `text` is None and they are not known.

        Raises `ConfigError`: it has more than `max_tokens`.
        """
        known = self._kept.get((sha256, begins))
        if known is None and text is not None:
            known = np.array(self._ids(text, begins), dtype=np.int64)
            self._kept.put((sha256, begins), known)
        return known

    def check_characters(self, num_characters: int) -> None:
        """Raise `ConfigError` where so many characters are more than `max_tokens` of the longest token."""
        if num_characters > self._max_characters:
            raise ConfigError(
                f"the text has {num_characters:,} characters, the server takes {self.max_tokens:,} tokens, which are "
                f"{self._max_characters:,} characters at most; split it, or raise engine.max_input_tokens"
            )

    def count(self, text: str) -> int:
        """Return the number of tokens of `text`, special ones included. Raises `ConfigError` as `piece` does."""
        return len(self._ids(text, begins=True))

    def characters(self, text: str, begin: int, end: int, *, begins: bool) -> tuple[int, int]:
        """Return the range of characters of `text` that its tokens `begin` to `end` stand for."""
        encoding = self._tokenizer(text, add_special_tokens=begins, return_offsets_mapping=True, verbose=False)
        spans = [(first, last) for first, last in encoding["offset_mapping"][begin:end] if last > first]
        if not spans:
            return 0, 0
        return min(first for first, _ in spans), max(last for _, last in spans)

    def text(self, token_ids: list[int]) -> str:
        """Return the text of `token_ids`, special tokens included."""
        return self._tokenizer.decode(token_ids)

    def _chat_ids(self, call: GenerateCall, begins: bool) -> list[int]:
        assert call.messages is not None
        text = render(self._tokenizer, call.messages)
        if not has_template(self._tokenizer):
            return self._ids(text, begins)
        bos = self._tokenizer.bos_token
        if not begins and bos and text.startswith(bos):  # the documents begin with it
            text = text.removeprefix(bos)
        return self._ids(text, begins=False) or [self._first_token()]

    def _ids(self, text: str, begins: bool) -> list[int]:
        self._check(text)
        return self._tokenizer(text, add_special_tokens=begins, verbose=False)["input_ids"]

    def _check(self, text: str) -> None:
        """Raise `ConfigError` for a text of more than `max_tokens`, with the memory of one slice besides theirs."""
        self.check_characters(len(text))
        if len(text) <= max(self.max_tokens, _SLICE):
            return
        count = 0
        for begin in range(0, len(text), _SLICE):
            count += len(
                self._tokenizer(text[begin : begin + _SLICE], add_special_tokens=False, verbose=False).input_ids
            )
            if count > self.max_tokens * _SLACK:
                raise ConfigError(
                    f"the text of {len(text):,} characters has more than {self.max_tokens:,} tokens, which the server "
                    "takes; split it, or raise engine.max_input_tokens"
                )

    def _checked(self, ids: list[int]) -> list[int]:
        wrong = next((token for token in ids if token >= self._vocab_size), None)
        if wrong is not None:
            raise ConfigError(f"token id {wrong} is not the model's, which are 0 to {self._vocab_size - 1}")
        return ids

    def _first_token(self) -> int:
        for token in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id):
            if token is not None:
                return token
        raise ConfigError("the prompt is empty, and the tokenizer has no token that begins a text; give a prompt")


class _KeptIds:
    """The ids of texts that were tokenised lately, up to some bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._nbytes = most_bytes, 0
        self._lock = threading.Lock()
        self._ids: OrderedDict[tuple[str, bool], np.ndarray] = OrderedDict()

    def get(self, key: tuple[str, bool]) -> np.ndarray | None:
        with self._lock:
            if key in self._ids:
                self._ids.move_to_end(key)
            return self._ids.get(key)

    def put(self, key: tuple[str, bool], ids: np.ndarray) -> None:
        with self._lock:
            self._nbytes += ids.nbytes - (self._ids[key].nbytes if key in self._ids else 0)
            self._ids[key] = ids
            while self._nbytes > self._most and len(self._ids) > 1:
                self._nbytes -= self._ids.popitem(last=False)[1].nbytes
