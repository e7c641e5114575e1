"""From what users give (text, ids, or an iterable of either) to token ids, with the limit on their number."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from hsokv_ray.errors import ConfigError, DataError
from hsokv_ray.longcontext.config import LongContextConfig

Source = str | Iterable[int] | Iterable[str] | np.ndarray | torch.Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tokens:
    """Token ids of an input."""

    ids: np.ndarray
    """[N] int64."""
    num_truncated: int
    """Tokens cut off at the end."""


class Tokenizing:
    """Turns inputs into ids.

    Args:
        tokenizer: a transformers tokenizer; None where only ids will be given.
        config: says how long an input may be.
        vocab_size: token ids are below it.
    """

    def __init__(self, tokenizer: Any, config: LongContextConfig, vocab_size: int) -> None:
        self.tokenizer, self._config, self._vocab_size = tokenizer, config, vocab_size

    def ids(self, source: Source, *, begins_text: bool) -> list[int]:
        """Return the ids of `source`; chunks are joined as they are.

        Args:
            begins_text: whether nothing stands before it: only then the tokenizer's special tokens are added.

        Raises `DataError`: not text or ids of one sequence, or ids that the model does not have.
        """
        if isinstance(source, str):
            return self._of_text(source, begins_text)
        if isinstance(source, np.ndarray | torch.Tensor):
            return self._checked([int(token) for token in _one_row(source)])
        if isinstance(source, Mapping):
            raise DataError(f"the input is a {type(source).__name__}; give its ids alone, such as its ['input_ids']")
        chunks = list(source)
        if chunks and all(isinstance(chunk, str) for chunk in chunks):  # words do not end where chunks do
            return self._of_text("".join(cast("list[str]", chunks)), begins_text)
        ids: list[int] = []
        for chunk in chunks:
            if isinstance(chunk, int | np.integer):
                ids.append(int(chunk))
            else:
                ids.extend(self.ids(chunk, begins_text=begins_text and not ids))
        return self._checked(ids)

    def _checked(self, ids: list[int]) -> list[int]:
        if ids and not (min(ids) >= 0 and max(ids) < self._vocab_size):
            wrong = next(token for token in ids if not 0 <= token < self._vocab_size)
            raise DataError(f"token id {wrong} is not the model's, which are 0 to {self._vocab_size - 1}")
        return ids

    def document(self, source: Source, *, before: int = 0) -> Tokens:
        """Return the ids of a text to encode, behind `before` tokens there are already.

        Raises:
            ConfigError: longer than `max_source_length`, and `on_too_long` is `error`.
            DataError: nothing in it.
        """
        ids = self.ids(source, begins_text=before == 0)
        if not ids:
            raise DataError("the input is empty; give text, token ids, or an iterable of chunks of either")
        limit = self._config.max_source_length
        too_many = max(0, before + len(ids) - limit) if limit else 0
        if too_many and self._config.on_too_long == "error":
            raise ConfigError(
                f"the input has {before + len(ids):,} tokens, max_source_length allows {limit:,}; raise it, shorten "
                "the input, or set on_too_long: truncate"
            )
        if too_many:
            logger.warning("the input has %d tokens; the last %d are cut off", before + len(ids), too_many)
        return Tokens(np.array(ids[: len(ids) - too_many], dtype=np.int64), too_many)

    def text(self, token_ids: list[int]) -> str:
        """Return the text of `token_ids` without special tokens; "" without a tokenizer."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True) if self.tokenizer is not None else ""

    def _of_text(self, text: str, begins_text: bool) -> list[int]:
        if not text:
            return []
        if self.tokenizer is None:
            raise ConfigError("text was given, and no tokenizer: give LongContext the model's tokenizer, or token ids")
        return self.tokenizer(text, add_special_tokens=begins_text, verbose=False)["input_ids"]


def _one_row(ids: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    """Return ids [N] of an array that may have leading dimensions of 1."""
    if ids.ndim != 1 and ids.shape[-1] != np.prod(ids.shape):
        raise DataError(f"the input is an array {tuple(ids.shape)}; give one sequence, or a list of them as prompts")
    return ids.reshape(-1)
