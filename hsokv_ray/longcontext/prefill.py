"""Read tokens into a cache, piece by piece, without computing logits.

Shapes: T tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext.cache import RetrievalCache

_PIECE_TOKENS = 512
"""Tokens of one forward pass, about: enough for the matrix products, little for the activations."""


def feed(
    model: Any,
    cache: RetrievalCache,
    prompts: Sequence[torch.Tensor],
    on_tokens: Callable[[int], Any] = lambda num_tokens: None,
) -> None:
    """Read a prompt [T] into each row of `cache`, one row after the other.

    A row is then what it would be alone: padding, and chunks that end elsewhere, never enter. Afterwards the cache
    counts the columns of the longest prompt, as if the others had been padded on the left.

    Args:
        on_tokens: called with the number of tokens read so far.
    """
    if len(prompts) != len(cache.retrieval_layers[0].rows):
        raise ConfigError(
            f"{len(prompts)} prompts for a cache of {len(cache.retrieval_layers[0].rows)} rows; give one for each"
        )
    done = 0
    for row, prompt_T in enumerate(prompts):
        alone = cache.alone(row)
        for begin, end in _pieces(alone, len(prompt_T)):
            _forward(model, alone, prompt_T[begin:end])
            on_tokens(done + end)
        done += len(prompt_T)
    for layer in cache.retrieval_layers:
        layer.num_columns += max(map(len, prompts))


@torch.no_grad()
def _forward(model: Any, cache: RetrievalCache, ids_T: torch.Tensor) -> None:
    begin = cache.rows(0)[0].position
    positions = torch.arange(begin, begin + len(ids_T), device=ids_T.device)
    model.base_model(input_ids=ids_T[None], position_ids=positions[None], past_key_values=cache, use_cache=True)


def _pieces(cache: RetrievalCache, num_tokens: int) -> list[tuple[int, int]]:
    """Cut a prompt: what fits the window at once, then pieces that end where a chunk of the row does."""
    row = cache.rows(0)[0]
    settings, length = row.settings, row.length
    if length + num_tokens <= settings.window:
        return [(0, num_tokens)]
    first = 0 if row.is_long else max(0, settings.window - length)
    several = max(1, _PIECE_TOKENS // settings.chunk) * settings.chunk
    ends = [first] if first else []
    while first < num_tokens:
        first = min(num_tokens, first + several - (length + first) % settings.chunk)
        ends.append(first)
    return list(zip([0, *ends], ends, strict=False))
