"""The actor that knows all published segments, and those that hold them.

An object of Ray lives as long as the process that put it. So that segments outlive the replica that wrote them, a
keeper on the replica's node puts them; keepers belong to the registry's actor and end with it.
"""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from serve.actors import get_or_create
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
        self._keepers: dict[str, Any] = {}

    def keeper(self, node: str) -> list[Any]:
        """Return the handle of a node's keeper, in a list; started where there is none."""
        if node not in self._keepers:
            here = NodeAffinitySchedulingStrategy(node, soft=False)
            options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
            self._keepers[node] = ray.remote(SegmentKeeper).options(**options).remote()
        return [self._keepers[node]]


def segments_actor(app: str, *, max_bytes: int, max_age_s: float, lease_s: float = LEASE_S) -> Any:
    """Return the handle of the application's registry, which is started where there is none.

    Args:
        max_bytes: of arrays in the object store, pinned ones apart.
        max_age_s: after which a segment that nobody asked about is let go.
        lease_s: after which a claim is void that nobody renewed.
    """
    return get_or_create(Segments, app, "segments", max_bytes=max_bytes, max_age_s=max_age_s, lease_s=lease_s)
