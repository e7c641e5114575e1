"""Rewriting: the rows of some parts that count, in id order, ready to become one segment.

sources = table.begin_rewrite(keys)                  # under the store's lock; all else without it
merged = merge(sources)
write_segment(folder, merged.rows, kind=..., metric=...)
table.finish_rewrite(sources, Segment.open(folder), merged.moved)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hsokv_ray.memory.stores.lsm.table import Source
from hsokv_ray.memory.stores.types import Rows

_CHUNK = 16_384
"""Rows copied at a time, so that other threads get their turn and little is held twice."""


@dataclass(frozen=True, slots=True)
class Merged:
    """The rows of several parts."""

    rows: Rows
    """In the order of their ids."""
    moved: list[np.ndarray]
    """int64 [num_rows] per source: the position of each row in `rows`; -1 where it does not count."""


def merge(sources: Sequence[Source], dim: int) -> Merged:
    """Return the rows of `sources` that count."""
    kept = [_alive_positions(source) for source in sources]
    ids = [name for source, positions in zip(sources, kept, strict=True) for name in _ids(source, positions)]
    order = _order(ids)
    place = np.empty(len(ids), np.int64)
    place[order] = np.arange(len(ids))
    vectors = np.empty((len(ids), dim), np.float32)
    metadata: list[bytes] = [b""] * len(ids)
    moved, first = [], 0
    for source, positions in zip(sources, kept, strict=True):
        places = place[first : first + len(positions)]
        _copy(source, positions, places, vectors, metadata)
        target = np.full(source.num_rows, -1, np.int64)
        target[positions] = places
        moved.append(target)
        first += len(positions)
    return Merged(Rows([ids[i] for i in order.tolist()], vectors, metadata), moved)


def _alive_positions(source: Source) -> np.ndarray:
    return np.arange(source.num_rows) if source.alive is None else np.flatnonzero(source.alive)


def _ids(source: Source, positions: np.ndarray) -> list[str]:
    return source.part.ids(positions.tolist())


def _order(ids: list[str]) -> np.ndarray:
    """Return the order of `ids`. Arrow sorts without holding up other threads; UTF-8 sorts as Python's strings do."""
    return pc.array_sort_indices(pa.array(ids, pa.large_string())).to_numpy().astype(np.int64)  # type: ignore


def _copy(
    source: Source, positions: np.ndarray, places: np.ndarray, vectors: np.ndarray, metadata: list[bytes]
) -> None:
    for start in range(0, len(positions), _CHUNK):
        chunk, target = positions[start : start + _CHUNK], places[start : start + _CHUNK]
        vectors[target] = source.part.vectors(chunk)
        for place, text in zip(target.tolist(), source.part.metadata(chunk.tolist()), strict=True):
            metadata[place] = text
