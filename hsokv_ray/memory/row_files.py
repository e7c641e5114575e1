"""Files with vectors or texts to store: jsonl, parquet, npz. Read row by row from any position, each row named.

    jsonl     {"id": "a", "vector": [...], "metadata": {...}}, or {"id": "a", "text": "...", "lang": "en"}
    parquet   columns id, vector (a list of numbers), metadata (JSON text or a struct)
    npz       arrays ids, vectors [n, d], optionally metadata (JSON texts)

Other keys and columns become metadata. A whole number as id is taken as its digits.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hsokv_ray.errors import ConfigError, DataError
from hsokv_ray.memory.records import TEXT

FORMATS = (".jsonl", ".parquet", ".npz")
_SAMPLE_BYTES = 1 << 20
_CHUNK_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One row."""

    id: str
    vector: Any
    """What stands for it in the file, not checked; None where there is none."""
    metadata: dict[str, Any]

    @property
    def text(self) -> Any:
        return self.metadata.get(TEXT)


@dataclass(frozen=True, slots=True)
class BadRow:
    """One row that cannot be taken."""

    reason: str


@dataclass(frozen=True, slots=True)
class Position:
    """Where reading goes on."""

    row: int = 0
    """Rows (of jsonl: lines) before it."""
    offset: int = 0
    """In the unit of `RowFile.total`."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A row and where it stands."""

    row: Row | BadRow
    place: str
    """File and line, as it is told to the user."""
    after: Position


class RowFile(Protocol):
    """A file of rows."""

    path: Path
    total: int
    """Bytes (jsonl) or rows."""
    unit: str

    def rows(self, start: Position) -> Iterator[Placed]:
        """Yield what stands from `start` on. Raises `DataError`: the file itself cannot be read."""
        ...


def open_rows(path: str | Path) -> RowFile:
    """Open a file by its ending. Raises `ConfigError`: it is not there or of no known kind; `DataError`: damaged."""
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ConfigError(f"{path}: unknown kind of file; one that ends in {', '.join(FORMATS)} is needed")
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file")
    match path.suffix:
        case ".jsonl":
            return JsonLines(path)
        case ".parquet":
            return Parquet(path)
    return Npz(path)


def file_digest(path: str | Path) -> str:
    """Return what tells a file from another or an earlier one: size, time of change, and its ends."""
    path = Path(path)
    size, digest = path.stat().st_size, hashlib.blake2b(digest_size=16)
    digest.update(f"{size} {path.stat().st_mtime_ns}".encode())
    with path.open("rb") as file:
        digest.update(file.read(_SAMPLE_BYTES))
        file.seek(max(size - _SAMPLE_BYTES, 0))
        digest.update(file.read())
    return digest.hexdigest()


class JsonLines:
    """One JSON object per line; empty lines are passed over."""

    unit = "bytes"

    def __init__(self, path: Path) -> None:
        self.path, self.total = path, path.stat().st_size

    def rows(self, start: Position) -> Iterator[Placed]:
        with self.path.open("rb") as file:
            file.seek(start.offset)
            for number, line in enumerate(file, start.row + 1):
                start = Position(number, start.offset + len(line))
                if line.strip():
                    yield Placed(_parse_line(line), f"{self.path}:{number}", start)


class Parquet:
    """A Parquet file."""

    unit = "rows"

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        self.path = path
        try:
            self.file = pyarrow.parquet.ParquetFile(path)
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{path}: not a Parquet file ({_first_line(error)})") from None
        self.total = self.file.metadata.num_rows
        if "id" not in self.file.schema_arrow.names:
            raise DataError(f"{path}: has the columns {', '.join(self.file.schema_arrow.names)}; id is needed")

    def rows(self, start: Position) -> Iterator[Placed]:
        import pyarrow

        sizes = [self.file.metadata.row_group(i).num_rows for i in range(self.file.num_row_groups)]
        ends = np.cumsum(sizes)
        first = int(np.searchsorted(ends, start.row, side="right"))
        groups = list(range(first, len(sizes)))
        at = int(ends[first - 1]) if first else 0
        try:
            for batch in self.file.iter_batches(_CHUNK_ROWS, row_groups=groups):
                for values in _mappings(batch):
                    if at >= start.row:
                        yield Placed(_row(values), f"{self.path}: row {at + 1}", Position(at + 1, at + 1))
                    at += 1
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{self.path}: cannot be read after row {at} ({_first_line(error)})") from None


