"""Which engine keeps the vectors, and how: a configuration class, or its URI.

faiss:memory/notes?index=hnsw                    a folder on this machine
qdrant:memory/notes                              a folder, Qdrant's engine in this process
qdrant:http://127.0.0.1:6333?collection=notes    a Qdrant server
lancedb:s3://bucket/notes?table=notes            LanceDB, on anything it can write to
shared:notes/papers?consistency=strong           collection `papers` of the memory `notes` of this cluster
"""

from typing import Any, Literal
from urllib.parse import parse_qsl

import pydantic

from hsokv_ray import env
from hsokv_ray.config import Config
from hsokv_ray.errors import ConfigError
from hsokv_ray.memory.stores.types import Metric

FaissIndex = Literal["auto", "flat", "ivf_sq8", "rabitq", "ivfpq", "hnsw"]


class StoreConfig(Config):
    """What every engine needs."""

    metric: Metric = "cosine"
    """How vectors compare: cosine, dot, or l2 (the score is the negative squared distance)."""
    dim: int | None = pydantic.Field(default=None, ge=1)
    """Dimensions of the vectors; None takes those of the first batch."""


class FaissConfig(StoreConfig):
    """FAISS in a folder: a log, a growing exact segment and sealed indexed ones."""

    path: str
    """The folder; made if missing."""
    index: FaissIndex = "auto"
    """How large sealed segments are searched. auto: exact while small, IVF-SQ8 with exact re-scoring above."""
    seal_rows: int = pydantic.Field(default=8192, ge=16)
    """Rows at which the growing segment is sealed."""
    durability: Literal["fsync", "async"] = "fsync"
    """fsync: a write is on disk when it returns. async: within a second; a power cut may take the last one."""
    num_threads: int = pydantic.Field(default=0, ge=0)
    """Threads of one search; 0 takes the CPUs this process may use."""


class QdrantConfig(StoreConfig):
    """Qdrant: its engine in this process (`path`), or a server (`url`)."""

    path: str | None = None
    """The folder of the engine in this process; made if missing. It has one owner at a time."""
    url: str | None = None
    """Address of a server, such as http://127.0.0.1:6333."""
    collection: str = pydantic.Field(default="hsokv", min_length=1)
    """Collection on the server; made if missing."""
    api_key_env: str = env.QDRANT_API_KEY
    """Environment variable with the server's API key."""
    timeout_s: float = pydantic.Field(default=60, gt=0)
    """How long one request to the server may take."""

    @pydantic.model_validator(mode="after")
    def _one_place(self) -> "QdrantConfig":
        if (self.path is None) == (self.url is None):
            raise ValueError("qdrant: give either path (in this process) or url (a server)")
        return self


class LanceConfig(StoreConfig):
    """LanceDB in a folder or an object store."""

    uri: str
    """A folder, or s3://, gs://, az://; credentials come from the environment, as LanceDB documents."""
    table: str = pydantic.Field(default="hsokv", pattern=r"^[A-Za-z0-9_.-]+$")
    """Name of the table; made if missing."""
    index_rows: int = pydantic.Field(default=50_000, ge=256)
    """Rows from which an index is built; below, search is exact."""


class SharedConfig(StoreConfig):
    """A memory that this cluster shares; its metric and dimension are its own."""

    memory: str
    """Its name, as given to `hsokv memory start`."""
    collection: str = "main"
    """The collection; made by its first write."""
    consistency: str = "session"
    """What a read contains: strong, session, bounded(50ms) or eventual."""


_SCHEMES: dict[str, type[StoreConfig]] = {
    "faiss": FaissConfig,
    "qdrant": QdrantConfig,
    "lancedb": LanceConfig,
    "shared": SharedConfig,
}
_PLACES = ("path", "url", "uri", "memory")


def parse_store_uri(uri: str) -> StoreConfig:
    """Return the configuration that `uri` says. Raises `ConfigError`: names the part that is wrong."""
    scheme, colon, rest = uri.partition(":")
    cls = _SCHEMES.get(scheme)
    if not colon or cls is None:
        raise ConfigError(
            f"store {uri!r}: it begins with faiss:, qdrant:, lancedb: or shared:, such as faiss:memory/notes"
        )
    place, _, query = rest.partition("?")
    if not place:
        raise ConfigError(f"store {uri!r}: no place after {scheme}:, such as {scheme}:memory/notes")
    options: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in cls.model_fields or key in _PLACES:
            known = ", ".join(name for name in cls.model_fields if name not in _PLACES)
            raise ConfigError(f"store {uri!r}: unknown option {key!r}; {scheme} has {known}")
        options[key] = value
    try:
        return cls(**_place(scheme, place), **options)
    except ConfigError as error:
        raise ConfigError(f"store {uri!r}: {error}") from None


def _place(scheme: str, place: str) -> dict[str, str]:
    if scheme == "lancedb":
        return {"uri": place}
    if scheme == "shared":
        memory, slash, collection = place.partition("/")
        return {"memory": memory, "collection": collection} if slash else {"memory": memory}
    return {"url" if place.startswith(("http://", "https://")) else "path": place}
