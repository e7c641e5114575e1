"""LanceStore: a VectorStore on LanceDB, in a folder or an object store.

with LanceStore(LanceConfig(uri="memory/notes")) as store:
    store.upsert(ids, vectors, metadata)          # one commit per call: batches of thousands are best
"""

import base64
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hsokv_ray.errors import ConfigError, DataError, StoreError
from hsokv_ray.memory.stores.base import VectorStore
from hsokv_ray.memory.stores.config import LanceConfig
from hsokv_ray.memory.stores.facets import Predicate
from hsokv_ray.memory.stores.lance.filters import literal, to_sql
from hsokv_ray.memory.stores.lance.table import check_schema, table_schema, to_records, to_table
from hsokv_ray.memory.stores.types import Hit, Metric, Page, Record, Rows, StoreStats

try:
    import lancedb
    from lancedb.index import BTree, IvfFlat, LabelList
    from lancedb.query import ColumnOrdering
except ImportError as error:
    raise ConfigError('lancedb: the package is missing: pip install "hsokv_ray[lancedb]"') from error

OPTIMIZE_AFTER = 64
"""Commits after which fragments are merged, indexes brought up to date and old versions removed."""
KEEP_VERSIONS = timedelta(minutes=1)
"""Readers in other processes may still be at an older version that long."""
RETRAIN_FACTOR = 4
"""The vector index is built anew when the table has grown by this factor since."""
MIN_PROBES = 48
PROBED_SHARE = 8
"""At least one in so many partitions is searched: recall@10 of 1.00 on 38,063 sentence vectors (48 of 100 searched)."""
_VECTOR_INDEX = "vector_ivf_"
_IDS_PER_QUERY = 5000
_DOT_SCALE_BITS = 40


