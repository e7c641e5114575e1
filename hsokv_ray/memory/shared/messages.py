"""What clients, readers and shards send each other. Columns instead of objects: Ray then copies few things."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hsokv_ray.memory.stores.lsm.view import Matches, Version
from hsokv_ray.memory.stores.types import Hit, Metric, Rows

NOTHING = Version(0, 0)
"""The version of a collection that nothing was written to yet."""


def shard_of(id: str, num_shards: int) -> int:
    """Return the shard that holds `id`: CRC-32 of its UTF-8, modulo the shards; the same in every process."""
    return zlib.crc32(id.encode()) % num_shards


@dataclass(frozen=True, slots=True)
class PackedHits:
    """The hits of n queries, end to end."""

    counts: np.ndarray
    """int32 [n]: hits per query."""
    scores: np.ndarray
    """float32 [sum(counts)]."""
    ids: list[str]
    metadata: list[bytes]

    @classmethod
    def of_matches(cls, matches: Matches) -> "PackedHits":
        """Pack what a search found, without making hits of it first."""
        found = matches.part >= 0
        numbers, positions = matches.part[found], matches.position[found]
        ids: list[str] = [""] * len(numbers)
        metadata: list[bytes] = [b""] * len(numbers)
        for number in np.unique(numbers).tolist():
            part, rows = matches.parts[number], np.flatnonzero(numbers == number).tolist()
            here = positions[rows].tolist()
            for row, id, text in zip(rows, part.ids(here), part.metadata(here), strict=True):
                ids[row], metadata[row] = id, text
        return cls(found.sum(axis=1, dtype=np.int32), matches.scores[found], ids, metadata)

    @classmethod
    def of(cls, hits: Sequence[Sequence[Hit]]) -> "PackedHits":
        """Pack lists of hits."""
        flat = [hit for row in hits for hit in row]
        return cls(
            np.array([len(row) for row in hits], np.int32),
            np.array([hit.score for hit in flat], np.float32),
            [hit.id for hit in flat],
            [hit.metadata_json for hit in flat],
        )

    def unpack(self) -> list[list[Hit]]:
        """Return one list of hits per query."""
        hits = list(map(Hit, self.ids, self.scores.tolist(), self.metadata))
        ends = np.cumsum(self.counts).tolist()
        return [hits[end - count : end] for end, count in zip(ends, self.counts.tolist(), strict=True)]


@dataclass(frozen=True, slots=True)
class Reply:
    """Hits, and the version of the shard they were read from."""

    hits: PackedHits
    version: Version


@dataclass(frozen=True, slots=True)
class ReaderState:
    """What a reader has of one shard, so that the shard sends only what is new."""

    version: Version | None = None
    """None: nothing yet."""
    segments: dict[str, int] = field(default_factory=dict)
    """Name -> dead rows. Rows only die, so equal numbers are equal masks."""
    growing: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Generation -> rows, dead rows."""


@dataclass(frozen=True, slots=True)
class SegmentNews:
    """A sealed segment of the current version."""

    name: str
    folder: str
    num_rows: int
    alive: bytes | None
    """Packed bits; None where the reader's mask is still right."""


@dataclass(frozen=True, slots=True)
class GrowingNews:
    """A growing part of the current version, from the first row that the reader lacks."""

    generation: int
    start: int
    rows: Rows
    alive: bytes | None
    """Packed bits of all rows; None where none is dead that the reader takes for alive."""


@dataclass(frozen=True, slots=True)
class Update:
    """The way from a reader's state to the current version."""

    version: Version
    metric: Metric
    dim: int | None
    is_reset: bool
    """The reader forgets its growing parts: the shard restarted, and slots may have moved."""
    segments: list[SegmentNews]
    growing: list[GrowingNews]


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """How a shard introduces itself."""

    protocol: int
    package_version: str
    memory: str
    """Its configuration, JSON."""
    shard: int
    node_id: str
    hostname: str
    pid: int
