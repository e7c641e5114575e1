"""Where a run stands in its data."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class DataCursor:
    """Where the streams stand: for each the (epoch, position, token offset) of the first token not yet an input.

    Attributes:
        streams: int64 [num_streams, 3].
        num_blocks: global blocks consumed.
    """

    streams: np.ndarray
    num_blocks: int

    @classmethod
    def start(cls, num_streams: int) -> "DataCursor":
        """Return the cursor before the first token."""
        return cls(streams=np.zeros((num_streams, 3), dtype=np.int64), num_blocks=0)

    @classmethod
    def merge(cls, cursors: Iterable["DataCursor"]) -> "DataCursor":
        """Join the workers' cursors, each of which is zero but for its own streams; the same as a sum over workers."""
        cursors = list(cursors)
        if len({cursor.num_blocks for cursor in cursors}) != 1:
            raise ValueError(f"workers consumed different numbers of blocks: {[c.num_blocks for c in cursors]}")
        return cls(streams=np.sum([c.streams for c in cursors], axis=0), num_blocks=cursors[0].num_blocks)

    def to_json(self) -> str:
        """Return the cursor as JSON."""
        return json.dumps({"num_blocks": self.num_blocks, "streams": self.streams.tolist()})

    @classmethod
    def from_json(cls, text: str) -> "DataCursor":
        """Return the cursor that `to_json` wrote."""
        values = json.loads(text)
        return cls(streams=np.array(values["streams"], dtype=np.int64), num_blocks=values["num_blocks"])
