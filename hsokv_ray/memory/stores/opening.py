"""open_store: a configuration or a URI becomes an open store."""

from hsokv_ray.memory.stores.base import VectorStore
from hsokv_ray.memory.stores.config import FaissConfig, LanceConfig, QdrantConfig, StoreConfig, parse_store_uri


def open_store(store: str | StoreConfig) -> VectorStore:
    """Open the store of a URI or a configuration; it is made if missing.

    Raises:
        ConfigError: the URI is wrong, an engine's package is missing, or the store was made with another metric or
            dimension.
        StoreError: it is damaged, or another process holds it.
    """
    config = parse_store_uri(store) if isinstance(store, str) else store
    match config:
        case FaissConfig():
            from hsokv_ray.memory.stores.lsm.store import FaissStore

            return FaissStore(config)
        case QdrantConfig():
            from hsokv_ray.memory.stores.qdrant.store import open_qdrant

            return open_qdrant(config)
        case LanceConfig():
            from hsokv_ray.memory.stores.lance.store import LanceStore

            return LanceStore(config)
    raise AssertionError(config)
