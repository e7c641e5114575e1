"""Plain text: one document per file, or paragraphs of a file that is cut."""

import re
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from hsokv_ray.data.sources.base import (
    MAX_DOCUMENT_BYTES,
    TO_END,
    ReadOptions,
    Record,
    Shard,
    Span,
    refuse_binary,
    whole,
)

_LOOK_BACK = 65_536
_BLANK_LINE = re.compile(rb".*\n[ \t\r]*\n", re.DOTALL)


class TextFile:
    """A text file too large for one document: whole paragraphs up to 1 MB make a document, nothing is lost.

    Cuts fall at the last blank line, else at the last line end, else between two characters.
    """

    def columns(self, shard: Shard) -> dict[str, bool] | None:
        """Text has no columns."""
        return None

    def spans(self, shard: Shard, *, column: str | None, target: int, options: ReadOptions) -> list[Span]:
        """Cut at paragraph ends near every `target` bytes."""
        refuse_binary(shard)
        if shard.is_gzip:
            return whole(shard)
        cuts = [0]
        with shard.open() as file:
            while shard.size - cuts[-1] > target:
                cuts.append(_cut_before(file, cuts[-1], cuts[-1] + target))
        cuts.append(shard.size)
        return [Span(start=a, stop=b, num_bytes=b - a) for a, b in zip(cuts, cuts[1:], strict=False)]

    def records(self, shard: Shard, span: Span, *, column: str | None, options: ReadOptions) -> Iterator[Record]:
        """Yield documents of whole paragraphs."""
        with shard.open() as file:
            file.seek(span.start)
            position, rest = span.start, b""
            while True:
                room = MAX_DOCUMENT_BYTES - len(rest)
                wanted = room if span.stop == TO_END else min(room, span.stop - position - len(rest))
                chunk = file.read(wanted) if wanted else b""
                rest += chunk
                # A short read is the end: everything left is the last document.
                cut = len(rest) if len(chunk) < room else cut_point(rest)
                if not rest:
                    return
                yield Record(str(position), partial(decode, rest[:cut], at_start=position == 0))
                position, rest = position + cut, rest[cut:]


def whole_document(shard: Shard) -> Record:
    """Return the file as one document."""
    with shard.open() as file:
        return Record("0", partial(decode, file.read()))


def decode(data: bytes, *, at_start: bool = True) -> str:
    """Decode UTF-8; bytes that are not become lone surrogates, which reading counts. A byte order mark is dropped."""
    text = data.decode("utf-8", "surrogateescape")
    return text.removeprefix("\ufeff") if at_start else text


def cut_point(data: bytes) -> int:
    """Return where to end a document inside `data`: after a blank line, else a line, else a whole character."""
    if match := _BLANK_LINE.match(data):
        return match.end()
    if (line := data.rfind(b"\n")) >= 0:
        return line + 1
    cut = len(data)
    while cut > max(1, len(data) - 4) and data[cut - 1] & 0xC0 == 0x80:
        cut -= 1
    if cut > 1 and data[cut - 1] >= 0xC0:
        return cut - 1
    return len(data)


def _cut_before(file: BinaryIO, start: int, target: int) -> int:
    first = max(start, target - _LOOK_BACK)
    file.seek(first)
    return first + cut_point(file.read(target - first))
