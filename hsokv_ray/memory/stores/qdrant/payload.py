"""What a point holds beside its vector, so that ids, metadata and filters come back exactly.

    make_point("a", vector, b'{"lang":"en","year":1925}') has
    id       uuid5 of "a"
    payload  {"_id": "a", "_json": '{"lang":"en","year":1925}', "terms": ["?lang", .., "~9fc2..c", "~9fc2..c0", ..]}

A number is among the terms by the 16 beginnings of its 64 bits in hexadecimal, which order as the doubles do, so that a
range is at most 241 terms. A field with an index of its own per number key makes a write of one row take 0.1 s at four
keys and 1 s at sixteen (the engine flushes the files of every index), and the engine's JSON reader is a last digit off
for 30 % of random doubles.
"""

import hashlib
import json
import struct
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, starmap
from typing import Any

import numpy as np

from hsokv_ray.errors import StoreError
from hsokv_ray.memory.stores.facets import facets
from hsokv_ray.memory.stores.types import Hit, Record, Rows

NAMESPACE = uuid.UUID("6f1c2a52-7d0c-5a4e-9a44-8e0f2b3c9d17")
"""Fixed for ever: point ids are derived from it."""
TERMS = "terms"
RETURNED = ["_id", "_json"]
"""The fields that reads ask for."""
_HEXADECIMAL = "0123456789abcdef"
_JSON_BYTES_PER_NUMBER = 22


@dataclass(frozen=True, slots=True)
class Point:
    """One row as Qdrant takes it."""

    id: uuid.UUID
    vector: list[float]
    payload: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        """About what it takes as JSON."""
        return len(self.payload["_json"]) + len(self.vector) * _JSON_BYTES_PER_NUMBER


def point_id(id: str) -> uuid.UUID:
    """Return the point id of a record's id."""
    return uuid.uuid5(NAMESPACE, id)


def make_points(rows: Rows) -> list[Point]:
    """Return the points of a batch."""
    return [make_point(*row) for row in zip(rows.ids, rows.vectors, rows.metadata, strict=True)]


def make_point(id: str, vector: np.ndarray, metadata: bytes) -> Point:
    """Return the point of one row: float32 [d] and the JSON text of its metadata."""
    found = facets(json.loads(metadata))
    terms = [*found.terms, *chain.from_iterable(starmap(number_terms, found.numbers.items()))]
    return Point(point_id(id), vector.tolist(), {"_id": id, "_json": metadata.decode(), TERMS: terms})


def in_chunks(points: Sequence[Point], max_points: int, max_bytes: int) -> Iterator[list[Point]]:
    """Yield `points` in order, so many or so many bytes of JSON at a time, at least one."""
    chunk: list[Point] = []
    num_bytes = 0
    for point in points:
        if chunk and (len(chunk) == max_points or num_bytes + point.num_bytes > max_bytes):
            yield chunk
            chunk, num_bytes = [], 0
        chunk.append(point)
        num_bytes += point.num_bytes
    if chunk:
        yield chunk


def number_terms(key: str, number: float) -> list[str]:
    """Return the terms of the finite `number` under `key`."""
    head, digits = _head(key), _digits(number)
    return [head + digits[:n] for n in range(1, len(digits) + 1)]


def range_terms(key: str, op: str, bound: float) -> list[str]:
    """Return terms: a number under `key` has one of them if it is in the range (see `InRange`), and none otherwise."""
    head, digits = _head(key), _digits(bound)
    terms = [head + digits] if op in ("gte", "lte") else []
    for n, digit in enumerate(digits):
        beyond = _HEXADECIMAL.partition(digit)[2 if op in ("gt", "gte") else 0]
        terms += [head + digits[:n] + each for each in beyond]
    return terms


def _head(key: str) -> str:
    return "~" + hashlib.blake2b(key.encode(), digest_size=8).hexdigest()


def _digits(number: float) -> str:
    """The bits of a double, turned so that texts are in the order of numbers."""
    [bits] = struct.unpack("<Q", struct.pack("<d", number + 0.0))  # + 0.0: -0.0 equals 0.0
    return f"{bits ^ 0xFFFF_FFFF_FFFF_FFFF if bits >> 63 else bits | 1 << 63:016x}"


def read_record(payload: Mapping[str, Any] | None, vector: Any) -> Record:
    """Return the record of a point. Raises `StoreError` for a point that was not written here."""
    id, text = _ours(payload)
    return Record(id, np.asarray(vector, dtype=np.float32), json.loads(text))


def read_hit(payload: Mapping[str, Any] | None, score: float) -> Hit:
    """Return the hit of a point. Raises `StoreError` for a point that was not written here."""
    id, text = _ours(payload)
    return Hit(id, score, text)


def _ours(payload: Mapping[str, Any] | None) -> tuple[str, str]:
    try:
        return payload["_id"], payload["_json"]  # type: ignore[index]
    except (KeyError, TypeError):
        raise StoreError(
            "qdrant: the collection holds points that were not written by hsokv_ray (no _id and _json); use another one"
        ) from None
