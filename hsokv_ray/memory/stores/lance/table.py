"""The table behind a LanceStore: its columns, how a batch becomes rows, and how rows become records."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from hsokv_ray.errors import ConfigError
from hsokv_ray.memory.stores.facets import facets
from hsokv_ray.memory.stores.types import Metric, Record, Rows

FORMAT = 1
_NAME = b"hsokv"


def table_schema(metric: Metric, dim: int) -> pa.Schema:
    """Return the columns; metric and dimension are recorded beside them."""
    columns = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
        pa.field("metadata", pa.large_string(), nullable=False),
        pa.field("terms", pa.list_(pa.string()), nullable=False),
        pa.field("number_keys", pa.list_(pa.string()), nullable=False),
        pa.field("number_values", pa.list_(pa.float64()), nullable=False),
    ]
    made_with = json.dumps({"format": FORMAT, "metric": metric, "dim": dim})
    return pa.schema(columns, metadata={_NAME: made_with.encode()})


def check_schema(name: str, schema: pa.Schema, metric: Metric, dim: int | None) -> int:
    """Return the dimension of a table that was made by `table_schema`. Raises `ConfigError` for any other."""
    try:
        made_with = json.loads((schema.metadata or {})[_NAME])
        found_format, found_metric, found_dim = made_with["format"], made_with["metric"], made_with["dim"]
    except (KeyError, ValueError, TypeError):
        raise ConfigError(f"lancedb {name}: that table was not made by hsokv_ray; give another table=") from None
    if found_format != FORMAT:
        raise ConfigError(f"lancedb {name}: it has format {found_format!r}; this version reads {FORMAT}")
    if found_metric != metric:
        raise ConfigError(
            f"lancedb {name}: it was made with metric {found_metric}, not {metric}; "
            f"open it with metric={found_metric}, or give another table="
        )
    if dim is not None and found_dim != dim:
        raise ConfigError(
            f"lancedb {name}: it was made for {found_dim} dimensions, not {dim}; leave dim out, or give another table="
        )
    return found_dim


def to_table(rows: Rows, schema: pa.Schema) -> pa.Table:
    """Return a batch as rows of the table."""
    found = [facets(json.loads(text)) for text in rows.metadata]
    dim = rows.vectors.shape[1]
    columns = {
        "id": pa.array(rows.ids, pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(rows.vectors.ravel()), dim),
        "metadata": pa.array([text.decode() for text in rows.metadata], pa.large_string()),
        "terms": pa.array([each.terms for each in found], pa.list_(pa.string())),
        "number_keys": pa.array([list(each.numbers) for each in found], pa.list_(pa.string())),
        "number_values": pa.array([list(each.numbers.values()) for each in found], pa.list_(pa.float64())),
    }
    return pa.table(columns, schema=schema)


def to_records(table: pa.Table) -> Iterator[Record]:
    """Yield the records of rows with id, vector and metadata."""
    if not table.num_rows:
        return
    table = table.combine_chunks()
    vectors: Any = table["vector"].chunk(0)
    matrix = np.array(vectors.flatten().to_numpy()).reshape(table.num_rows, -1)
    texts = table["metadata"].to_pylist()
    for i, id in enumerate(table["id"].to_pylist()):
        yield Record(id, matrix[i], json.loads(texts[i]))
