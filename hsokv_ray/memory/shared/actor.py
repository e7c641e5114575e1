"""The Ray actors of a shared memory: thin shells around `ShardService` and `ReplicaService`."""

import asyncio
import functools
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version as package_version
from typing import Any

import ray
from ray.actor import exit_actor
from ray.util.metrics import Counter, Gauge, Histogram

from hsokv_ray.errors import StoreError
from hsokv_ray.memory.shared.config import PROTOCOL
from hsokv_ray.memory.shared.messages import ShardInfo
from hsokv_ray.memory.shared.replica import ReplicaService
from hsokv_ray.memory.shared.service import ShardService

_LATENCY_MS = [0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
_WAITING_READERS = 1024
WRITER_METHODS: dict[str, str] = {
    **dict.fromkeys(("upsert", "delete", "delete_where", "drop", "optimize", "snapshot", "close"), "write"),
    **dict.fromkeys(("search", "get", "count", "scroll", "version", "exists", "collections", "status"), "read"),
    **dict.fromkeys(("update", "segment_files"), "wait"),
}
"""What clients may call, and the threads it runs in."""
REPLICA_METHODS: dict[str, str] = dict.fromkeys(("search", "get", "count", "scroll", "status"), "read")
_GAUGES_EVERY_S = 5


class Shell:
    """What both kinds of actor share: threads for work, an introduction, metrics."""

    def __init__(self, service: Any, memory: str, shard: int, role: str) -> None:
        self._service = service
        self._threads = {
            "read": ThreadPoolExecutor(4, "read"),
            "write": ThreadPoolExecutor(16, "write"),  # they wait together for one fsync
            "wait": ThreadPoolExecutor(_WAITING_READERS, "wait"),
        }
        self._metrics = _Metrics(memory, shard, role)
        self._gauges: asyncio.Task[None] | None = None

    async def run(self, kind: str, method: str, *args: Any) -> Any:
        """Run `method` of the service in a thread of `kind`."""
        if self._gauges is None:  # a task belongs to the loop that runs, which __init__ does not have
            self._gauges = asyncio.get_running_loop().create_task(self._keep_gauges())
        start = time.perf_counter()
        work: Callable[[], Any] = functools.partial(getattr(self._service, method), *args)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads[kind], work)
        finally:
            if kind != "wait":
                self._metrics.count(method, time.perf_counter() - start)

    async def _keep_gauges(self) -> None:
        while True:
            status = await asyncio.get_running_loop().run_in_executor(self._threads["read"], self._service.status)
            self._metrics.gauge(status)
            await asyncio.sleep(_GAUGES_EVERY_S)


class _Metrics:
    """Numbers for Prometheus, tagged with memory, shard and role."""

    def __init__(self, memory: str, shard: int, role: str) -> None:
        keys = ("memory", "shard", "role")
        tags = {"memory": memory, "shard": str(shard), "role": role}
        self._calls = Counter("hsokv_memory_calls", "Calls answered", tag_keys=(*keys, "method"))
        self._latency = Histogram(
            "hsokv_memory_latency_ms", "Time in the shard", boundaries=_LATENCY_MS, tag_keys=(*keys, "method")
        )
        self._gauges = {
            name: Gauge(f"hsokv_memory_{name}", text, tag_keys=keys)
            for name, text in (
                ("vectors", "Vectors in open collections"),
                ("disk_bytes", "Bytes on disk"),
                ("log_bytes", "Bytes of log that a restart replays"),
                ("queue_bytes", "Bytes of calls being worked on"),
                ("refused", "Calls refused as too many"),
            )
        }
        for metric in (self._calls, self._latency, *self._gauges.values()):
            metric.set_default_tags(tags)

    def count(self, method: str, seconds: float) -> None:
        self._calls.inc(1, {"method": method})
        self._latency.observe(seconds * 1e3, {"method": method})

    def gauge(self, status: dict[str, Any]) -> None:
        for name, gauge in self._gauges.items():
            gauge.set(status[name])


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0)
class ShardActor:
    """The single writer of one shard. A restart replays its log; a newer one fences it off."""

    def __init__(self, root: str, shard: int) -> None:
        self._service = ShardService(root, shard)
        self._shell = Shell(self._service, self._service.config.name, shard, "writer")
        self._shard = shard

    async def describe(self) -> ShardInfo:
        """Introduce this shard; every version of this actor has this method."""
        return introduce(self._service.config.model_dump_json(), self._shard)

    async def call(self, method: str, *args: Any) -> Any:
        """Run a method of `ShardService` that `WRITER_METHODS` names."""
        try:
            return await self._shell.run(WRITER_METHODS[method], method, *args)
        except StoreError as error:
            if str(error).startswith("fenced"):
                exit_actor()  # and not a restart: the shard has another writer
            raise


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=0)
class ReplicaActor:
    """Answers reads of one shard from a copy that follows the writer; it goes on while the writer is away."""

    def __init__(self, memory: str, shard: int) -> None:
        self._service = ReplicaService(memory, shard)
        self._shell = Shell(self._service, memory, shard, "replica")

    async def describe(self) -> ShardInfo:
        """Introduce this replica."""
        return introduce(self._service.config.model_dump_json(), self._service.shard)

    async def call(self, method: str, *args: Any) -> Any:
        """Run a method of `ReplicaService` that `REPLICA_METHODS` names."""
        return await self._shell.run(REPLICA_METHODS[method], method, *args)


def introduce(memory: str, shard: int) -> ShardInfo:
    """Return who answers here."""
    context = ray.get_runtime_context()
    return ShardInfo(
        protocol=PROTOCOL,
        package_version=package_version("hsokv_ray"),
        memory=memory,
        shard=shard,
        node_id=context.get_node_id(),
        hostname=socket.gethostname(),
        pid=os.getpid(),
    )
