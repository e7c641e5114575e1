"""Rows that continue a text that was read: they share its far tokens and copy only sinks and local part.

Shapes: L layers, R layers that retrieve, K key-value heads, N far tokens, S tokens, D head size.
"""

from dataclasses import replace
from weakref import WeakKeyDictionary

import torch

from hsokv_ray.longcontext.arrays import to_tensor
from hsokv_ray.longcontext.far import FarSegment, IndexKind
from hsokv_ray.longcontext.growable import KVBuffer, KVSpan
from hsokv_ray.longcontext.index import BlockIndex
from hsokv_ray.longcontext.row import Row
from hsokv_ray.longcontext.rows import RowMaker
from hsokv_ray.longcontext.segments import Encoded, Mark, Segment

COUNTS = ("length", "position", "origin", "num_first")
"""What a mark keeps of a row besides its tokens."""

_placed: WeakKeyDictionary[Segment, WeakKeyDictionary[RowMaker, list[FarSegment]]] = WeakKeyDictionary()
"""Segments with their indexes restored, as long as the segments live: every request on them shares these."""


Placed = list[list[FarSegment]]
"""The far tokens of a text: of each layer that retrieves, its parts in their order."""


def continued(make: RowMaker, encoded: Encoded, fars: Placed | None = None) -> list[Row]:
    """Return a row per layer that stands where `encoded` ends.

    Args:
        fars: `placed(make, encoded)`, which takes time with the length of the text; None: it is called here.
    """
    rows = make.rows()
    _fill(rows, encoded.segments[-1], encoded.mark)
    retrieving = [row for row in rows if row.far]
    for row, parts in zip(retrieving, placed(make, encoded) if fars is None else fars, strict=True):
        if parts:
            row.far = [*parts, parts[-1].empty()]
    return rows


def placed(make: RowMaker, encoded: Encoded) -> Placed:
    """Return the far tokens of `encoded` with their indexes, for reading only."""
    fars: Placed = [[] for row in make.rows() if row.far]
    for segment, mark in shared_parts(encoded):
        for parts, far in zip(fars, _fars(make, segment), strict=True):
            parts.append(_until(far, (mark.num_blocks - segment.first_block) * far.kind.block_size))
    return fars


def shared_parts(encoded: Encoded) -> list[tuple[Segment, Mark]]:
    """Return the parts of a text that have far tokens: one far segment each in rows that continue it."""
    return [(segment, mark) for segment, mark in encoded.parts() if mark.num_blocks > segment.first_block]


def far_tensor(segment: Segment, name: str) -> torch.Tensor:
    """Return the far `keys` or `values` [R, K, N, D], not copied."""
    return to_tensor(segment.arrays[f"far.{name}"], segment.far_dtype)


def _fill(rows: list[Row], segment: Segment, mark: Mark) -> None:
    number = segment.marks.index(mark)
    sinks, local = (to_tensor(segment.arrays[f"{name}.{number}"], segment.dtype) for name in ("sinks", "local"))
    for layer, row in enumerate(rows):
        row.sinks.append(sinks[0, layer], sinks[1, layer])
        row.local.append(local[0, layer], local[1, layer])
        for name in COUNTS:
            setattr(row, name, mark.counts[name])


def _fars(make: RowMaker, segment: Segment) -> list[FarSegment]:
    """Return the far tokens of a segment, one for each layer that retrieves; they are for reading only."""
    by_maker = _placed.setdefault(segment, WeakKeyDictionary())
    if make not in by_maker:  # two threads at once make it twice, which harms nothing
        by_maker[make] = _place(make, segment)
    return by_maker[make]


def _until(far: FarSegment, num_tokens: int) -> FarSegment:
    """Return the first tokens of `far`, with an index that knows no others."""
    span = KVSpan(far.span.buffer, 0, num_tokens)
    index = far.index if num_tokens == len(far.span) else far.index.first(span.keys)
    return replace(far, span=span, index=index)


def _place(make: RowMaker, segment: Segment) -> list[FarSegment]:
    keys, values = far_tensor(segment, "keys"), far_tensor(segment, "values")
    templates = [row.far[0] for row in make.rows() if row.far]
    fars = []
    for number, far in enumerate(templates):
        kind = replace(far.kind, name=segment.index)
        span = _span_over(far.span.buffer, keys[number], values[number])
        fars.append(FarSegment(span, _restored(kind, segment, number), kind))
    return fars


def _span_over(like: KVBuffer, keys_KND: torch.Tensor, values_KND: torch.Tensor) -> KVSpan:
    keys_KND, values_KND = (each.to(like.keys.device, like.keys.dtype) for each in (keys_KND, values_KND))
    return KVSpan(KVBuffer.over(keys_KND, values_KND, like.block), 0, keys_KND.shape[1])


def _restored(kind: IndexKind, segment: Segment, number: int) -> BlockIndex:
    prefix = f"index.{number}."
    state = {name.removeprefix(prefix): array for name, array in segment.arrays.items() if name.startswith(prefix)}
    return kind.restore(state)
