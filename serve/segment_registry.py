"""Which encoded segments are published, where, and who is encoding what. Plain Python; state in memory only."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hsokv_ray.longcontext.segment_tree import Entry, SegmentTree
from hsokv_ray.longcontext.segments import Segment

PINNED_SHARE = 0.5
"""Of all bytes, that texts pinned over HTTP may take."""
LEASE_S = 15.0
"""A claim that nobody renewed for so long is void."""

_MOST_GONE = 10_000
"""Digests remembered of segments that are published no more."""


@dataclass(frozen=True)
class Published:
    """One segment in the object store."""

    meta: dict[str, Any]
    """`Segment.meta()`."""
    nbytes: int
    refs: list[Any]
    """One `ObjectRef` of the arrays; in a list, or Ray would send the arrays themselves."""
    node: str

    @property
    def digest(self) -> str:
        return self.meta["marks"][-1]["digest"]


@dataclass(frozen=True)
class Chain:
    """A published text."""

    segments: tuple[Published, ...]
    """Root first."""
    digest: str
    """Of the mark it ends at."""


@dataclass(frozen=True)
class RegistryStats:
    """How full the registry is and how often it helped."""

    bytes: int
    num_segments: int
    num_pinned: int
    num_claims: int
    hits: int
    misses: int
    evictions: int
    lost: int
    """Segments whose arrays somebody could not read any more."""


@dataclass
class _Claim:
    claimant: str
    until: float


Verdict = Literal["yours", "there", "busy"]


class SegmentRegistry:
    """Segments by their marks, with bytes and age to keep to."""

    def __init__(
        self,
        *,
        max_bytes: int,
        max_age_s: float,
        lease_s: float = LEASE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_bytes, self.max_age_s, self.lease_s, self._clock = max_bytes, max_age_s, lease_s, clock
        self._tree: SegmentTree[Published] = SegmentTree()
        self._claims: dict[str, _Claim] = {}
        self._pinned_for: dict[str, set[str]] = {}
        """Digest of a pinned text -> documents it is pinned for."""
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._hits = self._misses = self._evictions = self._lost = 0

    def find(self, digests: Sequence[str]) -> Chain | None:
        """Return the longest published prefix; `digests` ascend in length."""
        found = self._tree.find(digests, self._clock())
        if found is None:
            self._misses += 1
            return None
        self._hits += 1
        return Chain(tuple(entry.value for entry in found.entries), found.mark.digest)

    def missing(self, digests: Sequence[str]) -> list[str]:
        """Return those of these segments that are not published."""
        return [digest for digest in digests if digest not in self._tree.entries]

    def add(self, published: Published) -> bool:
        """Take a segment in and make room; False where it is too large or its beginning is not published."""
        if published.nbytes > self.max_bytes:
            return False
        segment = Segment.of(published.meta, {})
        if not self._tree.add(segment, published.nbytes, published, self._clock()):
            return False
        self._gone.pop(segment.digest, None)
        self._evict()
        return segment.digest in self._tree.entries

    def claim(self, digest: str, claimant: str) -> Verdict:
        """Say who encodes this text: the claimant, nobody because it is there, or somebody else."""
        if digest in self._tree:
            return "there"
        held = self._claims.get(digest)
        now = self._clock()
        if held is not None and held.claimant != claimant and held.until > now:
            return "busy"
        self._claims[digest] = _Claim(claimant, now + self.lease_s)
        return "yours"

    def release(self, digest: str, claimant: str) -> None:
        """Give a claim back; another's stays."""
        held = self._claims.get(digest)
        if held is not None and held.claimant == claimant:
            del self._claims[digest]

    def beat(self, claimant: str, claims: Sequence[str], used: Sequence[str], held: Sequence[str]) -> list[str]:
        """Renew claims and what was used without asking; return those of the `held` segments that are to be let go."""
        for digest in claims:
            self.claim(digest, claimant)
        now = self._clock()
        for digest in used:
            if digest in self._tree.entries:
                self._tree.touch(self._tree.entries[digest], now)
        self._claims = {digest: claim for digest, claim in self._claims.items() if claim.until > now}
        self._evict()
        return [digest for digest in held if digest in self._gone]

    def pin(self, digest: str) -> bool:
        """Never evict the text with this mark; return whether it is there."""
        return self._tree.pin(digest, pinned=True)

    def pin_for(self, digest: str, document: str) -> Literal["pinned", "absent", "full"]:
        """Pin a text with all it continues, unless pinned ones would then take more than their share of the room."""
        chain = self._tree.text(digest)
        if not chain:
            return "absent"
        pinned = [entry for entry in self._tree.entries.values() if entry.is_pinned]
        new = {entry.segment.digest: entry.value.nbytes for entry in [*pinned, *chain]}
        if sum(new.values()) > self.max_bytes * PINNED_SHARE:
            return "full"
        self.pin(digest)
        self._pinned_for.setdefault(digest, set()).add(document)
        return "pinned"

    def unpin_for(self, digest: str, document: str) -> None:
        """Let a text be evicted again, unless it is pinned for another document: equal texts of two owners are one."""
        others = self._pinned_for.get(digest, set()) - {document}
        if others:
            self._pinned_for[digest] = others
            return
        self._pinned_for.pop(digest, None)
        self.unpin(digest)

    def unpin(self, digest: str) -> bool:
        """Let the text be evicted again; return whether it is there."""
        return self._tree.pin(digest, pinned=False)

    def drop(self, digest: str) -> int:
        """Remove the text with this mark, what continues it and what only it continued; return how many segments."""
        self._pinned_for.pop(digest, None)
        return len(self._say_gone(self._tree.drop(digest)))

    def forget(self, digests: Sequence[str]) -> int:
        """Remove segments whose arrays are lost, and what continues them; return how many."""
        lost = self._say_gone(self._tree.forget(digests))
        self._lost += len(lost)
        return len(lost)

    def stats(self) -> dict[str, Any]:
        """Return `RegistryStats` as a dict."""
        return asdict(
            RegistryStats(
                bytes=self._tree.nbytes,
                num_segments=len(self._tree.entries),
                num_pinned=sum(entry.is_pinned for entry in self._tree.entries.values()),
                num_claims=sum(claim.until > self._clock() for claim in self._claims.values()),
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                lost=self._lost,
            )
        )

    def check_integrity(self) -> None:
        """Assert what must always hold."""
        self._tree.check_integrity()
        assert not self._gone.keys() & self._tree.entries.keys(), "what is there is not gone"
        assert len(self._gone) <= _MOST_GONE, len(self._gone)
        unpinned = [entry for entry in self._tree.entries.values() if not entry.is_pinned and not entry.num_children]
        assert self._tree.nbytes <= self.max_bytes or not unpinned, "only what is pinned may take too much room"

    def _evict(self) -> None:
        evicted = self._tree.evict(self.max_bytes, used_after=self._clock() - self.max_age_s)
        self._evictions += len(self._say_gone(evicted))

    def _say_gone(self, entries: list[Entry[Published]]) -> list[Entry[Published]]:
        for entry in entries:
            self._gone[entry.segment.digest] = None
        while len(self._gone) > _MOST_GONE:
            self._gone.popitem(last=False)
        return entries
