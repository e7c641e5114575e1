"""EdgeEngine: Qdrant's own segment engine in this process, in a folder with one owner.

<path>/lock                 held while the store is open
<path>/engine/store.json    metric and dimension
<path>/engine/shard/        Qdrant's files; a write is on disk when it returns
"""

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import UUID

import numpy as np

from hsokv_ray.errors import ConfigError, StoreError
from hsokv_ray.manifest import flush_folder
from hsokv_ray.memory.stores.qdrant.engine import (
    DISTANCES,
    HNSW_EF,
    HNSW_EF_CONSTRUCT,
    HNSW_M,
    Scored,
    Stored,
    check_made_with,
)
from hsokv_ray.memory.stores.qdrant.filters import Words
from hsokv_ray.memory.stores.qdrant.payload import RETURNED, Point, in_chunks
from hsokv_ray.memory.stores.types import Metric

try:
    import qdrant_edge as q
except ImportError as error:
    raise ConfigError('qdrant in a folder needs qdrant-edge-py: pip install "hsokv_ray[qdrant-edge]"') from error

FORMAT = 1
OPTIMIZE_AFTER = 10_000
"""Changed points after which the index is brought up to date, or a tenth of the store where that is more."""
_CHUNK_POINTS = 1000
_CHUNK_BYTES = 64 * 2**20


