"""What goes into a store and what comes out of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Metric = Literal["cosine", "dot", "l2"]
"""How two vectors q and v compare; larger scores are nearer.

cosine: q.v / (|q| |v|), in [-1, 1]; vectors are stored at unit length. dot: q.v. l2: -|q - v|^2.
"""

Metadata = Mapping[str, Any]
"""Any JSON object."""


@dataclass(frozen=True, slots=True)
class Record:
    """One stored vector."""

    id: str
    vector: np.ndarray
    """float32 [d]; at unit length where the metric is cosine."""
    metadata: dict[str, Any] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record):
            return NotImplemented
        return (self.id, self.metadata) == (other.id, other.metadata) and np.array_equal(self.vector, other.vector)

    __hash__ = None  # type: ignore[assignment]


class Hit:
    """A stored vector near a query. Its metadata is decoded when it is first looked at."""

    __slots__ = ("_json", "_metadata", "id", "score")

    def __init__(self, id: str, score: float, metadata_json: bytes | str) -> None:
        self.id = id
        self.score = score
        """Larger is nearer; see `Metric`."""
        self._json = metadata_json
        self._metadata: dict[str, Any] | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        if self._metadata is None:
            self._metadata = json.loads(self._json)
        return self._metadata  # type: ignore[return-value]

    @property
    def metadata_json(self) -> bytes:
        """The metadata as JSON text, UTF-8."""
        return self._json if isinstance(self._json, bytes) else self._json.encode()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Hit):
            return NotImplemented
        return (self.id, self.score, self.metadata) == (other.id, other.score, other.metadata)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Hit(id={self.id!r}, score={self.score:.6g}, metadata={self.metadata!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Hit, (self.id, self.score, self._json)


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the records that a scroll visits."""

    records: list[Record]
    cursor: str | None
    """Where the next page begins; None after the last one."""


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What a store holds."""

    driver: str
    count: int
    dim: int | None
    """None until the first vector."""
    metric: Metric
    index: str
    """The kind of index in use, in the driver's words."""
    disk_bytes: int | None
    """None where the driver cannot tell."""
    details: dict[str, Any] = field(default_factory=dict)
    """Whatever else the driver tells; JSON."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A checked batch on its way into a driver: ids are distinct, vectors are finite and as the metric stores them."""

    ids: list[str]
    vectors: np.ndarray
    """float32 [n, d], contiguous."""
    metadata: list[bytes]
    """JSON text of each row, UTF-8."""

    def __len__(self) -> int:
        return len(self.ids)
