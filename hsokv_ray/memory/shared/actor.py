"""The Ray actors of a shared memory: thin shells around `ShardService` and `ReplicaService`.

Three groups of threads keep reads, writes and readers that wait for news apart. Plain threads, not asyncio: a call
costs less, and the work waits for disks and FAISS, not for sockets.
"""

import os
import socket
import threading
import time
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
_GAUGES_EVERY_S = 5
GROUPS = {"read": 4, "write": 16, "wait": 128}
"""Threads each. Writers wait together for one flush of the disk; every reader has a waiting thread most of the time."""

_OPTIONS: dict[str, Any] = {
    "num_cpus": 0,
    "max_restarts": -1,
    "max_task_retries": 0,
    "concurrency_groups": GROUPS,
}


class Shell:
    """What both kinds of actor share: metrics, and the end of a writer that was replaced."""

    def __init__(self, service: ShardService | ReplicaService, memory: str, shard: int, role: str) -> None:
        self._service = service
        self._metrics = _Metrics(memory, shard, role)
        threading.Thread(target=self._keep_gauges, name="gauges", daemon=True).start()

    def run(self, method: str, *args: Any) -> Any:
        """Run `method` of the service."""
        start = time.perf_counter()
        try:
            return getattr(self._service, method)(*args)
        except StoreError as error:
            if str(error).startswith("fenced"):
                exit_actor()  # and not a restart: the shard has another writer
            raise
        finally:
            if method != "update":
                self._metrics.count(method, time.perf_counter() - start)

    def _keep_gauges(self) -> None:
        while True:
            self._metrics.gauge(self._service.status())
            time.sleep(_GAUGES_EVERY_S)


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


class _Actor:
    """The methods that clients call; `read`, `write` and `wait` run a method of the service in their threads."""

    _service: ShardService | ReplicaService
    _shell: Shell

    @ray.method(concurrency_group="wait")
    def describe(self) -> ShardInfo:
        """Introduce this actor; every version of it has this method."""
        return introduce(self._service.config.model_dump_json(), self._service.shard)

    @ray.method(concurrency_group="read")
    def read(self, method: str, *args: Any) -> Any:
        return self._shell.run(method, *args)

    @ray.method(concurrency_group="write")
    def write(self, method: str, *args: Any) -> Any:
        return self._shell.run(method, *args)

    @ray.method(concurrency_group="wait")
    def wait(self, method: str, *args: Any) -> Any:
        return self._shell.run(method, *args)


@ray.remote(**_OPTIONS)
class ShardActor(_Actor):
    """The single writer of one shard. A restart replays its log; a newer one fences it off."""

    def __init__(self, root: str, shard: int) -> None:
        self._service = ShardService(root, shard)
        self._shell = Shell(self._service, self._service.config.name, shard, "writer")


@ray.remote(**_OPTIONS)
class ReplicaActor(_Actor):
    """Answers reads of one shard from a copy that follows the writer; it goes on while the writer is away."""

    def __init__(self, memory: str, shard: int) -> None:
        self._service = ReplicaService(memory, shard)
        self._shell = Shell(self._service, memory, shard, "replica")


def introduce(memory: str, shard: int) -> ShardInfo:
    """Return who answers here."""
    return ShardInfo(
        protocol=PROTOCOL,
        package_version=package_version("hsokv_ray"),
        memory=memory,
        shard=shard,
        node_id=ray.get_runtime_context().get_node_id(),
        hostname=socket.gethostname(),
        pid=os.getpid(),
    )
