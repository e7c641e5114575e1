"""Encode a text in pieces that do not wait for each other, so that many workers can share the work.

A piece is read behind the first tokens of the text and the local window before it, both read again for each piece; it
does not see what lies between. So pieces can be read anywhere in any order, at the price of reading those tokens once
more per piece, and of what retrieval would have told them. `stream` encoding has neither price and is sequential.

Shapes: K key-value heads, N tokens, D head size.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from hsokv_ray.longcontext.config import Resolved
from hsokv_ray.longcontext.row import Row
from hsokv_ray.longcontext.rows import RowMaker


@dataclass(frozen=True)
class Piece:
    """Tokens `begin` to `end` of a text, and what is read before them."""

    begin: int
    end: int
    context: np.ndarray
    """First and preceding tokens, read again."""
    token_ids: np.ndarray


@dataclass(frozen=True)
class PieceKV:
    """Keys, without rotation, and values [K, N, D] of a piece in each layer."""

    begin: int
    keys: list[torch.Tensor]
    values: list[torch.Tensor]


def pieces(token_ids: np.ndarray, settings: Resolved) -> Iterator[Piece]:
    """Cut the text `token_ids` [N]; the first piece may fill the window, each later one leaves room for its context."""
    size = settings.piece
    # with as much context as a later piece has; all of the window where the text fits it
    first = settings.window if len(token_ids) <= settings.window else settings.sink + settings.local + size
    yield Piece(0, min(first, len(token_ids)), token_ids[:0], token_ids[:first])
    for begin in range(first, len(token_ids), size):
        before = token_ids[max(settings.sink, begin - settings.local) : begin]
        end = min(begin + size, len(token_ids))
        yield Piece(begin, end, np.concatenate([token_ids[: settings.sink], before]), token_ids[begin:end])


def encode_piece(model: Any, make: RowMaker, piece: Piece) -> PieceKV:
    """Read one piece; it fits the window, so attention is the plain model's."""
    ids = torch.from_numpy(np.concatenate([piece.context, piece.token_ids]))[None].to(model.device)
    with torch.no_grad():
        cache = DynamicCache()  # without the configuration: a sliding layer would forget the first tokens
        model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
    skip = len(piece.context)
    keys, values = [], []
    for number, layer in enumerate(cast("list[DynamicLayer]", cache.layers)):
        assert layer.keys is not None
        assert layer.values is not None
        keys.append(make.rope(number).turn_back(layer.keys[0, :, skip:], skip))
        values.append(layer.values[0, :, skip:].contiguous())
    return PieceKV(piece.begin, keys, values)


def assemble(rows: list[Row], encoded: Iterable[PieceKV], on_tokens: Callable[[int], Any]) -> list[Row]:
    """Put pieces, in the order of the text, behind the rows' tokens."""
    for piece in encoded:
        for row, keys, values in zip(rows, piece.keys, piece.values, strict=True):
            row.take(keys, values)
        on_tokens(piece.begin + piece.keys[0].shape[1])
    return rows


def encode_parallel(
    model: Any, make: RowMaker, rows: list[Row], token_ids: np.ndarray, on_tokens: Callable[[int], Any]
) -> list[Row]:
    """Read all pieces of a text in this process, and return its rows."""
    encoded = (encode_piece(model, make, piece) for piece in pieces(token_ids, make.settings))
    return assemble(rows, encoded, on_tokens)
