"""One interface to vectors with metadata, three engines behind it: FAISS, Qdrant, LanceDB.

from hsokv_ray.memory.stores import field, open_store

with open_store("faiss:memory/notes") as store:
    store.upsert(ids, vectors, metadata)
    [hits] = store.query(vector, top_k=5, filter=field("year") >= 2000)
"""

from hsokv_ray.memory.stores.base import VectorStore
from hsokv_ray.memory.stores.config import (
    FaissConfig,
    LanceConfig,
    QdrantConfig,
    SharedConfig,
    StoreConfig,
    parse_store_uri,
)
from hsokv_ray.memory.stores.filters import Filter, field, matches, parse_filter
from hsokv_ray.memory.stores.opening import open_store
from hsokv_ray.memory.stores.types import Hit, Metric, Page, Record, StoreStats

__all__ = [
    "FaissConfig",
    "Filter",
    "Hit",
    "LanceConfig",
    "Metric",
    "Page",
    "QdrantConfig",
    "Record",
    "SharedConfig",
    "StoreConfig",
    "StoreStats",
    "VectorStore",
    "field",
    "matches",
    "open_store",
    "parse_filter",
    "parse_store_uri",
]
