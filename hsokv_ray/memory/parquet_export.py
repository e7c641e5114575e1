"""A store as one Parquet file: columns id, vector (fixed_size_list<float32>), metadata (JSON text).

The file's own metadata, under the key `hsokv_memory`, says format version, metric, dimensions and the fingerprints of
the encoders that made the vectors. The file is written under a temporary name and renamed when it is whole.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hsokv_ray.errors import ConfigError, DataError, StoreError
from hsokv_ray.memory.records import ENCODER
from hsokv_ray.memory.stores.base import VectorStore
from hsokv_ray.memory.stores.types import Record
from hsokv_ray.meter import Meter

FORMAT = 1
KEY = b"hsokv_memory"
_SAMPLE_ROWS = 100


@dataclass(frozen=True)
class Header:
    """What an exported file says about itself."""

    format: int
    metric: str
    dim: int | None
    encoders: list[str]
    """Fingerprints, sorted; "" stands for vectors whose encoder is not known."""


def export_records(store: VectorStore, path: str | Path, *, meter: Meter, batch_size: int = 1000) -> int:
    """Write every record of `store` to `path`; return how many.

    Raises:
        ConfigError: the path cannot be written.
        StoreError: the disk refuses midway; nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            rows = _write(store, file, meter, batch_size)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: the folder {path.parent} is not there; make it, or give another file") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
    return rows


def read_header(path: str | Path) -> Header:
    """Return what the exported file at `path` says about itself. Raises `ConfigError`, `DataError`."""
    import pyarrow
    import pyarrow.parquet

    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file")
    try:
        found = (pyarrow.parquet.read_metadata(path).metadata or {}).get(KEY)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: not a Parquet file ({' '.join(str(error).split())[:200]})") from None
    if found is None:
        raise DataError(f"{path}: was not written by hsokv memory export; use hsokv memory upsert")
    values = json.loads(found)
    if values.get("format") != FORMAT:
        raise DataError(f"{path}: has format {values.get('format')!r}; this version reads {FORMAT}")
    return Header(**values)


def known_encoders(store: VectorStore) -> set[str]:
    """Return the fingerprints found among the first records of `store`; empty where none is known."""
    page = store.scroll(page_size=_SAMPLE_ROWS)
    return {mark for record in page.records if (mark := _mark(record))}


def check_fit(store: VectorStore, *, metric: str, dim: int | None, encoders: Iterable[str], source: str) -> None:
    """Raise `ConfigError` where vectors of this metric, dimension and these encoders do not belong into `store`."""
    if store.metric != metric:
        raise ConfigError(
            f"{source} has the metric {metric} and the target {store.metric}; open it with ?metric={metric}"
        )
    if None not in (dim, store.dim) and store.dim != dim:
        raise ConfigError(f"{source} has vectors of {dim} dimensions and the target of {store.dim}; use another target")
    theirs, ours = {each for each in encoders if each}, known_encoders(store)
    if theirs and ours and theirs != ours:
        raise ConfigError(
            f"{source} has vectors of the encoder {', '.join(sorted(theirs))} and the target of "
            f"{', '.join(sorted(ours))}; they cannot be compared: use another target"
        )


def _write(store: VectorStore, file: Any, meter: Meter, batch_size: int) -> int:
    import pyarrow
    import pyarrow.parquet

    dim, rows, encoders, cursor = store.dim, 0, set(), None
    vector = pyarrow.list_(pyarrow.float32(), dim or 1)
    schema = pyarrow.schema([("id", pyarrow.string()), ("vector", vector), ("metadata", pyarrow.string())])
    # Numbers of vectors hardly repeat: a dictionary of them, or packing them, costs time and saves next to nothing.
    options: dict[str, Any] = {"use_dictionary": False, "compression": {"id": "zstd", "metadata": "zstd"}}
    with pyarrow.parquet.ParquetWriter(file, schema, **options) as writer:
        while True:
            page = store.scroll(page_size=batch_size, cursor=cursor)
            if page.records:
                writer.write_batch(_batch(page.records, schema))
                encoders |= {_mark(record) for record in page.records}
                rows += len(page.records)
                meter.update(rows)
            if (cursor := page.cursor) is None:
                break
        header = Header(FORMAT, store.metric, dim, sorted(encoders))
        writer.add_key_value_metadata({KEY: json.dumps(asdict(header)).encode()})
    return rows


def _batch(records: list[Record], schema: Any) -> Any:
    import pyarrow

    flat = pyarrow.array(np.stack([record.vector for record in records]).reshape(-1), pyarrow.float32())
    texts = [json.dumps(record.metadata, ensure_ascii=False, separators=(",", ":")) for record in records]
    columns = [
        pyarrow.array([record.id for record in records], pyarrow.string()),
        pyarrow.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type),
        pyarrow.array(texts, pyarrow.string()),
    ]
    return pyarrow.record_batch(columns, schema=schema)


def _mark(record: Record) -> str:
    mark = record.metadata.get(ENCODER, "")
    return mark if isinstance(mark, str) else ""
