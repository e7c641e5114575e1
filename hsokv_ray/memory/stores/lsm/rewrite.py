"""Rewriting: the rows of some parts that count, in id order, ready to become one segment.

sources = table.begin_rewrite(keys)                  # under the store's lock; all else without it
merged = merge(sources)
write_segment(folder, merged.rows, kind=..., metric=...)
table.finish_rewrite(sources, Segment.open(folder), merged.moved)
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hsokv_ray.memory.stores.lsm.table import Source
from hsokv_ray.memory.stores.types import Rows

_CHUNK = 1024
"""Rows copied at a time."""
_PAUSE_S = 1e-4
"""After each of them, for a writer that waits for the interpreter: it would else get its turn only every 5 ms."""


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
    ids, metadata = _texts(sources, kept)
    order = _order(ids)
    place = np.empty(len(ids), np.int64)
    place[order] = np.arange(len(ids))
    vectors = np.empty((len(ids), dim), np.float32)
    moved, first = [], 0
    for source, positions in zip(sources, kept, strict=True):
        places = place[first : first + len(positions)]
        _copy_vectors(source, positions, places, vectors)
        target = np.full(source.num_rows, -1, np.int64)
        target[positions] = places
        moved.append(target)
        first += len(positions)
    in_order = order.tolist()
    return Merged(Rows([ids[i] for i in in_order], vectors, [metadata[i] for i in in_order]), moved)


def _alive_positions(source: Source) -> np.ndarray:
    return np.arange(source.num_rows) if source.alive is None else np.flatnonzero(source.alive)


def _texts(sources: Sequence[Source], kept: list[np.ndarray]) -> tuple[list[str], list[bytes]]:
    """Return ids and metadata of the rows that count."""
    ids: list[str] = []
    metadata: list[bytes] = []
    for source, positions in zip(sources, kept, strict=True):
        for start in range(0, len(positions), _CHUNK):
            chunk = positions[start : start + _CHUNK].tolist()
            ids += source.part.ids(chunk)
            metadata += source.part.metadata(chunk)
            time.sleep(_PAUSE_S)
    return ids, metadata


def _order(ids: list[str]) -> np.ndarray:
    """Return the order of `ids`. Arrow sorts without holding up other threads; UTF-8 sorts as Python's strings do."""
    return pc.array_sort_indices(pa.array(ids, pa.large_string())).to_numpy().astype(np.int64)  # type: ignore


def _copy_vectors(source: Source, positions: np.ndarray, places: np.ndarray, vectors: np.ndarray) -> None:
    for start in range(0, len(positions), _CHUNK):
        vectors[places[start : start + _CHUNK]] = source.part.vectors(positions[start : start + _CHUNK])
        time.sleep(_PAUSE_S)
