"""One entry of the log as bytes: a header with its own checksum, the payload, an end mark.

    encoded = encode_upsert(rows, request_id="job-17")       # in the caller's thread
    os.writev(descriptor, encoded.with_seq(42))              # the number is given when its turn comes
    [entry] = split(data).entries
    entry.write(epoch=7).rows.ids

Layout, little-endian:
    header (32 bytes)  magic "HSKL", version u8, kind u8, 2 zero bytes, seq u64, payload bytes u64, payload CRC-32 u32,
                       CRC-32 of the 28 bytes before u32
    payload            num_rows u32, dim u32, request id bytes u32 (2^32-1: none), id bytes u32[n], metadata bytes
                       u32[n], request id, ids, metadata, vectors f32[n, dim]; of a delete: no metadata, no vectors
    end mark (4 bytes) never zero, so that blocks which were never written are told from damage
"""

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from hsokv_ray.errors import StoreError
from hsokv_ray.memory.stores.types import Rows

MAGIC = b"HSKL"
VERSION = 1
END_MARK = b"\xf5END"
_HEADER = struct.Struct("<4sBB2xQQII")
_SHAPE = struct.Struct("<III")
_NO_REQUEST = 2**32 - 1
_JOIN_BELOW = 1 << 16
"""Bytes of a payload below which one piece is faster to write than several."""

HEADER_BYTES = _HEADER.size
Buffer = bytes | memoryview


class Kind(IntEnum):
    """What an entry does."""

    OPEN = 1
    """First in a file; its seq is that of the last write before the file."""
    UPSERT = 2
    DELETE = 3
    CLOSE = 4
    """The writer left in good order; nothing follows."""


@dataclass(frozen=True, slots=True)
class Write:
    """What an upsert or a delete asked for."""

    epoch: int
    seq: int
    request_id: str | None
    ids: list[str]
    """Distinct."""
    rows: Rows | None
    """None for a delete."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """An entry without its number."""

    kind: Kind
    payload: tuple[Buffer, ...]
    num_bytes: int
    """Of the payload."""
    crc: int

    def with_seq(self, seq: int) -> list[Buffer]:
        """Return the pieces to write, in order."""
        header = _HEADER.pack(MAGIC, VERSION, self.kind, seq, self.num_bytes, self.crc, 0)[:-4]
        return [header + zlib.crc32(header).to_bytes(4, "little"), *self.payload, END_MARK]


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry whose checksums are right."""

    kind: Kind
    seq: int
    payload: memoryview
    end: int
    """Offset of the byte after it."""

    def write(self, epoch: int) -> Write:
        """Return the upsert or delete in it. Raises `StoreError` where its payload makes no sense."""
        try:
            return _decode(self, epoch)
        except (struct.error, ValueError, IndexError) as error:
            raise StoreError(f"log entry {self.seq} has a payload that makes no sense: {error}") from None


@dataclass(frozen=True, slots=True)
class Stop:
    """Where the entries of a file stop before its end, and why."""

    offset: int
    is_torn: bool
    """True where a write was cut short, which loses nothing that was acknowledged; False for damage."""
    reason: str


@dataclass(frozen=True, slots=True)
class Split:
    """The entries of some bytes, up to the first that is not whole."""

    entries: list[Entry]
    stop: Stop | None


def encode_upsert(rows: Rows, request_id: str | None = None) -> Encoded:
    """Return the entry that writes `rows`."""
    return _encode(Kind.UPSERT, rows.ids, request_id, rows)


def encode_delete(ids: Sequence[str], request_id: str | None = None) -> Encoded:
    """Return the entry that deletes `ids`."""
    return _encode(Kind.DELETE, ids, request_id, None)


def encode_mark(kind: Kind) -> Encoded:
    """Return an entry without payload: OPEN or CLOSE."""
    return Encoded(kind, (), 0, 0)


def split(data: bytes) -> Split:
    """Return the entries of `data`. Damage and a torn end are told apart as `Stop.is_torn` says.

    An entry that was cut short is the last one, so whatever fails its checksum is damage where a whole entry follows,
    where all of its bytes are there, or where its header cannot be read though it is there; only blocks that were never
    written (zeros to the end) also count as torn.
    """
    view, offset, entries = memoryview(data), 0, []
    while offset < len(data):
        entry = _entry_at(view, offset)
        if isinstance(entry, str):
            return Split(entries, _stop(data, offset, entry))
        entries.append(entry)
        offset = entry.end
    return Split(entries, None)


