"""Read tokens into a cache, piece by piece, without computing logits.

Shapes: T tokens.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext.cache import RetrievalCache
from hsokv_ray.longcontext.row import Row

_PIECE_TOKENS = 512
"""Tokens of one forward pass, about: enough for the matrix products, little for the activations."""

_LARGEST_POSITION = 2**17
"""Angles are float32: at position 10 million the score of two neighbours is off by one, here by two hundredths."""


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
        for begin, end in _pieces(alone.rows(0)[0], len(prompt_T)):
            _keep_positions_small(alone)
            _forward(model, alone, prompt_T[begin:end])
            on_tokens(done + end)
        done += len(prompt_T)
    for layer in cache.retrieval_layers:
        layer.num_columns += max(map(len, prompts))


@torch.no_grad()
def _forward(model: Any, cache: RetrievalCache, ids_T: torch.Tensor) -> None:
    rows = cache.rows(0)
    begin, expected = rows[0].position, rows[0].length + len(ids_T)
    positions = torch.arange(begin, begin + len(ids_T), device=ids_T.device)
    model.base_model(input_ids=ids_T[None], position_ids=positions[None], past_key_values=cache, use_cache=True)
    if any(row.length != expected for row in rows):
        raise ConfigError(
            "the model read the text without its cache; it must be in evaluation mode (model.eval()) and keep the "
            f"attention implementation that LongContext gave it, has {model.config._attn_implementation!r}"
        )


def _keep_positions_small(cache: RetrievalCache) -> None:
    row = cache.rows(0)[0]
    if row.position >= _LARGEST_POSITION and row.settings.positions != "native":
        for each in cache.rows(0):
            each.rebase()


def _pieces(row: Row, num_tokens: int) -> list[tuple[int, int]]:
    """Cut a prompt: inside the window as suits the machine, past it where the chunks of the row end."""
    settings = row.settings
    several = max(1, _PIECE_TOKENS // settings.chunk) * settings.chunk
    inside = 0 if row.is_long else min(num_tokens, max(0, settings.window - row.length))
    ends = [*range(several, inside, several), *([inside] if inside else [])]
    end = inside
    while end < num_tokens:
        end = min(num_tokens, end + several - (row.length + end) % settings.chunk)
        ends.append(end)
    return list(zip([0, *ends], ends, strict=False))
