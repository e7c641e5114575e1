"""Follows a sequence while it is read, and writes what was read as segments.

recorder = Recorder(make, model_digest, after=None)
rows = recorder.rows()            # read tokens into them
recorder.note(token_ids)          # these have been read
recorder.mark(rows)               # reading can be taken up here
encoded = recorder.cut(rows)      # everything up to the last mark; Recorder(make, model_digest, encoded) reads on

Shapes: L layers, R layers that retrieve, K key-value heads, N far tokens, S tokens, D head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext.arrays import dtype_name, to_array
from hsokv_ray.longcontext.continuing import COUNTS, Placed, continued, placed, shared_parts
from hsokv_ray.longcontext.far_arrays import far_arrays, joined
from hsokv_ray.longcontext.growable import KVSpan
from hsokv_ray.longcontext.memory import layout_of
from hsokv_ray.longcontext.row import Row
from hsokv_ray.longcontext.rows import RowMaker
from hsokv_ray.longcontext.segments import Encoded, Mark, Segment, TokenDigest

MOST_SEGMENTS = 8
"""A longer chain becomes one segment: each one costs a search of its own."""


@dataclass(frozen=True)
class _Place:
    mark: Mark
    sinks: np.ndarray
    """[2, L, K, S, D]."""
    local: np.ndarray


class Recorder:
    """Follows one sequence. It never changes rows, and keeps none of them."""

    def __init__(
        self, make: RowMaker, model_digest: str, after: Encoded | None, *, layout: dict[str, Any] | None = None
    ) -> None:
        """Begin behind `after`, or with an empty text.

        Args:
            layout: what digests tell apart besides model and tokens; None: `layout_of` the settings.

        Raises:
            ConfigError: another model read `after`, or with another layout.
        """
        self._make, self._after = make, after
        self._digest = TokenDigest(model_digest, layout_of(make.settings) if layout is None else layout)
        self._num_shared = 0 if after is None else len(shared_parts(after))
        self._first_own_block = 0 if after is None else after.mark.num_blocks
        self._num_tokens = 0 if after is None else len(after)
        self._ids = np.empty(0, np.int64)
        self._new_ids: list[np.ndarray] = []
        self._places: list[_Place] = []
        self._placed: Placed | None = None
        if after is not None:
            self._digest.update(after.token_ids)
            if self._digest.hexdigest() != after.digest:
                raise ConfigError("the text was read by another model or with other settings; read it again")

    @property
    def after(self) -> Encoded | None:
        """What has been cut so far, or was given."""
        return self._after

    def rows(self) -> list[Row]:
        """Return a row per layer that stands where `after` ends; what it holds of far tokens is not copied."""
        fars, self._placed = self._placed, None
        return self._make.rows() if self._after is None else continued(self._make, self._after, fars)

    def place(self) -> None:
        """Prepare the far tokens of `after` for the next call of `rows`; takes time with the length of the text."""
        if self._after is not None:
            self._placed = placed(self._make, self._after)

    def note(self, token_ids: Sequence[int] | np.ndarray | torch.Tensor) -> None:
        """Take ids that have been read into the rows since the last call."""
        ids = token_ids.cpu().numpy() if isinstance(token_ids, torch.Tensor) else token_ids
        ids = np.array(ids, dtype=np.int64)
        self._digest.update(ids)
        self._new_ids.append(ids)
        self._num_tokens += len(ids)

    def mark(self, rows: list[Row]) -> None:
        """Remember this place of the rows, which have read exactly what was noted; copies sinks and local part."""
        assert all(row.length == self._num_tokens for row in rows), ([row.length for row in rows], self._num_tokens)
        assert all(len(row.sinks) == row.num_first and not row.num_pinned for row in rows), "a request pinned tokens"
        last = self._last_mark()
        if self._num_tokens == (0 if last is None else last.num_tokens):
            return
        counts = {name: getattr(rows[0], name) for name in COUNTS} | {"blocks": _num_blocks(rows)}
        self._places.append(
            _Place(
                Mark(self._num_tokens, self._digest.hexdigest(), counts),
                sinks=_stacked([row.sinks for row in rows]),
                local=_stacked([row.local for row in rows]),
            )
        )

    def cut(self, rows: list[Row]) -> Encoded | None:
        """Return everything up to the last mark; None where there is no mark since `after` or the last cut.

        What is read after it continues the text that was cut.
        """
        if not self._places:
            return None
        segment = self._segment(rows)
        before = () if self._after is None else self._after.segments
        encoded = Encoded((*before, segment), segment.marks[-1])
        self._after = joined(encoded, self._make) if len(encoded.segments) > MOST_SEGMENTS else encoded
        self._places, self._placed = [], None
        return self._after

    def _last_mark(self) -> Mark | None:
        if self._places:
            return self._places[-1].mark
        return None if self._after is None else self._after.mark

    def _segment(self, rows: list[Row]) -> Segment:
        parent = None if self._after is None else self._after.mark
        marks = tuple(place.mark for place in self._places)
        begin, first_block = (0, 0) if parent is None else (parent.num_tokens, parent.num_blocks)
        owns = [row.far[self._num_shared :] for row in rows if row.far]
        blocks = (first_block - self._first_own_block, marks[-1].num_blocks - self._first_own_block)
        arrays = {"token_ids": self._take_ids(marks[-1].num_tokens - begin)} | far_arrays(owns, *blocks)
        for number, place in enumerate(self._places):
            arrays |= {f"sinks.{number}": place.sinks, f"local.{number}": place.local}
        return Segment(
            parent=None if parent is None else parent.digest,
            begin=begin,
            first_block=first_block,
            marks=marks,
            dtype=dtype_name(rows[0].local.keys.dtype),
            far_dtype=dtype_name(owns[0][0].span.keys.dtype),
            index=owns[0][0].kind.name,
            arrays=arrays,
        )

    def _take_ids(self, num_ids: int) -> np.ndarray:
        """Return the first ids noted since the last cut, and forget them."""
        ids = np.concatenate([self._ids, *self._new_ids])
        self._ids, self._new_ids = ids[num_ids:], []
        return ids[:num_ids].copy()


def _num_blocks(rows: list[Row]) -> int:
    row = next(row for row in rows if row.far)
    return sum(segment.num_blocks for segment in row.far)


def _stacked(spans: list[KVSpan]) -> np.ndarray:
    keys, values = (torch.stack([getattr(span, name).cpu() for span in spans]) for name in ("keys", "values"))
    return to_array(torch.stack([keys, values]))
