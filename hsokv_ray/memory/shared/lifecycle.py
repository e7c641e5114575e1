"""Start, find, restart and stop the actors of a memory. Its files outlive them; nothing here deletes data.

start_memory(MemoryConfig(name="notes", root="~/memory", num_shards=2))
memory_status("notes")
restart_memory("notes")           # after an upgrade: the actors run the code they were started with
stop_memory("notes")
"""

import contextlib
import time
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hsokv_ray.config import differences
from hsokv_ray.errors import ConfigError, StoreError
from hsokv_ray.memory.shared.actor import ReplicaActor, ShardActor
from hsokv_ray.memory.shared.config import MemoryConfig, claim_folder, read_folder
from hsokv_ray.memory.shared.links import Link, actor_name, find_actor, read_config
from hsokv_ray.runtime import NAMESPACE, connect

_START_TIMEOUT_S = 120.0


def start_memory(config: MemoryConfig) -> MemoryConfig:
    """Start the memory of `config`, or find it running with the same settings; returns when it answers.

    Raises:
        ConfigError: its folder, or the running memory of that name, has other settings.
        StoreError: it runs in another version, or does not come up.
    """
    connect()
    running = running_config(config.name)
    if running is not None:
        if changed := differences(running.model_dump(), config.model_dump()):
            raise ConfigError(
                f"memory {config.name!r} runs already with other settings ({'; '.join(changed)}); "
                f"use those, another name, or first: hsokv memory stop {config.name}"
            )
        return running
    claim_folder(config)
    return _start(config)


def running_config(name: str) -> MemoryConfig | None:
    """Return the settings of the running memory `name`; None where none runs."""
    try:
        find_actor(actor_name(name, 0), name)
    except StoreError:
        return None
    return read_config(Link(name, 0, patience_s=_START_TIMEOUT_S).describe())


def stop_memory(name: str) -> bool:
    """Flush and end the actors of `name`; return whether it ran."""
    connect()
    handles = _handles(name)
    for handle in handles:
        if not hasattr(handle, "write"):  # of another version: its log has what it acknowledged
            continue
        try:
            ray.get(handle.write.remote("close"), timeout=60)
        except RayActorError:  # already gone
            continue
        except GetTimeoutError:
            raise StoreError(f"memory {name!r} did not close within 60 s; it may be busy: try again") from None
    for handle in handles:
        ray.kill(handle, no_restart=True)
    _wait_gone(name)
    return bool(handles)


def restart_memory(name: str, root: str | None = None) -> MemoryConfig:
    """End the actors of `name` and start them anew with the code of this process.

    Args:
        root: its folder; needed only where no actor of it answers.
    """
    connect()
    if root is None:
        try:
            root = read_config(ray.get(find_actor(actor_name(name, 0), name).describe.remote(), timeout=30)).root
        except (RayActorError, GetTimeoutError, ValueError) as error:
            raise StoreError(f"memory {name!r} does not answer ({error}); say where it is: --root DIR") from None
    stop_memory(name)
    return _start(read_folder(root))


def memory_status(name: str) -> list[dict[str, Any]]:
    """Return one row per actor: role, shard, node, process, vectors, bytes, queue."""
    connect()
    config = read_config(Link(name, 0).describe())
    rows = []
    for shard in range(config.num_shards):
        for replica in (None, *range(config.num_replicas)):
            link = Link(name, shard, replica, patience_s=10)
            info = link.describe()
            role = "writer" if replica is None else f"replica {replica}"
            place = {"shard": shard, "role": role, "host": info.hostname, "pid": info.pid}
            rows.append(place | link.call("status") | {"version": info.package_version})
    return rows


def _start(config: MemoryConfig) -> MemoryConfig:
    options: dict[str, Any] = {"namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    for shard in range(config.num_shards):
        ShardActor.options(  # type: ignore[attr-defined]
            name=actor_name(config.name, shard),
            scheduling_strategy="SPREAD" if config.shared_root else here,
            **options,
        ).remote(config.root, shard)
    links = [Link(config.name, shard, patience_s=_START_TIMEOUT_S) for shard in range(config.num_shards)]
    for link in links:
        link.describe()
    for shard in range(config.num_shards):
        for replica in range(config.num_replicas):
            ReplicaActor.options(  # type: ignore[attr-defined]
                name=actor_name(config.name, shard, replica), scheduling_strategy="SPREAD", **options
            ).remote(config.name, shard)
    return config


def _handles(name: str) -> list[Any]:
    """Return every actor of `name`: writers first."""
    prefix = f"memory/{name}/"
    listed: list[Any] = ray.util.list_named_actors(all_namespaces=True)
    names = [each["name"] for each in listed if each["namespace"] == NAMESPACE and each["name"].startswith(prefix)]
    found = []
    for each in sorted(names, key=lambda each: each.count("/")):
        with contextlib.suppress(StoreError):  # it ended since it was listed
            found.append(find_actor(each, name))
    return found


def _wait_gone(name: str) -> None:
    end = time.monotonic() + 30
    while _handles(name):
        if time.monotonic() > end:
            raise StoreError(f"the actors of memory {name!r} did not end within 30 s; look: ray list actors")
        time.sleep(0.05)