class Npz:
    """A NumPy archive."""

    unit = "rows"

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with np.load(path, allow_pickle=False) as arrays:
                self._arrays = {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not an npz file of plain arrays ({_first_line(error)})") from None
        missing = [name for name in ("ids", "vectors") if name not in self._arrays]
        lengths = {name: len(array) if array.ndim else None for name, array in self._arrays.items()}
        if missing or len(set(lengths.values())) > 1:
            raise DataError(f"{path}: has arrays of the lengths {lengths}; ids and vectors of equal lengths are needed")
        self.total = len(self._arrays["ids"])

    def rows(self, start: Position) -> Iterator[Placed]:
        for i in range(start.row, self.total):
            values = {"id": self._arrays["ids"][i].item(), "vector": self._arrays["vectors"][i]}
            values |= {n: a[i].tolist() for n, a in self._arrays.items() if n not in ("ids", "vectors")}
            yield Placed(_row(values), f"{self.path}: row {i + 1}", Position(i + 1, i + 1))


def _parse_line(line: bytes) -> Row | BadRow:
    try:
        values = json.loads(line.decode("utf-8"))
    except RecursionError:
        return BadRow("nested too deep")
    except ValueError as error:
        return BadRow(f"not JSON ({_first_line(error)})")
    if not isinstance(values, dict):
        return BadRow(f"a {type(values).__name__} where an object with id and vector or text is needed")
    return _row(values)


def _row(values: Mapping[str, Any]) -> Row | BadRow:
    id = values.get("id")
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    if not isinstance(id, str):
        return BadRow("no id" if id is None else f"the id {id!r} is neither a string nor a whole number")
    metadata = values.get("metadata")
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except ValueError as error:
            return BadRow(f"metadata is not JSON ({_first_line(error)})")
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict):
        return BadRow(f"metadata is a {type(metadata).__name__}; an object is needed")
    others = {key: _plain(value) for key, value in values.items() if key not in ("id", "vector", "metadata")}
    if twice := sorted(others.keys() & metadata.keys()):
        return BadRow(f"{twice[0]!r} stands beside metadata and within it; leave one of them out")
    return Row(id, values.get("vector"), metadata | others)


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, date | time) else value


def _mappings(batch: Any) -> Iterator[dict[str, Any]]:
    names = [name for name in batch.schema.names if name != "vector"]
    columns = [batch.column(name).to_pylist() for name in names]
    vectors = _vectors(batch.column("vector")) if "vector" in batch.schema.names else None
    for i in range(len(batch)):
        values = {name: column[i] for name, column in zip(names, columns, strict=True)}
        yield values if vectors is None else values | {"vector": vectors[i]}


def _vectors(column: Any) -> list[Any]:
    """Return the rows of a list column as arrays, without a Python object per number."""
    import pyarrow.compute
    import pyarrow.types as kinds

    if not (kinds.is_list(column.type) or kinds.is_large_list(column.type) or kinds.is_fixed_size_list(column.type)):
        return column.to_pylist()
    there = column.is_valid().to_numpy(zero_copy_only=False)
    counts = pyarrow.compute.call_function("list_value_length", [column])
    lengths = counts.fill_null(0).to_numpy(zero_copy_only=False)
    flat = column.flatten().to_numpy(zero_copy_only=False)
    parts = np.split(flat, np.cumsum(lengths)[:-1])
    return [part if is_there else None for part, is_there in zip(parts, there, strict=True)]


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