def _encode(kind: Kind, ids: Sequence[str], request_id: str | None, rows: Rows | None) -> Encoded:
    names = [name.encode() for name in ids]
    request = b"" if request_id is None else request_id.encode()
    metadata = [] if rows is None else rows.metadata
    dim = 0 if rows is None else rows.vectors.shape[1]
    shape = _SHAPE.pack(len(names), dim, _NO_REQUEST if request_id is None else len(request))
    head = b"".join((shape, _lengths(names), _lengths(metadata), request, *names, *metadata))
    if rows is None:
        return Encoded(kind, (head,), len(head), zlib.crc32(head))
    assert rows.vectors.dtype == np.float32
    vectors = np.ascontiguousarray(rows.vectors).reshape(-1).view(np.uint8).data
    if len(head) + len(vectors) < _JOIN_BELOW:
        whole = b"".join((head, vectors))
        return Encoded(kind, (whole,), len(whole), zlib.crc32(whole))
    return Encoded(kind, (head, vectors), len(head) + len(vectors), zlib.crc32(vectors, zlib.crc32(head)))


def _lengths(texts: Sequence[bytes]) -> bytes:
    return np.fromiter(map(len, texts), dtype="<u4", count=len(texts)).tobytes()


def _entry_at(view: memoryview, offset: int) -> Entry | str:
    """Return the entry at `offset`, or why there is none."""
    left = len(view) - offset
    if left < HEADER_BYTES:
        return "incomplete: the header is cut short"
    magic, version, kind, seq, num_bytes, crc, header_crc = _HEADER.unpack_from(view, offset)
    if zlib.crc32(view[offset : offset + HEADER_BYTES - 4]) != header_crc:
        return "the header's checksum differs"
    if magic != MAGIC or version != VERSION or kind not in Kind.__members__.values():
        return f"the entry has version {version} and kind {kind}, which this version does not read"
    if left < HEADER_BYTES + num_bytes + len(END_MARK):
        return "incomplete: the payload is cut short"
    start = offset + HEADER_BYTES
    end = start + num_bytes
    if zlib.crc32(view[start:end]) != crc or view[end : end + len(END_MARK)] != END_MARK:
        return "the payload's checksum differs"
    return Entry(Kind(kind), seq, view[start:end], end + len(END_MARK))


def _stop(data: bytes, offset: int, reason: str) -> Stop:
    if (later := _whole_entry_after(data, offset)) is not None:
        return Stop(offset, False, f"{reason}, and a whole entry follows at byte {later}")
    never_written = data[-len(END_MARK) :] == bytes(len(END_MARK))
    return Stop(offset, reason.startswith("incomplete") or never_written, reason)


def _whole_entry_after(data: bytes, offset: int) -> int | None:
    view = memoryview(data)
    while (offset := data.find(MAGIC, offset + 1)) >= 0:
        if isinstance(_entry_at(view, offset), Entry):
            return offset
    return None


def _decode(entry: Entry, epoch: int) -> Write:
    payload = entry.payload
    num_rows, dim, request_bytes = _SHAPE.unpack_from(payload)
    at = _SHAPE.size
    id_lengths = np.frombuffer(payload, "<u4", num_rows, at)
    at += 4 * num_rows
    is_upsert = entry.kind == Kind.UPSERT
    metadata_lengths = np.frombuffer(payload, "<u4", num_rows if is_upsert else 0, at)
    at += 4 * len(metadata_lengths)
    request_id = None
    if request_bytes != _NO_REQUEST:
        request_id, at = str(payload[at : at + request_bytes], "utf-8"), at + request_bytes
    ids, at = _texts(payload, at, id_lengths)
    if not is_upsert:
        _check_end(at, payload)
        return Write(epoch, entry.seq, request_id, ids, None)
    metadata, at = _pieces(payload, at, metadata_lengths)
    vectors = np.frombuffer(payload, "<f4", num_rows * dim, at).reshape(num_rows, dim)
    _check_end(at + vectors.nbytes, payload)
    return Write(epoch, entry.seq, request_id, ids, Rows(ids, np.ascontiguousarray(vectors, np.float32), metadata))


def _check_end(at: int, payload: memoryview) -> None:
    if at != len(payload):
        raise ValueError(f"{len(payload) - at} bytes are left over")


def _texts(payload: memoryview, at: int, lengths: np.ndarray) -> tuple[list[str], int]:
    end = at + int(lengths.sum(dtype=np.int64))
    text = str(payload[at:end], "utf-8")
    if len(text) == end - at:  # ASCII: characters are bytes
        return [text[a:b] for a, b in _bounds(0, lengths)], end
    pieces, end = _pieces(payload, at, lengths)
    return [piece.decode() for piece in pieces], end


def _pieces(payload: memoryview, at: int, lengths: np.ndarray) -> tuple[list[bytes], int]:
    end = at + int(lengths.sum(dtype=np.int64))
    blob = bytes(payload[at:end])
    return [blob[a:b] for a, b in _bounds(0, lengths)], end


def _bounds(first: int, lengths: np.ndarray) -> Iterable[tuple[int, int]]:
    ends = np.cumsum(lengths, dtype=np.int64) + first
    stops = ends.tolist()
    return zip([first, *stops[:-1]], stops, strict=False)
