"""Connect to Ray, refuse what cannot run, and say why a job that waits is waiting.

connect()
demand = preflight(Demand(num_workers=2, data_cpus=1))
watch = PendingWatch(demand)        # poll() it while waiting, close() it once the workers run
"""

import ipaddress
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hsokv_ray.errors import RunError

NAMESPACE = "hsokv"
LOOPBACK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0, Ray binds every port to 127.0.0.1, on Linux too; `cluster/local.sh` starts its head so."""

_CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")
_LEAST_CPUS = 0.1


@dataclass(frozen=True)
class Demand:
    """What a job asks of the cluster."""

    num_workers: int
    cpus_per_worker: float | None = None
    """CPUs each worker reserves. None: `plan_cpus` chooses."""
    gpus_per_worker: float = 0
    data_cpus: float = 1
    """CPUs left to the tasks that read and tokenise."""

    @property
    def cpus(self) -> float:
        """CPUs of workers and data together."""
        return self.num_workers * (self.cpus_per_worker or 0) + self.data_cpus

    def __str__(self) -> str:
        gpus = f" and {self.gpus_per_worker:g} GPU" if self.gpus_per_worker else ""
        return f"{self.num_workers} workers of {self.cpus_per_worker or 0:g} CPU{gpus}, {self.data_cpus:g} CPU for data"


@dataclass(frozen=True)
class Node:
    """One machine of the cluster."""

    name: str
    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float

    def holds(self, demand: Demand) -> int:
        """Return how many workers of `demand` fit on this node when it is empty."""
        by_cpu = self.cpus / (demand.cpus_per_worker or _LEAST_CPUS)
        by_gpu = self.gpus / demand.gpus_per_worker if demand.gpus_per_worker else math.inf
        return math.floor(min(by_cpu, by_gpu) + 1e-6)


@dataclass(frozen=True)
class Supply:
    """What the cluster has, and who holds it."""

    nodes: tuple[Node, ...]
    limit_cpus: float
    """CPUs the cluster may have: its total, or what the autoscaler may bring it to."""
    limit_gpus: float
    can_grow: bool = False
    """The autoscaler may add nodes."""
    own_cpus: float = 0
    """CPUs that this job's own placement groups already hold."""
    holders: tuple[str, ...] = ()
    """The others, one phrase each."""


def connect(namespace: str = NAMESPACE, *, log_to_driver: bool = True) -> None:
    """Join RAY_ADDRESS, else the head that runs on this machine, else start a local Ray; quiet unless it fails.

    Args:
        namespace: where named actors are found.
        log_to_driver: print what workers print.

    Raises:
        RunError: the address does not answer, or refuses the token.
    """
    address = head_address()
    if address and _is_loopback(address):
        _stay_on_loopback()
    import ray
    from ray.exceptions import RayError

    if ray.is_initialized():
        return
    try:
        ray.init(
            address=address or "local",
            namespace=namespace,
            logging_level=logging.ERROR,
            log_to_driver=log_to_driver,
        )
    except (ConnectionError, RuntimeError, RayError) as error:
        cause = " ".join(str(error).split())[:300]
        raise RunError(f"cannot connect to Ray at {address or 'local'}: {cause}; `hsokv doctor` says more") from error


def plan_cpus(demand: Demand, *, total_cpus: float) -> Demand:
    """Fill in `cpus_per_worker`: 1 each where there is room, else an equal share of what the data leaves.

    A share is rounded down to hundredths and is 0.1 at least; whether it fits is for `preflight` to say.
    """
    if demand.cpus_per_worker is not None:
        return demand
    share = (total_cpus - demand.data_cpus) / demand.num_workers
    cpus = 1.0 if share >= 1 else max(math.floor(share * 100 + 1e-6) / 100, _LEAST_CPUS)
    return replace(demand, cpus_per_worker=cpus)


