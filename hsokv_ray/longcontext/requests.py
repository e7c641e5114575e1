"""What a request hands to transformers' `generate`, whatever kind of model reads."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hsokv_ray.longcontext.report import Stopwatch

OnTokens = Callable[[int], Any]
"""Called with the number of tokens read so far."""


@dataclass(frozen=True)
class Request:
    """A prompt on a memory, ready to generate."""

    arguments: dict[str, Any]
    """Of `generate`: what carries prompts, padding and memory."""
    watch: Stopwatch
    num_given: int
    """Tokens at the beginning of each output row that were not generated."""
    num_memory_tokens: int
    num_prompt_tokens: int
    memory_bytes: int
    index_bytes: int
