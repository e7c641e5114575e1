"""open_store: a configuration or a URI becomes an open store."""

from hsokv_ray.errors import ConfigError
from hsokv_ray.memory.stores.base import VectorStore
from hsokv_ray.memory.stores.config import (
    FaissConfig,
    LanceConfig,
    QdrantConfig,
    SharedConfig,
    StoreConfig,
    parse_store_uri,
)


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
        case SharedConfig():
            return _open_shared(config)
    raise AssertionError(config)


def _open_shared(config: SharedConfig) -> VectorStore:
    from hsokv_ray.memory.shared import connect

    memory = connect(config.memory, config.collection, consistency=config.consistency)
    for name, asked, there in (("metric", config.metric, memory.metric), ("dim", config.dim, memory.dim)):
        if name in config.model_fields_set and there not in (None, asked):
            memory.close()
            raise ConfigError(f"memory {config.memory!r}: {name} {asked} was asked for, it has {there}; leave it out")
    return memory
