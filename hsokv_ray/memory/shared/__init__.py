"""One memory for every job, trainer and server of a cluster: durable shards behind Ray actors.

from hsokv_ray.memory.shared import MemoryConfig, connect, start_memory

start_memory(MemoryConfig(name="notes", root="~/memory"))     # or: hsokv memory start notes --root ~/memory
memory = connect("notes", collection="papers")                # in any process of the cluster
memory.upsert(ids, vectors, metadata)
[hits] = memory.query(vector, top_k=5)
"""

from hsokv_ray.memory.shared.client import MemoryClient, SearchReply, connect
from hsokv_ray.memory.shared.config import MemoryConfig
from hsokv_ray.memory.shared.lifecycle import memory_status, restart_memory, start_memory, stop_memory
from hsokv_ray.memory.shared.tenants import Tenants

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
