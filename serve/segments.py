"""The actor that knows all published segments, and those that hold them.

An object of Ray lives as long as the process that put it. So that segments outlive the replica that wrote them, a
keeper on the replica's node puts them; keepers belong to the registry's actor and end with it.
"""

from functools import partial
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from serve.actors import ActorLink, get_or_create, renewed
from serve.args import LEAST_SEGMENTS_BYTES, ServeArgs
from serve.segment_registry import LEASE_S, SegmentRegistry


class SegmentKeeper:
    """Puts arrays into the object store of its node. It has no state: who has a reference keeps the object."""

    def keep(self, arrays: dict[str, Any]) -> list[Any]:
        """Return the reference to a copy of the arrays, in a list so that it is not followed."""
        return [ray.put(arrays)]


class Segments(SegmentRegistry):
    """The registry as an actor."""

    def __init__(self, *, max_bytes: int, max_age_s: float, lease_s: float) -> None:
        super().__init__(max_bytes=max_bytes, max_age_s=max_age_s, lease_s=lease_s)
        self._arguments = {"max_bytes": max_bytes, "max_age_s": max_age_s, "lease_s": lease_s}
        self._keepers: dict[str, Any] = {}

    def arguments(self) -> dict[str, Any]:
        """Return what it was made with."""
        return self._arguments

    def keeper(self, node: str) -> list[Any]:
        """Return the handle of a node's keeper, in a list; started where there is none."""
        if node not in self._keepers:
            here = NodeAffinitySchedulingStrategy(node, soft=False)
            options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
            self._keepers[node] = ray.remote(SegmentKeeper).options(**options).remote()
        return [self._keepers[node]]


def segments_bytes(args: ServeArgs) -> int:
    """Return how much encoded text the object store may hold; needs Ray where `args` does not say."""
    if args.segments_bytes is not None:
        return args.segments_bytes
    return max(LEAST_SEGMENTS_BYTES, int(ray.cluster_resources().get("object_store_memory", 0)) // 2)


def segments_actor(app: str, *, max_bytes: int, max_age_s: float, lease_s: float = LEASE_S) -> Any:
    """Return the handle of the application's registry, which is started where there is none.

    Args:
        max_bytes: of arrays in the object store, pinned ones apart.
        max_age_s: after which a segment that nobody asked about is let go.
        lease_s: after which a claim is void that nobody renewed.
    """
    return get_or_create(Segments, app, "segments", max_bytes=max_bytes, max_age_s=max_age_s, lease_s=lease_s)


def renewed_segments(app: str, *, max_bytes: int, max_age_s: float, lease_s: float = LEASE_S) -> ActorLink:
    """Return the way to the registry, for a process that begins: one with other arguments is ended first.

    Encoded texts end with it and are read again. Whoever connects later takes the registry that is there.
    """
    connect = partial(segments_actor, app, max_bytes=max_bytes, max_age_s=max_age_s, lease_s=lease_s)
    renewed(connect, {"max_bytes": max_bytes, "max_age_s": max_age_s, "lease_s": lease_s})
    return ActorLink(connect)