class EdgeEngine:
    """See `Engine`. Calls from several threads take turns: the engine holds the interpreter's lock anyway."""

    name = "qdrant-edge"
    words = Words(filter=q.Filter, field=q.FieldCondition, match_any=q.MatchAny)

    def __init__(self, path: str, metric: Metric, dim: int | None) -> None:
        self._path = Path(path).expanduser().absolute()
        self._metric: Metric = metric
        self._mutex = threading.RLock()
        self._shard: q.EdgeShard | None = None
        self._dim: int | None = None
        self._num_changed = 0
        self._lock = _own(self._path)
        try:
            if (self._path / "engine").exists():
                self._dim = _stored_dim(self._path, metric, dim)
                self._load()
        except BaseException:
            self._lock.close()
            raise

    @property
    def dim(self) -> int | None:
        return self._dim

    def create(self, dim: int) -> None:
        """Built aside and renamed, so that what is there is whole."""
        draft = self._path / "creating"
        shutil.rmtree(draft, ignore_errors=True)
        with self._calls("create"):
            draft.mkdir()
            q.EdgeShard.create(str(draft / "shard"), _shard_config(self._metric, dim)).close()
            with (draft / "store.json").open("w") as file:
                json.dump({"format": FORMAT, "metric": self._metric, "dim": dim}, file)
                file.flush()
                os.fsync(file.fileno())
            draft.rename(self._path / "engine")
            flush_folder(self._path)
        self._load()
        self._dim = dim

    def _load(self) -> None:
        with self._calls("open"):
            self._shard = q.EdgeShard.load(str(self._path / "engine" / "shard"))
            info = self._shard.info()
            self._num_changed = info.points_count - info.indexed_vectors_count

    def upsert(self, points: list[Point]) -> None:
        with self._calls("write") as shard:
            for chunk in in_chunks(points, _CHUNK_POINTS, _CHUNK_BYTES):
                shard.update(q.UpdateOperation.upsert_points([q.Point(p.id, p.vector, p.payload) for p in chunk]))
            self._written(shard, len(points))

    def search(self, queries: np.ndarray, limit: int, filter: Any | None, *, exact: bool) -> list[list[Scored]]:
        params = q.SearchParams(exact=True) if exact else q.SearchParams(hnsw_ef=max(HNSW_EF, limit))
        requests = [
            q.QueryRequest(limit=limit, query=q.Query.Nearest(row), filter=filter, params=params, with_payload=RETURNED)
            for row in queries.tolist()
        ]
        with self._calls("search") as shard:
            found = shard.query_batch(q.QueryBatchRequest(requests))
        return [[Scored(point.payload, point.score) for point in points] for points in found]

    def retrieve(self, ids: list[UUID]) -> list[Stored]:
        with self._calls("read") as shard:
            return [
                _stored(point) for point in shard.retrieve(_point_ids(ids), with_payload=RETURNED, with_vector=True)
            ]

    def existing(self, ids: list[UUID]) -> list[UUID]:
        with self._calls("read") as shard:
            return [_uuid(p.id) for p in shard.retrieve(_point_ids(ids), with_payload=False, with_vector=False)]

    def delete(self, ids: list[UUID]) -> None:
        with self._calls("write") as shard:
            shard.update(q.UpdateOperation.delete_points(_point_ids(ids)))
            self._written(shard, len(ids))

    def delete_where(self, filter: Any) -> None:
        with self._calls("write") as shard:
            before = shard.info().points_count
            shard.update(q.UpdateOperation.delete_points_by_filter(filter))
            self._written(shard, before - shard.info().points_count)

    def count(self, filter: Any | None) -> int:
        with self._calls("count") as shard:
            return shard.count(q.CountRequest(exact=True, filter=filter))

    def scroll(self, filter: Any | None, limit: int, offset: UUID | None) -> tuple[list[Stored], UUID | None]:
        request = q.ScrollRequest(offset=offset, limit=limit, filter=filter, with_payload=RETURNED, with_vector=True)
        with self._calls("read") as shard:
            points, after = shard.scroll(request)
        return [_stored(point) for point in points], None if after is None else _uuid(after)

    def index_field(self, field: str) -> None:
        with self._calls("write") as shard:
            shard.update(q.UpdateOperation.create_field_index(field, q.PayloadSchemaType.Keyword))
            shard.flush()

    def optimize(self) -> None:
        with self._calls("optimise") as shard:
            shard.optimize()
            shard.flush()
            self._num_changed = 0

    def details(self) -> dict[str, Any]:
        with self._calls("read") as shard:
            info = shard.info()
        return {"segments": info.segments_count, "indexed_vectors": info.indexed_vectors_count}

    def disk_bytes(self) -> int:
        files = (path for path in self._path.rglob("*") if path.is_file())
        return sum(path.stat().st_blocks * 512 for path in files)  # blocks: the log's files are mostly holes

    def close(self) -> None:
        with self._mutex:
            shard, self._shard = self._shard, None
            try:
                if shard is not None:
                    shard.flush()
                    shard.close()
            except Exception as error:
                raise self._failed("close", error) from None
            finally:
                self._lock.close()

    def _written(self, shard: Any, num_points: int) -> None:
        """The engine's log is not flushed by a write: without this a power cut could take it."""
        shard.flush()
        self._num_changed += num_points
        if self._num_changed >= max(OPTIMIZE_AFTER, shard.info().points_count // 10):
            self.optimize()

    @contextmanager
    def _calls(self, action: str) -> Iterator[Any]:
        """The engine raises plain `Exception` for whatever goes wrong in it."""
        with self._mutex:
            try:
                yield self._shard
            except StoreError:
                raise
            except Exception as error:
                raise self._failed(action, error) from None

    def _failed(self, action: str, error: Exception) -> StoreError:
        return StoreError(f"qdrant {self._path}: cannot {action}: {' '.join(str(error).split())}")


def _shard_config(metric: Metric, dim: int) -> q.EdgeConfig:
    return q.EdgeConfig(
        vectors=q.EdgeVectorParams(size=dim, distance=getattr(q.Distance, DISTANCES[metric])),
        hnsw_config=q.HnswIndexConfig(m=HNSW_M, ef_construct=HNSW_EF_CONSTRUCT, full_scan_threshold=10_000),
    )


def _own(path: Path) -> IO[str]:
    """Return the locked lock file of `path`; closing it lets go, and so does the death of the process."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / "lock").open("w")
    except OSError as error:
        raise StoreError(
            f"qdrant {path}: cannot be made ({error.strerror}); give a folder that can be written"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise StoreError(
            f"qdrant {path}: it is open already, here or in another process, and has one owner at a time; "
            "close it there, or run a server and give its url"
        ) from None
    return lock


def _stored_dim(path: Path, metric: Metric, dim: int | None) -> int:
    file = path / "engine" / "store.json"
    try:
        values = json.loads(file.read_text())
        found_format, found_metric, found_dim = values["format"], values["metric"], values["dim"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"qdrant {path}: {file.name} is missing or damaged ({error!r}); restore the folder") from None
    if found_format != FORMAT:
        raise StoreError(f"qdrant {path}: it has format {found_format!r}; this version reads {FORMAT}")
    check_made_with(str(path), found_metric, found_dim, metric, dim)
    return found_dim


def _point_ids(ids: list[UUID]) -> list[int | UUID | str]:
    return list(ids)


def _uuid(id: Any) -> UUID:
    return id if isinstance(id, UUID) else UUID(str(id))


def _stored(point: Any) -> Stored:
    return Stored(_uuid(point.id), point.payload, point.vector)
