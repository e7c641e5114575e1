"""A transformers cache whose layers attend by retrieval. It holds all state of a request; the model holds none.

The memory a request begins with is not counted: `get_seq_length` and positions are those of the request's own tokens,
so `generate` takes prompt ids alone.

Shapes: B rows, H query heads, K key-value heads, T new tokens, D head size.
"""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, CacheLayerMixin

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext.attention import tag
from hsokv_ray.longcontext.report import Stopwatch
from hsokv_ray.longcontext.row import Row


class RetrievalLayer(CacheLayerMixin):
    """The rows of one layer; a row has its own length, and padding is never kept."""

    is_sliding = False
    is_compileable = False
    is_croppable = True
    supports_early_init = False

    def __init__(self, rows: list[Row], watch: Stopwatch, *, is_first: bool) -> None:
        super().__init__()
        self.rows = rows
        self.watch = watch
        self._is_first = is_first
        self.num_columns = 0
        """Tokens the model has given, padding included."""
        self.is_initialized = True
        self._attended = True
        self._checked = False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hand the new keys and values [B, K, T, D] on to `attend`, which keeps them."""
        self.check_attended()
        self._expand(key_states.shape[0])
        if self._is_first:
            self.watch.lap()
        self._attended = False
        self.num_columns += key_states.shape[2]
        return tag(key_states, self), value_states

    @torch.no_grad()
    def attend(
        self,
        module: nn.Module,
        query_BHTD: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the output [B, T, H, D]; zeros where a query is padding."""
        self._attended = True
        valid_BT = _valid(attention_mask, query_BHTD.shape[2])
        if self._is_first and (query_BHTD.device.type == "cpu" or not self._checked):  # a GPU would be waited for
            _check_mask(attention_mask, valid_BT, self.rows[0].settings.window)
            _check_positions(kwargs.get("position_ids"), valid_BT, self.rows)
            self._checked = True
        outputs = []
        for i, row in enumerate(self.rows):
            valid_T = None if valid_BT is None or bool(valid_BT[i].all()) else valid_BT[i]
            outputs.append(_attend_row(row, query_BHTD[i], key[i], value[i], valid_T, scaling, self.watch))
        return torch.stack(outputs).transpose(1, 2)

    def _expand(self, batch_size: int) -> None:
        """Give every row of the model's batch one of ours: beams and several answers begin with one prompt."""
        have = len(self.rows)
        if batch_size == have:
            return
        if batch_size % have:
            raise ConfigError(f"the cache has {have} rows, the batch {batch_size}; make the cache for that batch size")
        self.batch_repeat_interleave(batch_size // have)

    def check_attended(self) -> None:
        """Raise `ConfigError` where the model was given keys and did not attend through this layer."""
        if not self._attended:
            raise ConfigError(
                "the model did not attend through this cache: it is not, or no longer, inside a LongContext; make one "
                "for it and keep it open while its caches are used"
            )

    # what transformers asks of a layer

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: rows know their shapes."""

    def get_seq_length(self) -> int:
        return self.num_columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Masks cover the new tokens only: what was kept before needs none."""
        self.check_attended()
        return query_length, self.num_columns

    def get_max_length(self) -> int:
        return -1

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.rows = [row.fork() for row in self.rows for _ in range(repeats)]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.rows = [self.rows[i].fork() for i in indices.tolist()]

    def crop(self, tokens_to_remove: int) -> None:
        """Take the newest `-tokens_to_remove` tokens back, as assisted generation does with refused ones."""
        count = -tokens_to_remove
        if count < 0:
            raise ConfigError(f"crop({tokens_to_remove}): give the negative number of tokens to take back")
        if any(count > len(row.local) for row in self.rows):
            raise ConfigError(f"crop({tokens_to_remove}): more than the local part holds; raise --local-tokens")
        for row in self.rows:
            row.forget(count)
        self.num_columns -= count

    def reset(self) -> None:
        raise ConfigError("a retrieval cache cannot be reset; make a new one for the next request")


class RetrievalCache(Cache):
    """The cache of one request: a layer of rows for each layer of the model."""

    def __init__(self, layers: list[RetrievalLayer], watch: Stopwatch) -> None:
        super().__init__(layers=list(layers))
        self.retrieval_layers = layers
        self.watch = watch

    @classmethod
    def of(cls, rows: list[list[Row]]) -> "RetrievalCache":
        """Return the cache of sequences, each a row per layer."""
        watch = Stopwatch()
        layers = [
            RetrievalLayer(list(layer_rows), watch, is_first=number == 0)
            for number, layer_rows in enumerate(zip(*rows, strict=True))
        ]
        return cls(layers, watch)

    def rows(self, row: int) -> list[Row]:
        """Return one sequence, layer by layer."""
        return [layer.rows[row] for layer in self.retrieval_layers]

    def alone(self, row: int) -> "RetrievalCache":
        """Return a cache of one sequence only; what is read into it is in this cache too."""
        layers = [
            RetrievalLayer([layer.rows[row]], self.watch, is_first=number == 0)
            for number, layer in enumerate(self.retrieval_layers)
        ]
        return RetrievalCache(layers, self.watch)

    def seal(self) -> None:
        """Let beams and answers that begin with what has been read share it."""
        self.watch.end_reading()
        for layer in self.retrieval_layers:
            for row in layer.rows:
                row.seal()

    def pin(self, num_tokens: int) -> None:
        """Keep the first `num_tokens` of the request in sight for good. Call it before they are read.

        Raises `ConfigError`: more than the local part holds, or no room for them in the window.
        """
        settings = self.retrieval_layers[0].rows[0].settings
        room = min(settings.local, settings.budget)
        if settings.positions == "native":
            raise ConfigError("prefix: with native positions every token stays where it was; put it into the prompt")
        if num_tokens > room:
            raise ConfigError(
                f"prefix: {num_tokens} tokens, at most {room} can stay in sight beside what is fetched; "
                "shorten it or put it into the prompt"
            )
        for layer in self.retrieval_layers:
            for row in layer.rows:
                row.num_pinned = num_tokens

    @property
    def nbytes(self) -> int:
        """Bytes of all kept keys and values; those shared by rows count once."""
        spans = {
            id(span.buffer): span.nbytes
            for layer in self.retrieval_layers
            for row in layer.rows
            for span in (row.sinks, row.local, *(segment.span for segment in row.far))
        }
        return sum(spans.values())

    @property
    def index_nbytes(self) -> int:
        """Bytes of all indexes; those shared by rows count once."""
        indexes = {
            id(segment.index): segment.index.nbytes
            for layer in self.retrieval_layers
            for row in layer.rows
            for segment in row.far
        }
        return sum(indexes.values())


def _attend_row(
    row: Row,
    query_HTD: torch.Tensor,
    key_KTD: torch.Tensor,
    value_KTD: torch.Tensor,
    valid_T: torch.Tensor | None,
    scaling: float,
    watch: Stopwatch,
) -> torch.Tensor:
    if valid_T is None:
        return row.extend(query_HTD, key_KTD, value_KTD, scaling, watch)
    output = torch.zeros_like(query_HTD)
    if bool(valid_T.any()):
        output[:, valid_T] = row.extend(
            query_HTD[:, valid_T], key_KTD[:, valid_T], value_KTD[:, valid_T], scaling, watch
        )
    return output


def _valid(attention_mask: torch.Tensor | None, num_new: int) -> torch.Tensor | None:
    """Return [B, T]: which new tokens are no padding; None where all are.

    A token sees itself unless it is padding. Masks are boolean, or numbers added to the scores; flash attention's have
    two dimensions.
    """
    if attention_mask is None:
        return None
    if attention_mask.dim() == 2:
        return attention_mask[:, -num_new:].bool()
    own = attention_mask[:, 0, :, -num_new:].diagonal(dim1=1, dim2=2)
    return own if own.dtype == torch.bool else own == 0


def _check_positions(position_ids: torch.Tensor | None, valid_BT: torch.Tensor | None, rows: list[Row]) -> None:
    """Rows count positions themselves; raise `ConfigError` where the model was given others."""
    if position_ids is None:
        return
    for i, row in enumerate(rows):
        positions = position_ids[min(i, len(position_ids) - 1)]
        num_new = len(positions) if valid_BT is None else int(valid_BT[i].sum())
        expected = row.position + num_new - 1
        if num_new and int(positions[-1]) != expected:
            raise ConfigError(
                f"position_ids: row {i} ends at {int(positions[-1])}, its tokens count to {expected}; a cache reads "
                "each token once, and positions count the request's own tokens from 0, without padding"
            )


def _check_mask(attention_mask: torch.Tensor | None, valid_BT: torch.Tensor | None, window: int) -> None:
    """Raise `ConfigError` for a mask [B, 1, T, M] that hides more than padding and what is to come."""
    if attention_mask is None or valid_BT is None or attention_mask.dim() != 4 or valid_BT.shape[1] > window:
        return
    num_new = valid_BT.shape[1]
    allowed = attention_mask[:, 0, :, -num_new:]
    allowed = allowed if allowed.dtype == torch.bool else allowed == 0
    causal = torch.ones(num_new, num_new, dtype=torch.bool, device=allowed.device).tril()
    if bool((allowed != (causal & valid_BT[:, None])).logical_and(valid_BT[:, :, None]).any()):
        raise ConfigError(
            "the attention mask hides more than padding; a retrieval cache knows causal masks and padding"
        )
