"""A process that shares encoded texts with others, as a replica does; run as a Ray actor."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from synthetic_segments import encoded

from hsokv_ray.longcontext.segments import Encoded
from serve.segments import segments_actor
from serve.shared_prefixes import SharedPrefixes

BEAT_S = 0.3
MIB = 2**20


def connect_to(app: str, max_bytes: int = 150 * MIB, max_age_s: float = 3600.0, lease_s: float = 15.0) -> Any:
    """Return what connects to the registry of `app`."""
    return partial(segments_actor, app, max_bytes=max_bytes, max_age_s=max_age_s, lease_s=lease_s)


class SegmentProcess:
    """Publishes, finds and claims texts."""

    def __init__(self, connect: Any, local_bytes: int = 100 * MIB) -> None:
        self.prefixes = SharedPrefixes(connect, local_bytes=local_bytes, beat_s=BEAT_S)
        self._held: list[Encoded] = []

    def pid(self) -> int:
        """Return the process's id."""
        return os.getpid()

    def publish(self, ids: Sequence[int], num_bytes: int) -> str:
        """Add a text and wait until others can find it; return its digest."""
        text = encoded(ids, num_bytes=num_bytes)
        self.prefixes.add(text)
        self.prefixes.flush(60)
        return text.digest

    def find(self, digests: Sequence[str]) -> list[int] | None:
        """Return the ids of the longest known text."""
        found = self.prefixes.find(digests)
        return None if found is None else found.token_ids.tolist()

    def attach(self, digest: str) -> dict[str, Any] | None:
        """Hold a text; return where its large array lies, its bytes summed, and the private memory that took."""
        before = psutil.Process().memory_full_info().uss
        found = self.prefixes.find([digest])
        if found is None:
            return None
        self._held.append(found)
        array = found.segments[-1].arrays["far.keys"]
        address = array.__array_interface__["data"][0]
        return {
            "mapping": mapping_of(address),
            "writeable": array.flags.writeable,
            "private_bytes": psutil.Process().memory_full_info().uss - before,
            "sum": int(array.sum(dtype="int64")),
            "address": address,
        }

    def claim(self, digest: str, timeout_s: float) -> bool:
        """Claim a text."""
        return self.prefixes.claim(digest, timeout_s)

    def release(self, digest: str) -> None:
        """Release a text, and wait until others know."""
        self.prefixes.release(digest)
        self.prefixes.flush(60)

    def drop(self, digest: str) -> int:
        """Drop a text everywhere."""
        return self.prefixes.drop(digest)

    def stats(self) -> Any:
        """Return what happened."""
        return self.prefixes.stats()


def mapping_of(address: int) -> str:
    """Return the name of what is mapped at an address of this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, _, *name = line.split(maxsplit=5)
        begin, end = (int(part, 16) for part in span.split("-"))
        if begin <= address < end:
            return name[0] if name else ""
    return ""
