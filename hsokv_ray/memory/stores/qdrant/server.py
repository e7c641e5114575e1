"""ServerEngine: a collection on a Qdrant server, through its client. Writes wait until the server has applied them."""

import ipaddress
import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

from hsokv_ray.errors import ConfigError, StoreError
from hsokv_ray.memory.stores.config import QdrantConfig
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

_CHUNK_POINTS = 500
_CHUNK_BYTES = 8 * 2**20
"""A server refuses requests above 32 MiB by default."""
_CHUNK_QUERIES = 128
_CHUNK_IDS = 1000
_POLL_S = 0.25


class ServerEngine:
    """See `Engine`."""

    name = "qdrant-server"
    words = Words(filter=models.Filter, field=models.FieldCondition, match_any=models.MatchAny)

    def __init__(self, config: QdrantConfig) -> None:
        assert config.url is not None
        self._config = config
        self._collection = config.collection
        self._url = check_url(config.url)
        self._client = _connect(config)
        self._known_dim: int | None = None
        try:
            self._look_up()
        except BaseException:
            self._client.close()
            raise

    @property
    def dim(self) -> int | None:
        """Another client may have made the collection since, so a missing one is looked for again."""
        if self._known_dim is None:
            self._look_up()
        return self._known_dim

    def _look_up(self) -> None:
        with self._calls("reach the server"):
            if not self._client.collection_exists(self._collection):
                return
            vectors = self._client.get_collection(self._collection).config.params.vectors
        if not isinstance(vectors, models.VectorParams):
            raise ConfigError(f"qdrant {self._where}: it has several named vectors; use another collection")
        metric = {name: metric for metric, name in DISTANCES.items()}.get(vectors.distance.value)
        check_made_with(
            self._where, metric or vectors.distance.value, vectors.size, self._config.metric, self._config.dim
        )
        self._known_dim = vectors.size

    def create(self, dim: int) -> None:
        params = models.VectorParams(size=dim, distance=models.Distance(DISTANCES[self._config.metric]))
        hnsw = models.HnswConfigDiff(m=HNSW_M, ef_construct=HNSW_EF_CONSTRUCT)
        with self._calls("make the collection"):
            try:
                self._client.create_collection(self._collection, vectors_config=params, hnsw_config=hnsw)
            except UnexpectedResponse as error:
                if error.status_code != 409:  # another client was faster
                    raise
        self._look_up()

    def upsert(self, points: list[Point]) -> None:
        with self._calls("write"):
            for chunk in in_chunks(points, _CHUNK_POINTS, _CHUNK_BYTES):
                batch = [models.PointStruct(id=str(p.id), vector=p.vector, payload=p.payload) for p in chunk]
                self._client.upsert(self._collection, batch, wait=True)

    def search(self, queries: np.ndarray, limit: int, filter: Any | None, *, exact: bool) -> list[list[Scored]]:
        params = models.SearchParams(exact=True) if exact else models.SearchParams(hnsw_ef=max(HNSW_EF, limit))
        requests = [
            models.QueryRequest(query=row, limit=limit, filter=filter, params=params, with_payload=RETURNED)
            for row in queries.tolist()
        ]
        found: list[Any] = []
        with self._calls("search"):
            for start in range(0, len(requests), _CHUNK_QUERIES):
                chunk = requests[start : start + _CHUNK_QUERIES]
                found += self._client.query_batch_points(self._collection, chunk)
        return [[Scored(point.payload, point.score) for point in response.points] for response in found]

    def retrieve(self, ids: list[UUID]) -> list[Stored]:
        return self._retrieve(ids, with_payload=RETURNED, with_vectors=True)

    def existing(self, ids: list[UUID]) -> list[UUID]:
        return [point.id for point in self._retrieve(ids, with_payload=False, with_vectors=False)]

    def _retrieve(self, ids: list[UUID], **options: Any) -> list[Stored]:
        points: list[Any] = []
        with self._calls("read"):
            for start in range(0, len(ids), _CHUNK_IDS):
                chunk = [str(id) for id in ids[start : start + _CHUNK_IDS]]
                points += self._client.retrieve(self._collection, chunk, **options)
        return [_stored(point) for point in points]

    def delete(self, ids: list[UUID]) -> None:
        with self._calls("write"):
            for start in range(0, len(ids), _CHUNK_IDS):
                chunk: list[Any] = [str(id) for id in ids[start : start + _CHUNK_IDS]]
                self._client.delete(self._collection, models.PointIdsList(points=chunk), wait=True)

    def delete_where(self, filter: Any) -> None:
        with self._calls("write"):
            self._client.delete(self._collection, models.FilterSelector(filter=filter), wait=True)

    def count(self, filter: Any | None) -> int:
        with self._calls("count"):
            return self._client.count(self._collection, count_filter=filter, exact=True).count

    def scroll(self, filter: Any | None, limit: int, offset: UUID | None) -> tuple[list[Stored], UUID | None]:
        with self._calls("read"):
            points, after = self._client.scroll(
                self._collection,
                scroll_filter=filter,
                limit=limit,
                offset=None if offset is None else str(offset),
                with_payload=RETURNED,
                with_vectors=True,
            )
        return [_stored(point) for point in points], None if after is None else UUID(str(after))

    def index_field(self, field: str) -> None:
        with self._calls("write"):
            kind = models.PayloadSchemaType.KEYWORD
            self._client.create_payload_index(self._collection, field, kind, wait=True)

    def optimize(self) -> None:
        """The server optimises by itself; this waits until it has nothing to do."""
        while (status := self._info().status) == models.CollectionStatus.YELLOW:
            time.sleep(_POLL_S)
        if status == models.CollectionStatus.RED:
            raise StoreError(f"qdrant {self._where}: the server says that an optimisation failed; read its log")

    def details(self) -> dict[str, Any]:
        info = self._info()
        return {"segments": info.segments_count, "indexed_vectors": info.indexed_vectors_count or 0}

    def disk_bytes(self) -> None:
        return None

    def close(self) -> None:
        self._client.close()

    def _info(self) -> models.CollectionInfo:
        with self._calls("read"):
            return self._client.get_collection(self._collection)

    @property
    def _where(self) -> str:
        return f"{self._url} collection {self._collection!r}"

    @contextmanager
    def _calls(self, action: str) -> Iterator[None]:
        try:
            yield
        except UnexpectedResponse as error:
            hint = "; set the API key" if error.status_code in (401, 403) else ""
            text = " ".join(error.content.decode(errors="replace").split())[:500]
            raise StoreError(f"qdrant {self._where}: cannot {action}: {error.status_code} {text}{hint}") from None
        except (ApiException, OSError) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise StoreError(f"qdrant {self._where}: cannot {action}: {text}; is the server up?") from None


def check_url(url: str) -> str:
    """Return `url` without a user and a password in it, for messages. Raises `ConfigError`."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise ConfigError("qdrant: the url is not an address; http://host:6333 or https://host:6333 is needed")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _connect(config: QdrantConfig) -> QdrantClient:
    parts = urlsplit(config.url or "")
    key = os.environ.get(config.api_key_env) or None
    if key and parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        warnings.warn(
            f"qdrant: the API key of {config.api_key_env} goes unencrypted to {parts.hostname}; use https",
            UserWarning,
            stacklevel=5,
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
        return QdrantClient(url=config.url, api_key=key, timeout=math.ceil(config.timeout_s), check_compatibility=False)


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _stored(point: Any) -> Stored:
    return Stored(UUID(str(point.id)), point.payload, point.vector)