def preflight(demand: Demand) -> Demand:
    """Return `demand` with its CPUs filled in, after it was found to fit the connected cluster when that is empty.

    Raises:
        RunError: workers and data cannot both get their CPUs or GPUs; says what was asked and what there is.
    """
    supply = read_supply()
    demand = plan_cpus(demand, total_cpus=supply.limit_cpus)
    refuse_if_unplaceable(demand, supply)
    return demand


def refuse_if_unplaceable(demand: Demand, supply: Supply) -> None:
    """Raise `RunError` with the numbers if `demand` can never run on `supply`."""
    gpus = demand.num_workers * demand.gpus_per_worker
    if gpus > supply.limit_gpus:
        raise RunError(
            f"asked for {demand}: {gpus:g} GPUs, there are {supply.limit_gpus:g}; lower --num-workers or drop --use-gpu"
        )
    if demand.cpus > supply.limit_cpus + 1e-6:
        raise RunError(
            f"asked for {demand}: {demand.cpus:g} CPUs, there are {supply.limit_cpus:g}; "
            "lower --num-workers or --cpus-per-worker or --data-cpus"
        )
    places = sum(node.holds(demand) for node in supply.nodes)
    if places < demand.num_workers and not supply.can_grow:
        sizes = ", ".join(f"{node.name} {node.cpus:g} CPUs {node.gpus:g} GPUs" for node in supply.nodes)
        raise RunError(
            f"asked for {demand}: only {places} such workers fit on the nodes ({sizes}); "
            "lower --num-workers or --cpus-per-worker"
        )


def refuse_if_too_large(estimate_bytes: float, *, available_bytes: float, what: str, advice: str) -> None:
    """Raise `RunError` with both numbers if `estimate_bytes` is more than `available_bytes`.

    Args:
        what: the thing that needs the memory, such as `training base on one worker`.
        advice: the flags to change, such as `lower --batch-size or --seq-len`.
    """
    if estimate_bytes > available_bytes:
        need, there = estimate_bytes / 2**30, available_bytes / 2**30
        raise RunError(f"{what} needs about {need:.1f} GiB, there are {there:.1f} GiB; {advice}")


def read_supply() -> Supply:
    """Ask the connected cluster what it has, what is free, and who holds the rest."""
    import ray
    from ray._private.state import available_resources_per_node, state

    free = available_resources_per_node()
    groups = _groups()
    nodes = tuple(
        _node(entry["NodeManagerAddress"], entry["Resources"], free.get(entry["NodeID"], {}))
        for entry in ray.nodes()
        if entry["Alive"]
    )
    most = state.get_max_resources_from_cluster_config()
    total = most if most is not None else ray.cluster_resources()
    return Supply(
        nodes=nodes,
        limit_cpus=total.get("CPU", 0),
        limit_gpus=total.get("GPU", 0),
        can_grow=most is not None,
        own_cpus=sum(group.cpus for group in groups if group.own),
        holders=(*(str(group) for group in groups if not group.own), *_actors()),
    )