class LanceStore(VectorStore):
    """See `VectorStore`. Search is exact below `config.index_rows`, and approximate (IVF) above, with exact scores.

    Several processes may open one table; let one write.
    """

    driver = "lancedb"

    def __init__(self, config: LanceConfig) -> None:
        super().__init__(config.metric)
        self._config = config
        self._write_lock = threading.Lock()
        self._num_commits = 0
        self._table: Any = None
        self._dim: int | None = None
        self._partitions = 0
        with self._calls("open"):
            self._db = lancedb.connect(_location(config.uri), read_consistency_interval=timedelta(0))
            self._look_up()
        if config.dim is not None and self._dim is None:
            self._create(config.dim)

    @property
    def dim(self) -> int | None:
        """Another process may have made the table since, so a missing one is looked for again."""
        if self._dim is None and not self._closed:
            with self._calls("open"):
                self._look_up()
        return self._dim

    def _look_up(self) -> None:
        if self._config.table not in _table_names(self._db):
            return
        table = self._db.open_table(self._config.table)
        self._dim = check_schema(self._name, table.schema, self.metric, self._config.dim)
        self._table = table
        self._partitions = _num_partitions(table)

    def _create(self, dim: int) -> None:
        schema = table_schema(self.metric, dim)
        with self._calls("make the table"):
            self._db.create_table(self._config.table, schema=schema, exist_ok=True)
            self._look_up()

    def _upsert(self, rows: Rows) -> None:
        dim = rows.vectors.shape[1]
        with self._write_lock:
            if self.dim is None:
                self._create(dim)
            if self._dim != dim:
                raise DataError(f"vectors: got {dim} dimensions; this store has {self._dim}")
            with self._calls("write"):
                merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                merge.execute(to_table(rows, table_schema(self.metric, dim)))
                self._committed()

    def _search(self, queries: np.ndarray, top_k: int, predicate: Predicate | None) -> list[list[Hit]]:
        where = None if predicate is None else to_sql(predicate)
        with self._calls("search"):
            num_rows = self._table.count_rows()
            num_matches = num_rows if where is None else self._table.count_rows(where)
            limit = min(top_k, num_matches)
            if not limit:
                return [[] for _ in queries]
            num_probes = self._num_probes(num_matches, num_rows)
            found = self._nearest(queries, limit, where, num_probes)
            short = [i for i, hits in enumerate(found) if len(hits) < limit]
            if short and num_probes:
                for i, hits in zip(short, self._nearest(queries[short], limit, where, 0), strict=True):
                    found[i] = hits
        return found

    def _num_probes(self, num_matches: int, num_rows: int) -> int:
        """0 is exact, also fastest for few matches. The rarer matches are, the more partitions the nearest are in."""
        if not self._partitions or num_matches < self._config.index_rows:
            return 0
        num_probes = max(MIN_PROBES, self._partitions / PROBED_SHARE) * math.sqrt(num_rows / num_matches)
        return min(self._partitions, math.ceil(num_probes))

    def _nearest(self, queries: np.ndarray, limit: int, where: str | None, num_probes: int) -> list[list[Hit]]:
        scales = _scales(queries) if self.metric == "dot" else np.ones(len(queries), np.float32)
        builder = self._table.search(queries * scales[:, None], vector_column_name="vector")
        builder = builder.distance_type(self.metric).limit(limit).select(["id", "metadata", "_distance"])
        if where is not None:
            builder = builder.where(where, prefilter=True)
        builder = builder.nprobes(num_probes) if num_probes else builder.bypass_vector_index()
        found = builder.to_arrow()
        owner = found["query_index"].to_numpy() if "query_index" in found.column_names else np.zeros(len(found), int)
        distances = found["_distance"].to_numpy().astype(np.float64)
        scores = (_scores(distances, self.metric) / scales[owner]).astype(np.float32)
        hits: list[list[Hit]] = [[] for _ in queries]
        for i, id, score, text in zip(
            owner.tolist(), found["id"].to_pylist(), scores.tolist(), found["metadata"].to_pylist(), strict=True
        ):
            hits[i].append(Hit(id, score, text))
        return [sorted(each, key=lambda hit: (-hit.score, hit.id)) for each in hits]

    def _get(self, ids: list[str]) -> list[Record | None]:
        if self.dim is None:
            return [None] * len(ids)
        records: dict[str, Record] = {}
        with self._calls("read"):
            for condition in _id_conditions(list(dict.fromkeys(ids))):
                records |= {record.id: record for record in to_records(self._rows(condition, _IDS_PER_QUERY))}
        return [records.get(id) for id in ids]

    def _delete(self, ids: list[str]) -> int:
        return sum(self._delete_sql(condition) for condition in _id_conditions(ids))

    def _delete_where(self, predicate: Predicate) -> int:
        return self._delete_sql(to_sql(predicate))

    def _delete_sql(self, where: str) -> int:
        if self.dim is None:
            return 0
        with self._write_lock, self._calls("delete"):
            count = self._table.count_rows(where)
            if count:
                self._table.delete(where)
                self._committed()
        return count

    def _count(self, predicate: Predicate | None) -> int:
        if self.dim is None:
            return 0
        with self._calls("count"):
            return self._table.count_rows(None if predicate is None else to_sql(predicate))

    def _scroll(self, predicate: Predicate | None, page_size: int, cursor: str | None) -> Page:
        """Pages are in the order of ids: whatever is written in between, a cursor stays where it is."""
        conditions = [] if cursor is None else [f"id > {literal(_decode_cursor(cursor))}"]
        if predicate is not None:
            conditions.append(to_sql(predicate))
        if self.dim is None:
            return Page([], None)
        with self._calls("read"):
            records = list(to_records(self._rows(" AND ".join(conditions), page_size + 1, ordered=True)))
        more = len(records) > page_size
        return Page(records[:page_size], _encode_cursor(records[page_size - 1].id) if more else None)

    def _rows(self, where: str, limit: int, *, ordered: bool = False) -> pa.Table:
        builder = self._table.search().select(["id", "vector", "metadata"]).limit(limit)
        if where:
            builder = builder.where(where)
        if ordered:
            builder = builder.order_by([ColumnOrdering(column_name="id", ascending=True, nulls_first=False)])
        return builder.to_arrow()

    def _stats(self) -> StoreStats:
        count = self._count(None)
        details: dict[str, Any] = {}
        if self._table is not None:
            with self._calls("read"):
                details = {"version": self._table.version, "partitions": self._partitions}
        return StoreStats(
            driver=self.driver,
            count=count,
            dim=self.dim,
            metric=self.metric,
            index="IVF_FLAT" if self._partitions else "exact",
            disk_bytes=_disk_bytes(self._config.uri),
            details=details,
        )

    def _optimize(self) -> None:
        with self._write_lock, self._calls("optimise"):
            if self._table is not None:
                self._tidy()

    def _close(self) -> None:
        with self._write_lock:
            self._table = None

    def _committed(self) -> None:
        self._num_commits += 1
        outgrown = max(self._config.index_rows, RETRAIN_FACTOR * self._partitions**2)
        if self._num_commits % OPTIMIZE_AFTER == 0 or self._table.count_rows() >= outgrown:
            self._tidy()

    def _tidy(self) -> None:
        self._table.optimize(cleanup_older_than=KEEP_VERSIONS)
        num_rows = self._table.count_rows()
        if num_rows >= max(self._config.index_rows, RETRAIN_FACTOR * self._partitions**2):
            self._build_indexes(num_rows)

    def _build_indexes(self, num_rows: int) -> None:
        """The number of partitions is part of the index's name, where the next opener finds it."""
        old = [index.name for index in self._table.list_indices()]
        partitions = max(1, math.isqrt(num_rows))
        config = IvfFlat(distance_type=self.metric, num_partitions=partitions)
        self._table.create_index("vector", config=config, name=f"{_VECTOR_INDEX}{partitions}")
        for name in old:
            if name.startswith(_VECTOR_INDEX) and name != f"{_VECTOR_INDEX}{partitions}":
                self._table.drop_index(name)
        if not self._partitions:
            self._table.create_index("id", config=BTree(), name="id_btree")
            self._table.create_index("terms", config=LabelList(), name="terms_labels")
        self._partitions = partitions

    @property
    def _name(self) -> str:
        return f"{self._config.uri} table {self._config.table!r}"

    @contextmanager
    def _calls(self, action: str) -> Iterator[None]:
        try:
            yield
        except (ConfigError, DataError, StoreError):
            raise
        except (ValueError, RuntimeError, OSError) as error:
            text = " ".join(str(error).split())[:500]
            raise StoreError(f"lancedb {self._name}: cannot {action}: {text}") from error


