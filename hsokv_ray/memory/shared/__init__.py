"""One memory for every job, trainer and server of a cluster: durable shards behind Ray actors.

from hsokv_ray.memory.shared import MemoryConfig, connect, start_memory

start_memory(MemoryConfig(name="notes", root="~/memory"))     # or: hsokv memory start notes --root ~/memory
memory = connect("notes", collection="papers")                # in any process of the cluster
memory.upsert(ids, vectors, metadata)
[hits] = memory.query(vector, top_k=5)
"""

import importlib
from typing import TYPE_CHECKING, Any

from hsokv_ray.memory.shared.config import MemoryConfig
from hsokv_ray.memory.shared.tenants import Tenants

if TYPE_CHECKING:
    from hsokv_ray.memory.shared.client import MemoryClient, SearchReply, connect
    from hsokv_ray.memory.shared.lifecycle import memory_status, restart_memory, start_memory, stop_memory

_MODULES = {
    **dict.fromkeys(("MemoryClient", "SearchReply", "connect"), "client"),
    **dict.fromkeys(("memory_status", "restart_memory", "start_memory", "stop_memory"), "lifecycle"),
}
"""Imported on first use, because a `--help` needs neither Ray nor FAISS."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = [
    "MemoryClient",
    "MemoryConfig",
    "SearchReply",
    "Tenants",
    "connect",
    "memory_status",
    "restart_memory",
    "start_memory",
    "stop_memory",
]
