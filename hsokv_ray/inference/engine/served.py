"""The model as the engine uses it: what reads, what ends an answer, and how rows of a request begin."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from hsokv_ray.errors import ConfigError
from hsokv_ray.inference.engine.config import EngineConfig
from hsokv_ray.inference.engine.detokenise import decoder_of
from hsokv_ray.inference.engine.room import free_bytes
from hsokv_ray.inference.loading import LoadedModel
from hsokv_ray.longcontext.arrays import dtype_name
from hsokv_ray.longcontext.config import LongContextConfig, Resolved
from hsokv_ray.longcontext.memory import layout_of
from hsokv_ray.longcontext.model import LongContext
from hsokv_ray.longcontext.recorder import Recorder
from hsokv_ray.longcontext.row import Row
from hsokv_ray.longcontext.segments import Encoded, prefix_digests

PER_REQUEST = ("budget_tokens", "local_tokens", "positions")
"""Settings a request may choose: what is kept of a text does not depend on them."""

_STRIDE_PARTS = 8
_MOST_INPUT = 2_000_000
_INPUT_SHARE = 4
"""One input may take this part of the memory that is free."""


class ServedModel:
    """One model with its long context open.

    Raises `ConfigError`: the model's family is not served, or the settings do not fit the model.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        self._config = config.long_context
        self._long = LongContext(loaded.model, loaded.tokenizer, self._config)
        decoder = self._long.decoder()
        self.model, self.make, self.digest = self._long.model, decoder.make, decoder.digest
        self.settings: Resolved = decoder.settings
        self.layout = layout_of(self.settings)
        self.device: torch.device = self.model.device
        self.vocab_size: int = self.model.get_input_embeddings().num_embeddings
        self.end_tokens = _end_tokens(self.model, loaded.tokenizer)
        self.decode = decoder_of(loaded.tokenizer)
        self.stride = _stride(config.prefix_stride, self.settings)
        self.max_input_tokens = config.max_input_tokens or self._most_that_fit()

    def describe(self) -> str:
        """Return settings and placement in one line."""
        return self._long.describe()

    def close(self) -> None:
        """Give the model back as it was."""
        self._long.close()

    def wait(self) -> None:
        """Wait for what the device still computes, so that a clock tells the time it took."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def resolve(self, settings: Mapping[str, Any]) -> Resolved:
        """Return the settings of one request. Raises `ConfigError` naming one that it cannot choose."""
        if not settings:
            return self.settings
        for name in settings:
            if name not in PER_REQUEST:
                raise ConfigError(
                    f"settings: {name!r} cannot be chosen per request; these can: {', '.join(PER_REQUEST)}"
                )
        try:
            config = LongContextConfig(**{**self._config.model_dump(), **settings})
            resolved = config.resolve(window=self.make.shape.window, num_layers=self.make.shape.num_layers)
        except ConfigError as error:
            raise ConfigError(f"settings: {error}") from None
        if layout_of(resolved) != self.layout:
            raise ConfigError(
                f"settings: positions {resolved.positions!r} keep other things than {self.settings.positions!r}, which "
                "the server reads with; leave them out"
            )
        return resolved

    def digests(self, token_ids: np.ndarray, ends: Sequence[int], settings: Resolved) -> list[str]:
        """Return the digests of `token_ids[:end]`, read with `settings`."""
        return prefix_digests(self.digest, self._layout(settings), token_ids, ends)

    def recorder(self, after: Encoded | None, settings: Resolved) -> Recorder:
        """Return what follows a text that is read behind `after`; takes time with its length.

        Raises `ConfigError`: another model read `after`, or with other settings.
        """
        return Recorder(self.make, self.digest, after, layout=self._layout(settings))

    def rows(self, recorder: Recorder, settings: Resolved) -> list[Row]:
        """Return the rows of a request that begins behind the recorder's text and is not recorded itself."""
        if recorder.after is not None:
            return [row.attached(settings) for row in recorder.rows()]
        rows = recorder.rows()
        for row in rows:
            row.settings = settings
        return rows

    @property
    def bytes_per_token(self) -> int:
        """Bytes of a token that is kept for later: keys and values of the layers that retrieve, indexes apart."""
        shape, settings = self.make.shape, self.settings
        sizes = (
            place.store_dtype.itemsize for place in self.make.placements[settings.layer_begin : settings.layer_end]
        )
        return 2 * shape.num_key_value_heads * shape.head_dim * sum(sizes)

    def _most_that_fit(self) -> int:
        """Return the tokens of one input that a fair part of the memory holds."""
        free = free_bytes(self.make.placements[self.settings.layer_begin].store_device)
        fitting = free // _INPUT_SHARE // self.bytes_per_token
        return min(_MOST_INPUT, max(self.settings.window, fitting))

    def _layout(self, settings: Resolved) -> dict[str, Any]:
        """Return what a digest tells apart: a text's keys and values depend on everything it was read with."""
        store = self.make.placements[settings.layer_begin].store_dtype
        return self.layout | {"settings": asdict(settings), "store_dtype": dtype_name(store)}


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    given = model.generation_config.eos_token_id
    ends = given if isinstance(given, list) else [given]
    return frozenset(token for token in (*ends, getattr(tokenizer, "eos_token_id", None)) if token is not None)


def _stride(asked: int | None, settings: Resolved) -> int:
    """Return whole chunks: reading is taken up where a chunk ends."""
    tokens = asked or _STRIDE_PARTS * (settings.local + settings.chunk)
    return -(-tokens // settings.chunk) * settings.chunk
