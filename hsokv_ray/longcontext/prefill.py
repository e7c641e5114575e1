"""Read tokens into a cache, piece by piece, without computing logits.

Shapes: T tokens, N tokens of several prompts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext.cache import RetrievalCache
from hsokv_ray.longcontext.side_by_side import Sequenced, SideBySideCache

PIECE_TOKENS = 512
"""Tokens of one forward pass, about: enough for the matrix products, little for the activations."""

_LARGEST_POSITION = 2**17
"""Angles are float32: at position 10 million the score of two neighbours is off by one, here by two hundredths."""


class Reading:
    """A prompt on its way into a cache of one row; between two pieces the model may do something else."""

    def __init__(self, model: Any, cache: RetrievalCache, prompt_T: torch.Tensor) -> None:
        self._model, self._cache, self._prompt_T = model, cache, prompt_T
        self.done = 0
        """Tokens read so far."""

    @property
    def num_left(self) -> int:
        """Tokens still to read."""
        return len(self._prompt_T) - self.done

    @property
    def cache(self) -> RetrievalCache:
        """Where it is read into."""
        return self._cache

    def next_piece(self, piece_tokens: int | None = None, *, stop_at: int | None = None) -> torch.Tensor:
        """Return the ids of the next piece, which is not read yet.

        Args:
            piece_tokens: tokens of the piece, about; None: as suits the machine. Past the window it ends where a chunk
                of the row does, so that what is kept does not depend on how the prompt was cut.
            stop_at: token of the prompt before which the piece ends; past the window, the end of a chunk.
        """
        end = self._next_end(piece_tokens or PIECE_TOKENS)
        return self._prompt_T[self.done : end if stop_at is None else min(end, stop_at)]

    def read(self, piece_tokens: int | None = None, *, stop_at: int | None = None) -> torch.Tensor:
        """Read the next piece, as `next_piece` cuts it; return its ids."""
        ids_T = self.next_piece(piece_tokens, stop_at=stop_at)
        _keep_positions_small(self._cache)
        _forward(self._model, self._cache, ids_T)
        self.done += len(ids_T)
        return ids_T

    def _next_end(self, piece_tokens: int) -> int:
        row = self._cache.rows(0)[0]
        chunk, total = row.settings.chunk, len(self._prompt_T)
        several = max(1, piece_tokens // chunk) * chunk
        inside = 0 if row.is_long else max(0, row.settings.window - row.length)
        if inside:
            return min(total, self.done + min(inside, several))
        return min(total, self.done + several - row.length % chunk)


@torch.no_grad()
def read_side_by_side(model: Any, pieces: Sequence[tuple[Reading, torch.Tensor]]) -> dict[int, Exception]:
    """Read the next piece of each reading in one forward pass; return number of the reading -> what it raised.

    Short prompts are too little for the matrix products one by one. Raises `ConfigError` where the model has lost its
    retrieval attention.
    """
    sequences, positions = [], []
    for reading, ids_T in pieces:
        _keep_positions_small(reading.cache)
        rows = reading.cache.rows(0)
        sequences.append(Sequenced(rows, reading.cache.watch, len(ids_T)))
        positions.append(torch.arange(rows[0].position, rows[0].position + len(ids_T), device=ids_T.device))
    cache = SideBySideCache(sequences)
    ids_1N = torch.cat([ids_T for _, ids_T in pieces])[None]
    model.base_model(input_ids=ids_1N, position_ids=torch.cat(positions)[None], past_key_values=cache, use_cache=True)
    cache.check()
    for reading, ids_T in pieces:
        reading.done += len(ids_T)
    return cache.errors


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
        reading = Reading(model, cache.alone(row), prompt_T)
        while reading.num_left:
            reading.read()
            on_tokens(done + reading.done)
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
