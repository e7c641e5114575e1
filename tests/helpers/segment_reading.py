"""Reads texts with a `Recorder`, and brings what it wrote behind the library's own methods."""

from collections.abc import Sequence

import numpy as np
import torch

from hsokv_ray.longcontext.cache import RetrievalCache
from hsokv_ray.longcontext.decoder import DecoderReader
from hsokv_ray.longcontext.memory import Memory, layout_of
from hsokv_ray.longcontext.prefill import feed
from hsokv_ray.longcontext.recorder import Recorder
from hsokv_ray.longcontext.row import Row
from hsokv_ray.longcontext.segments import Encoded


def read_rows(reader: DecoderReader, rows: list[Row], ids: np.ndarray) -> list[Row]:
    """Return the rows after reading `ids` into them."""
    cache = RetrievalCache.of([rows])
    feed(reader.model, cache, [torch.from_numpy(ids)])
    return cache.rows(0)


def read(reader: DecoderReader, ids: np.ndarray, after: Encoded | None = None, marks: Sequence[int] = ()) -> Encoded:
    """Return the text `ids` behind `after`, marked after so many of its tokens, and at the end."""
    recorder = Recorder(reader.make, reader.digest, after)
    rows = recorder.rows()
    begin = 0
    for end in sorted({*marks, len(ids)}):
        rows = read_rows(reader, rows, ids[begin:end])
        recorder.note(ids[begin:end])
        recorder.mark(rows)
        begin = end
    encoded = recorder.cut(rows)
    assert encoded is not None
    return encoded


def as_memory(reader: DecoderReader, encoded: Encoded) -> Memory:
    """Return a memory whose rows continue `encoded`."""
    rows = Recorder(reader.make, reader.digest, encoded).rows()
    return Memory(encoded.token_ids, reader.digest, layout_of(reader.settings), rows)
