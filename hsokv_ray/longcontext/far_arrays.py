"""Far tokens of all layers as the arrays of a segment.

Shapes: R layers that retrieve, K key-value heads, N far tokens, D head size.
"""

import numpy as np
import torch

from hsokv_ray.longcontext.arrays import to_array
from hsokv_ray.longcontext.continuing import far_tensor
from hsokv_ray.longcontext.far import FarSegment, IndexKind
from hsokv_ray.longcontext.rows import RowMaker
from hsokv_ray.longcontext.segments import Encoded, Segment

Arrays = dict[str, np.ndarray]


def far_arrays(fars: list[list[FarSegment]], begin_block: int, end_block: int) -> Arrays:
    """Return copies of the blocks `begin_block` to `end_block` of far segments that follow each other, with an index.

    Args:
        fars: of each layer that retrieves.
    """
    kinds = [segments[0].kind for segments in fars]
    begin, end = begin_block * kinds[0].block_size, end_block * kinds[0].block_size
    keys, values = (_gathered(fars, name, begin, end) for name in ("keys", "values"))
    far = {"far.keys": to_array(keys), "far.values": to_array(values)}
    if begin == 0 and all(len(segments[0].span) >= end for segments in fars):
        return far | _named([segments[0].index.state() for segments in fars])
    return far | _named(_indexed(kinds, keys))


def joined(encoded: Encoded, make: RowMaker) -> Encoded:
    """Return the same text as one segment with the marks of the last one; its index is made anew."""
    last = encoded.segments[-1]
    kinds = [row.far[0].kind for row in make.rows() if row.far]
    ends = [(mark.num_blocks - segment.first_block) * kinds[0].block_size for segment, mark in encoded.parts()]
    keys, values = (
        torch.cat(
            [far_tensor(segment, name)[:, :, :end] for segment, end in zip(encoded.segments, ends, strict=True)], dim=2
        )
        for name in ("keys", "values")
    )
    arrays = {name: array for name, array in last.arrays.items() if name.startswith(("sinks.", "local."))}
    arrays |= {"token_ids": encoded.token_ids, "far.keys": to_array(keys), "far.values": to_array(values)}
    root = Segment(
        parent=None,
        begin=0,
        first_block=0,
        marks=last.marks,
        dtype=last.dtype,
        far_dtype=last.far_dtype,
        index=kinds[0].name,
        arrays=arrays | _named(_indexed(kinds, keys)),
    )
    return Encoded((root,), encoded.mark)


def _gathered(fars: list[list[FarSegment]], name: str, begin: int, end: int) -> torch.Tensor:
    """Return tokens `begin` to `end` of each layer's segments, [R, K, end - begin, D], in main memory."""
    like = getattr(fars[0][0].span, name)
    out_RKND = torch.empty(len(fars), like.shape[0], end - begin, like.shape[2], dtype=like.dtype)
    for number, segments in enumerate(fars):
        start = 0
        for segment in segments:
            tokens_KND = getattr(segment.span, name)[:, max(0, begin - start) : max(0, end - start)]
            place = max(0, start - begin)
            out_RKND[number, :, place : place + tokens_KND.shape[1]] = tokens_KND
            start += len(segment.span)
    return out_RKND


def _indexed(kinds: list[IndexKind], keys_RKND: torch.Tensor) -> list[Arrays]:
    """Return the states of new indexes over the keys of each layer."""
    states = []
    for kind, keys_KND in zip(kinds, keys_RKND, strict=True):
        index = kind.make()
        if keys_KND.shape[1]:
            index.add(keys_KND, keys_KND)
        states.append(index.state())
    return states


def _named(states: list[Arrays]) -> Arrays:
    return {
        f"index.{number}.{name}": np.asarray(array)
        for number, state in enumerate(states)
        for name, array in state.items()
    }
