"""Settings of long context. Null means: derive it from the model's window; `resolve` does."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pydantic

from hsokv_ray.config import Config
from hsokv_ray.errors import ConfigError

IndexName = Literal["auto", "flat", "pq", "block_mean", "block_minmax", "ivf"]
Positions = Literal["contiguous", "fixed", "native"]

_MOST = 4096
"""Tokens of the local part and of the budget, unless more are asked for: time and memory of a step grow with them."""
_CHUNK = 512


class LongContextConfig(Config):
    """How a model reads inputs past its window: what it always sees, and how it finds the rest."""

    aliases: ClassVar[dict[str, str]] = {"knn": "index", "eval_max_source_length": "max_source_length"}
    """Names of the origins -> ours. `knn: false` is `index: flat`, `knn: true` leaves the index as it is."""

    enabled: bool = False
    """Read past the window by retrieval. False: the plain model, untouched; an input past its window is an error."""

    layer_begin: int | None = pydantic.Field(default=None, ge=0)
    """First layer that retrieves; those below see only the sinks and the local window. None: 0, every layer."""

    layer_end: int | None = pydantic.Field(default=None, ge=1)
    """Layer before which retrieval ends. None: all layers from `layer_begin`."""

    context_window_size: int | None = pydantic.Field(default=None, ge=8)
    """Tokens the model was trained to attend to; up to here attention is the plain model's. None: the model's own."""

    sink_tokens: int | None = pydantic.Field(default=None, ge=0)
    """First tokens of the input, always attended: much of the attention of trained models rests on them. None: 16, or a
    sixteenth of a window below 256."""

    local_tokens: int | None = pydantic.Field(default=None, ge=1)
    """Newest tokens, always attended. None: a quarter of the window, at most 4,096."""

    budget_tokens: int | None = pydantic.Field(default=None, ge=0)
    """Tokens fetched from the rest, per layer and key-value head. None: what the window has left, at most 4,096; 0:
    none are."""

    block_size: int | None = pydantic.Field(default=None, ge=1)
    """Tokens fetched together: the best token brings its block. None: 32, or a sixteenth of a window below 512."""

    granularity: Literal["block", "token"] = "block"
    """Fetch the blocks around the best tokens, or the best tokens alone (`block_size` is then 1)."""

    index: IndexName = "auto"
    """How the best are found. flat: exact scores of every token; pq: 4-bit codes scanned by FAISS; block_mean,
    block_minmax: one summary per block, smaller and faster, misses single tokens; ivf: FAISS inverted lists; auto: flat
    while short, then pq where FAISS is installed."""

    positions: Positions = "contiguous"
    """Where fetched tokens stand for the rotary embedding. contiguous: side by side inside the trained window, in
    order; fixed: all at one distance, order is lost; native: where they were, for models trained that long."""

    chunk_size: int | None = pydantic.Field(default=None, ge=1)
    """Tokens encoded at once. None: a quarter of the window, at most 512; for `parallel` encoding what sinks and local
    leave of the window, at most 4,096."""

    encoding: Literal["stream", "parallel"] = "stream"
    """stream: chunk after chunk, each retrieving from those before; parallel: chunks independent of each other behind
    the shared first tokens, for many workers."""

    use_datastore: bool = True
    """Keep what left the local window apart from the model: in main memory, or where `gpu_datastore` says. False: on
    the model's device."""

    store_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Type of the kept keys and values; auto is the model's."""

    gpu_datastore: bool = False
    """Keep the datastore on a GPU; without one: main memory, with a warning."""

    gpu_index: bool = False
    """Search on a GPU through FAISS; where it cannot: the CPU, with a warning."""

    datastore_device: int = pydantic.Field(default=0, ge=0)
    """Number of the GPU that holds the datastore."""

    index_devices: tuple[int, ...] = (0,)
    """Numbers of the GPUs that search, taken in turn by the layers."""

    max_source_length: int | None = pydantic.Field(default=None, ge=1)
    """Tokens of one input, at most. None: no limit."""

    on_too_long: Literal["error", "truncate"] = "error"
    """What to do with an input past `max_source_length`; what is cut is counted and returned."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _take_aliases(cls, values: Any) -> Any:
        return _without_aliases(values) if isinstance(values, dict) else values

    @pydantic.model_validator(mode="after")
    def _check(self) -> "LongContextConfig":
        if self.layer_begin is not None and self.layer_end is not None and self.layer_begin >= self.layer_end:
            raise ValueError(
                f"--layer-begin {self.layer_begin} is not below --layer-end {self.layer_end}; no layer would retrieve"
            )
        if self.granularity == "token" and self.index.startswith("block_"):
            raise ValueError(f"--index {self.index} summarises blocks; with --granularity token use flat, pq or ivf")
        if not self.index_devices or min(self.index_devices) < 0:
            raise ValueError(f"--index-devices {self.index_devices}: give numbers of GPUs, such as 0 1")
        return self

    def resolve(self, *, window: int, num_layers: int) -> "Resolved":
        """Return the settings in numbers for a model of `num_layers` with `window` tokens.

        Raises `ConfigError`: they do not fit into the window, or the layers do not exist.
        """
        window = self.context_window_size or window
        block = 1 if self.granularity == "token" else self.block_size or max(1, min(32, window // 16))
        sink = min(16, window // 16) if self.sink_tokens is None else self.sink_tokens
        chunk = self.chunk_size or max(1, min(window // 4, _CHUNK))
        local = self.local_tokens or max(1, min(window // 4, _MOST))
        begin, end = self.layer_begin or 0, self.layer_end or num_layers
        if end > num_layers:
            raise ConfigError(f"--layer-end {end}: the model has {num_layers} layers; give at most that")
        if begin >= end:
            raise ConfigError(f"--layer-begin {begin}: the model has {num_layers} layers; give less than {end}")
        free = self._room(window, sink=sink, local=local, chunk=chunk, block=block)
        budget = min(free, _MOST) if self.budget_tokens is None else self.budget_tokens
        if 0 < (self.budget_tokens or 0) < block:
            raise ConfigError(
                f"--budget-tokens {budget} is less than a block of {block}, so nothing would be fetched; give at "
                "least that, or 0 to fetch nothing"
            )
        return Resolved(
            window=window,
            sink=sink,
            local=local,
            num_blocks=budget // block,
            block=block,
            chunk=chunk,
            piece=min(self.chunk_size or _MOST, max(1, window - sink - local)),
            layer_begin=begin,
            layer_end=end,
            positions=self.positions,
            index=self.index,
        )

    def _room(self, window: int, *, sink: int, local: int, chunk: int, block: int) -> int:
        """Return the tokens that may be fetched; the local part grows to `local + chunk` and a block at most."""
        used = sink + local + chunk + block
        free = window - used
        asked = self.budget_tokens or 0
        limited = self.positions == "contiguous"
        if free < 0 or (limited and asked > free):
            raise ConfigError(
                f"sinks {sink} + local {local} + chunk {chunk} + one block {block} + budget {asked} tokens "
                f"exceed the window of {window}; lower --budget-tokens to {max(0, free)}, or one of the others"
            )
        return free


@dataclass(frozen=True)
class Resolved:
    """`LongContextConfig` in numbers: tokens, blocks and layers of one model."""

    window: int
    sink: int
    local: int
    num_blocks: int
    """Blocks fetched per layer and key-value head."""
    block: int
    chunk: int
    piece: int
    """Tokens of a piece of `parallel` encoding."""
    layer_begin: int
    layer_end: int
    positions: Positions
    index: IndexName

    @property
    def budget(self) -> int:
        """Tokens fetched."""
        return self.num_blocks * self.block

    def describe(self) -> str:
        """Return what a query sees, in one line."""
        return (
            f"past {self.window:,} tokens a query sees the first {self.sink}, {self.budget} fetched in blocks of "
            f"{self.block} ({self.index}, {self.positions}) and the newest {self.local}; "
            f"layers {self.layer_begin} to {self.layer_end - 1} fetch"
        )

    def retrieves(self, layer: int) -> bool:
        """Return whether layer number `layer` retrieves."""
        return self.layer_begin <= layer < self.layer_end


def _without_aliases(values: dict[str, Any]) -> dict[str, Any]:
    values = dict(values)
    if "eval_max_source_length" in values:
        values.setdefault("max_source_length", values.pop("eval_max_source_length"))
    if "knn" in values and not values.pop("knn"):
        if values.get("index", "auto") not in ("auto", "flat"):
            raise ValueError(f"knn: false searches exactly, index: {values['index']} does not; give one of them")
        values["index"] = "flat"
    return values