class PendingWatch:
    """Says once, after `after_s` of waiting, what is asked, what there is, who holds it and which flag to lower."""

    def __init__(
        self,
        demand: Demand,
        *,
        after_s: float = 20,
        supply: Callable[[], Supply] = read_supply,
        say: Callable[[str], Any] = lambda text: print(text, file=sys.stderr, flush=True),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._demand, self._after_s, self._supply, self._say, self._clock = demand, after_s, supply, say, clock
        self._since = clock()
        self._closed = False

    def poll(self) -> None:
        """Look at the clock; call it often while waiting, from one thread."""
        waited_s = self._clock() - self._since
        if not self._closed and waited_s >= self._after_s:
            self._closed = True
            self._say(explain_pending(self._demand, self._supply(), waited_s=waited_s))

    def close(self) -> None:
        """The workers run: say nothing more."""
        self._closed = True


def explain_pending(demand: Demand, supply: Supply, *, waited_s: float) -> str:
    """Return a few lines: what is asked, what each node has free, who holds the rest, what to do."""
    lines = [f"waiting for {waited_s:.0f} s for {demand} ({demand.cpus:g} CPUs)"]
    for node in supply.nodes:
        gpus = f", {node.free_gpus:g} of {node.gpus:g} GPUs" if node.gpus else ""
        lines.append(f"  node {node.name}: {node.free_cpus:g} of {node.cpus:g} CPUs{gpus} free")
    lines.append(f"  held by: {'; '.join(supply.holders) or 'nobody else that Ray tells of'}")
    free_cpus = sum(node.free_cpus for node in supply.nodes) + supply.own_cpus
    short_of_gpus = demand.num_workers * demand.gpus_per_worker > sum(node.free_gpus for node in supply.nodes)
    if supply.own_cpus >= demand.cpus - demand.data_cpus > 0:
        lines.append("  the workers have their CPUs and are starting; importing torch takes a while on a busy machine")
    elif demand.cpus <= free_cpus and not short_of_gpus:
        lines.append("  there is room now: the workers are about to start")
    else:
        flags = "--num-workers" if short_of_gpus else "--num-workers, --cpus-per-worker or --data-cpus"
        lines.append(f"  lower {flags}, or wait until the others end")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Group:
    name: str
    cpus: float
    own: bool

    def __str__(self) -> str:
        return f"placement group {self.name}: {self.cpus:g} CPUs"


def _node(name: str, total: dict[str, float], free: dict[str, float]) -> Node:
    return Node(
        name=name,
        cpus=total.get("CPU", 0),
        gpus=total.get("GPU", 0),
        free_cpus=free.get("CPU", 0),
        free_gpus=free.get("GPU", 0),
    )


def _groups() -> list[_Group]:
    """Return the placement groups that hold their resources; the last four bytes of an id are its job's."""
    import ray
    from ray.util import placement_group_table

    job = ray.get_runtime_context().get_job_id()
    return [
        _Group(
            name=entry["name"] or key[:8],
            cpus=sum(bundle.get("CPU", 0) for bundle in entry["bundles"].values()),
            own=key.endswith(job),
        )
        for key, entry in placement_group_table().items()
        if entry["state"] == "CREATED"
    ]


def _actors() -> list[str]:
    """Return the actors that hold CPUs outside placement groups, or that they cannot be known."""
    import ray
    from ray.util.state import list_actors
    from ray.util.state.exception import RayStateApiException

    try:
        actors: list[Any] = list_actors(
            address=ray.get_runtime_context().gcs_address,  # or it looks for any Ray on this machine
            filters=[("state", "=", "ALIVE")],
            detail=True,
            timeout=5,
            raise_on_missing_output=False,
        )
    except (RayStateApiException, ConnectionError) as error:
        return [f"(actors unknown: {' '.join(str(error).split())[:80]})"]
    return [
        f"actor {actor.class_name.rpartition('.')[2]} of job {actor.job_id}, pid {actor.pid}: {cpus:g} CPUs"
        for actor in actors
        if (cpus := (actor.required_resources or {}).get("CPU"))
    ]


def head_address() -> str | None:
    """Return the address to join, None to start a local Ray. Ray itself would wait 80 s for one that is gone."""
    asked = os.environ.get("RAY_ADDRESS")
    if asked:
        if ":" in asked and "://" not in asked and not _answers(asked):
            raise RunError(
                f"RAY_ADDRESS is {asked!r}, where nothing answers; start a head (cluster/local.sh start) or unset it"
            )
        return asked
    try:
        recorded = _CURRENT_CLUSTER.read_text().strip()
    except OSError:
        return None
    return recorded if recorded and _answers(recorded) else None


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=3):
            return True
    except (OSError, ValueError):
        return False


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _stay_on_loopback() -> None:
    """Ray replaces 127.0.0.1 by this machine's other address, where a loopback head does not listen."""
    os.environ[LOOPBACK_SWITCH] = "0"
    if "ray" in sys.modules:
        from ray._private import ray_constants

        ray_constants.ENABLE_RAY_CLUSTER = False
