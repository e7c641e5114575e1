"""Columnar tables: one document per row of parquet files and of the arrow files that `datasets` writes."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hsokv_ray.data.sources.base import MAX_PIECES, PART_BYTES, ReadOptions, Record, Shard, Span
from hsokv_ray.data.text import row_text

_BATCH_ROWS = 1024


class Parquet:
    """Spans are ranges of row groups; only the text column is read."""

    def columns(self, shard: Shard) -> dict[str, bool] | None:
        """Return the columns of the schema."""
        with _open_parquet(shard) as file:
            return _schema_columns(file.schema_arrow)

    def spans(self, shard: Shard, *, column: str | None, target: int, options: ReadOptions) -> list[Span]:
        """Gather row groups up to `target` bytes of the text column."""
        with _open_parquet(shard) as file:
            metadata = file.metadata
            sizes = [_group_bytes(metadata.row_group(i), column) for i in range(metadata.num_row_groups)]
        return gather(sizes, target=target)

    def records(self, shard: Shard, span: Span, *, column: str | None, options: ReadOptions) -> Iterator[Record]:
        """Yield the rows of the span's row groups."""
        with _open_parquet(shard) as file:
            columns = [column] if column is not None and column in file.schema_arrow.names else None
            for group in range(span.start, span.stop):
                batches = file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns)
                yield from _rows(batches, group, column)


class Arrow:
    """Arrow stream files, mapped into memory; spans are ranges of record batches."""

    def columns(self, shard: Shard) -> dict[str, bool] | None:
        """Return the columns of the schema."""
        with pa.memory_map(shard.path) as source, pa.ipc.open_stream(source) as reader:
            return _schema_columns(reader.schema)

    def spans(self, shard: Shard, *, column: str | None, target: int, options: ReadOptions) -> list[Span]:
        """Gather record batches up to `target` bytes of the text column."""
        with pa.memory_map(shard.path) as source, pa.ipc.open_stream(source) as reader:
            sizes = [batch.column(column).nbytes if column in batch.schema.names else batch.nbytes for batch in reader]
        return gather(sizes, target=target)

    def records(self, shard: Shard, span: Span, *, column: str | None, options: ReadOptions) -> Iterator[Record]:
        """Yield the rows of the span's record batches."""
        with pa.memory_map(shard.path) as source, pa.ipc.open_stream(source) as reader:
            for i, batch in enumerate(reader):
                if i >= span.stop:
                    return
                if i >= span.start:
                    yield from _rows([batch], i, column)


def gather(sizes: list[int], *, target: int) -> list[Span]:
    """Join consecutive units (row groups, batches) of `sizes` bytes into spans of at most `target`, one unit at least.

    A unit larger than a part is read several times, each time for other documents.
    """
    spans: list[Span] = []
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and total + size > target:
            spans.append(_span(start, i, total))
            start, total = i, 0
        total += size
    if sizes:
        spans.append(_span(start, len(sizes), total))
    return spans


def _span(start: int, stop: int, num_bytes: int) -> Span:
    pieces = min(MAX_PIECES, max(1, -(-num_bytes // PART_BYTES)))
    return Span(start=start, stop=stop, num_bytes=num_bytes, pieces=pieces)


def _open_parquet(shard: Shard) -> pq.ParquetFile:
    if shard.is_gzip:
        # Parquet is read from its end, which a gzip stream reaches only by decompressing everything.
        with shard.open() as file:
            return pq.ParquetFile(pa.BufferReader(file.read()))
    return pq.ParquetFile(shard.open_raw() if shard.is_remote else shard.path)


def _schema_columns(schema: pa.Schema) -> dict[str, bool]:
    return {field.name: _is_string(field.type) for field in schema}


def _is_string(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.DictionaryType):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _group_bytes(group: Any, column: str | None) -> int:
    chunks = [group.column(i) for i in range(group.num_columns)]
    sizes = {chunk.path_in_schema: chunk.total_uncompressed_size for chunk in chunks}
    return sizes.get(column or "", group.total_byte_size)


def _rows(batches: Any, unit: int, column: str | None) -> Iterator[Record]:
    number = 0
    for batch in batches:
        values = batch.column(column) if column in batch.schema.names else None
        for i in range(batch.num_rows):
            # Decoding waits until the row is wanted: of a divided part most rows are passed over.
            text = partial(_value_text, values, i) if values is not None else partial(_row_text, batch, i, column)
            yield Record(f"{unit}.{number}", text)
            number += 1


def _value_text(values: Any, i: int) -> str | None:
    return row_text(values[i].as_py(), None)


def _row_text(batch: Any, i: int, column: str | None) -> str | None:
    row = {name: values[i].as_py() for name, values in zip(batch.schema.names, batch.columns, strict=True)}
    return row_text(row, column)