def _location(uri: str) -> str:
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())


def _disk_bytes(uri: str) -> int | None:
    if "://" in uri:
        return None
    return sum(path.stat().st_size for path in Path(_location(uri)).rglob("*") if path.is_file())


def _table_names(db: Any) -> Iterator[str]:
    token = None
    while True:
        page = db.list_tables(page_token=token)
        yield from page.tables
        if not (token := page.page_token):
            return


def _num_partitions(table: Any) -> int:
    names = [index.name for index in table.list_indices() if index.name.startswith(_VECTOR_INDEX)]
    return max((int(name.removeprefix(_VECTOR_INDEX)) for name in names), default=0)


def _scales(queries: np.ndarray) -> np.ndarray:
    """Return a power of two per query, float32 [n]: LanceDB's distance 1 - q.v would round small products away."""
    lengths = np.linalg.norm(queries.astype(np.float64), axis=1)
    bits = _DOT_SCALE_BITS - np.floor(np.log2(np.where(lengths > 0, lengths, 1)))
    return np.exp2(np.clip(bits, -60, 60)).astype(np.float32)


def _scores(distances: np.ndarray, metric: Metric) -> np.ndarray:
    if metric == "l2":
        return -distances
    return np.clip(1 - distances, -1, 1) if metric == "cosine" else 1 - distances


def _id_conditions(ids: list[str]) -> Iterator[str]:
    for start in range(0, len(ids), _IDS_PER_QUERY):
        yield f"id IN ({', '.join(map(literal, ids[start : start + _IDS_PER_QUERY]))})"


def _encode_cursor(id: str) -> str:
    return "after:" + base64.urlsafe_b64encode(id.encode()).decode()


def _decode_cursor(cursor: str) -> str:
    try:
        head, text = cursor[:6], base64.b64decode(cursor[6:].encode("ascii"), altchars=b"-_", validate=True).decode()
    except (ValueError, TypeError, AttributeError):
        head, text = "", ""
    if head != "after:" or not text:
        raise DataError(f"cursor: got {cursor!r}; the cursor of a page of this store is needed")
    return text
