"""Spread `parallel` encoding over the workers of a Ray cluster with Ray Data.

with LongContext(model, tokenizer, LongContextConfig(enabled=True, encoding="parallel")) as lc:
    memory = encode_on_ray(lc, text, load_model=partial(AutoModelForCausalLM.from_pretrained, "/models/mine"))

Each worker loads the model once and reads pieces; the caller puts their keys and values in order. A book on one GPU is
read faster by `stream` encoding; many workers, or many texts, are what this is for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray.data
import torch

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext.config import LongContextConfig
from hsokv_ray.longcontext.decoder import DecoderReader
from hsokv_ray.longcontext.memory import Memory
from hsokv_ray.longcontext.model import LongContext
from hsokv_ray.longcontext.parallel import Piece, PieceKV, assemble, encode_piece, pieces
from hsokv_ray.longcontext.text import Source


def encode_on_ray(
    long_context: LongContext,
    source: Source,
    *,
    load_model: Callable[[], Any],
    num_workers: int = 2,
    num_cpus: float = 1,
    num_gpus: float = 0,
    on_tokens: Callable[[int], Any] = lambda num_tokens: None,
) -> Memory:
    """Return the memory that `long_context.encode(source)` would, its pieces read by `num_workers` actors.

    Args:
        load_model: called once in each worker; must give the weights of `long_context.model`.
        num_cpus: reserved per worker.
        num_gpus: reserved per worker.
        on_tokens: called with the number of tokens put in place so far.

    Raises:
        ConfigError: `encoding` is not `parallel`, or a worker's model has other weights.
    """
    if long_context.config.encoding != "parallel":
        raise ConfigError(f"encoding: {long_context.config.encoding} is sequential; spread encoding: parallel")
    tokens, reader = long_context.tokens(source), long_context.decoder()
    rows = [
        {"begin": piece.begin, "end": piece.end, "context": piece.context, "token_ids": piece.token_ids}
        for piece in pieces(tokens.ids, reader.settings)
    ]
    memory_rows = reader.make.rows()
    for row in memory_rows:
        row.reserve(len(tokens.ids))
    with _in_order():
        encoded = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Worker,  # pyright: ignore[reportArgumentType]  Ray takes classes and makes one per actor
            fn_constructor_args=(load_model, long_context.config, reader.digest),
            compute=ray.data.ActorPoolStrategy(size=min(num_workers, len(rows))),
            num_cpus=num_cpus,
            num_gpus=num_gpus,
        )
        assemble(memory_rows, map(_piece_kv, encoded.iter_rows()), on_tokens)
    return reader.memory(tokens.ids, memory_rows, tokens.num_truncated)


@contextmanager
def _in_order() -> Iterator[None]:
    options = ray.data.DataContext.get_current().execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        yield
    finally:
        options.preserve_order = before


class _Worker:
    """Reads pieces with a model of its own."""

    def __init__(self, load_model: Callable[[], Any], config: LongContextConfig, digest: str) -> None:
        self._reader = DecoderReader(load_model().eval(), config)
        if self._reader.digest != digest:
            raise ConfigError("load_model gave other weights than the model that asks; load the same checkpoint")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        piece = Piece(int(row["begin"]), int(row["end"]), _ids(row["context"]), _ids(row["token_ids"]))
        done = encode_piece(self._reader.model, self._reader.make, piece)
        keys, values = (_stacked(layers) for layers in (done.keys, done.values))
        return {"begin": piece.begin, "shape": np.array(keys.shape), "keys": keys.ravel(), "values": values.ravel()}


def _stacked(layers: list[torch.Tensor]) -> np.ndarray:
    return torch.stack([layer.float().cpu() for layer in layers]).numpy()


def _ids(column: Any) -> np.ndarray:
    return np.asarray(column, dtype=np.int64)


def _piece_kv(row: dict[str, Any]) -> PieceKV:
    # flat columns: the last piece is shorter than the others
    shape = tuple(int(size) for size in row["shape"])
    keys, values = (torch.from_numpy(np.array(row[name])).view(shape) for name in ("keys", "values"))
    return PieceKV(int(row["begin"]), list(keys), list(values))
