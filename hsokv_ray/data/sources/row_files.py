"""Tables as text: one document per row of csv, tsv, jsonl and json files."""

import csv
import itertools
import json
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

from hsokv_ray.data.sources.base import TO_END, ReadOptions, Record, Shard, Span, readable, refuse_binary, whole
from hsokv_ray.data.sources.text_files import decode
from hsokv_ray.data.text import row_text, string_columns
from hsokv_ray.errors import DataError

MAX_JSON_BYTES = 256_000_000
"""A json file is parsed as a whole; larger ones have to be jsonl."""

_SNIFFED_ROWS = 100

# The csv module refuses fields over 128 KB by default, which is less than many a document.
csv.field_size_limit(2**31 - 1)


class JsonLines:
    """One JSON value per line; a span holds the lines that start in it."""

    def columns(self, shard: Shard) -> dict[str, bool] | None:
        """Return the keys of the first rows."""
        with shard.open() as file:
            lines = list(readable(itertools.islice(file, _SNIFFED_ROWS)))
        return string_columns([row for line in lines for row in readable(map(json.loads, [decode(line)]))])

    def spans(self, shard: Shard, *, column: str | None, target: int, options: ReadOptions) -> list[Span]:
        """Cut at every `target` bytes; reading moves on to the next line."""
        refuse_binary(shard)
        if shard.is_gzip or not shard.size:
            return whole(shard)
        starts = range(0, shard.size, target)
        stops = [*starts[1:], shard.size]
        return [Span(start=a, stop=b, num_bytes=b - a) for a, b in zip(starts, stops, strict=True)]

    def records(self, shard: Shard, span: Span, *, column: str | None, options: ReadOptions) -> Iterator[Record]:
        """Yield the lines that start inside the span."""
        with shard.open() as file:
            position = _next_line(file, span.start)
            while span.stop == TO_END or position < span.stop:
                line = file.readline()
                if not line:
                    return
                if line.strip():
                    yield Record(str(position), partial(_line_text, line, column))
                position += len(line)


class JsonFile:
    """A list of rows, or an object with exactly one list; parsed as a whole, so at most 256 MB."""

    def columns(self, shard: Shard) -> dict[str, bool] | None:
        """Return the keys of the first rows."""
        return string_columns(_load_rows(shard)[:_SNIFFED_ROWS])

    def spans(self, shard: Shard, *, column: str | None, target: int, options: ReadOptions) -> list[Span]:
        """Return one span: the file cannot be entered in the middle."""
        refuse_binary(shard)
        return whole(shard)

    def records(self, shard: Shard, span: Span, *, column: str | None, options: ReadOptions) -> Iterator[Record]:
        """Yield the rows."""
        for i, row in enumerate(_load_rows(shard)):
            yield Record(str(i), partial(row_text, row, column))


class Delimited:
    """Comma or tab separated rows under a header line, quoted as spreadsheets do; fields may hold line ends.

    A row with more or fewer fields than the header is a bad row.
    """

    def __init__(self, delimiter: str) -> None:
        self.delimiter = delimiter

    def columns(self, shard: Shard) -> dict[str, bool] | None:
        """Return the header's names; a column whose first values are all numbers holds no strings."""
        with shard.open() as file:
            rows = [row for _, row in readable(itertools.islice(self._rows(file, 0), _SNIFFED_ROWS + 1))]
        header = rows[0] if rows else []
        return {name: not all(_is_number(row[i]) for row in rows[1:] if i < len(row)) for i, name in enumerate(header)}

    def spans(self, shard: Shard, *, column: str | None, target: int, options: ReadOptions) -> list[Span]:
        """Cut between rows. A quoted line end looks like any other, so the file is parsed once here."""
        refuse_binary(shard)
        if shard.is_gzip or shard.is_remote:
            return whole(shard)
        cuts: list[int] = []
        with shard.open() as file:
            for start, _ in itertools.islice(self._rows(file, 0), 1, None):
                if not cuts or start - cuts[-1] >= target:
                    cuts.append(start)
        stops = [*cuts[1:], shard.size]
        return [Span(start=a, stop=b, num_bytes=b - a) for a, b in zip(cuts, stops, strict=False)]

    def records(self, shard: Shard, span: Span, *, column: str | None, options: ReadOptions) -> Iterator[Record]:
        """Yield the rows of the span as mappings from the header's names."""
        with shard.open() as file:
            rows = self._rows(file, 0)
            _, header = next(rows, (0, []))
            if span.start:
                file.seek(span.start)
                rows = self._rows(file, span.start)
            for position, row in rows:
                if span.stop != TO_END and position >= span.stop:
                    return
                yield Record(str(position), partial(_fields_text, row, header, column))

    def _rows(self, file: BinaryIO, start: int) -> Iterator[tuple[int, list[str]]]:
        """Yield each row with the byte offset at which it starts; empty lines are no rows."""
        position = _Position(start)
        reader = csv.reader(position.lines(file), delimiter=self.delimiter, strict=True)
        while True:
            begin = position.offset
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise csv.Error(f"row at offset {begin}: {error}") from None
            if row is None:
                return
            if row:
                yield begin, row


class _Position:
    """Counts the bytes a csv reader has taken."""

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def lines(self, file: BinaryIO) -> Iterator[str]:
        for line in file:
            is_first = self.offset == 0
            self.offset += len(line)
            yield decode(line, at_start=is_first)


def _next_line(file: BinaryIO, start: int) -> int:
    """Move to the first line that starts at `start` or later and return its offset."""
    if not start:
        return 0
    file.seek(start - 1)
    return start - 1 + len(file.readline())


def _line_text(line: bytes, column: str | None) -> str | None:
    return row_text(json.loads(decode(line)), column)


def _fields_text(row: list[str], header: list[str], column: str | None) -> str | None:
    if len(row) != len(header):
        raise ValueError(f"{len(row)} fields under a header of {len(header)}")
    return row_text(dict(zip(header, row, strict=True)), column)


def _is_number(value: str) -> bool:
    try:
        float(value or 0)
    except ValueError:
        return False
    return True


def _load_rows(shard: Shard) -> list[Any]:
    with shard.open() as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise DataError(
            f"{shard.path}: json of more than {MAX_JSON_BYTES // 1_000_000} MB; write it as jsonl, one row per line"
        )
    value = json.loads(decode(data))
    candidates = value.values() if isinstance(value, dict) else [value]
    lists = [item for item in candidates if isinstance(item, list)]
    if len(lists) != 1:
        raise DataError(
            f"{shard.path}: json holds {type(value).__name__} with {len(lists)} lists; "
            "give a list of rows, an object with exactly one list, or jsonl"
        )
    return lists[0]
