"""From what users give (text, ids, or an iterable of either) to token ids, with the limit on their number."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

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
    """

    def __init__(self, tokenizer: Any, config: LongContextConfig) -> None:
        self.tokenizer, self._config = tokenizer, config

    def ids(self, source: Source, *, begins_text: bool) -> list[int]:
        """Return the ids of `source`.

        Args:
            begins_text: whether nothing stands before it: only then the tokenizer's special tokens are added.
        """
        if isinstance(source, str):
            return self._of_text(source, begins_text)
        if isinstance(source, np.ndarray | torch.Tensor):
            return [int(token) for token in np.asarray(source).reshape(-1)]
        ids: list[int] = []
        for chunk in source:
            if isinstance(chunk, int | np.integer):
                ids.append(int(chunk))
            else:
                ids.extend(self.ids(chunk, begins_text=begins_text and not ids))
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
