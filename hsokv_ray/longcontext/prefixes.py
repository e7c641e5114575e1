"""Where texts that were read wait for the next request that begins with them."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hsokv_ray.longcontext.segment_tree import Found, SegmentTree
from hsokv_ray.longcontext.segments import Encoded, Segment

logger = logging.getLogger(__name__)


class Prefixes(Protocol):
    """A store of encoded texts, asked from many threads."""

    def find(self, digests: Sequence[str]) -> Encoded | None:
        """Return the longest known of the prefixes with these digests, which ascend in length."""
        ...

    def add(self, encoded: Encoded) -> None:
        """Take a text in, as far as there is room; every mark of it can then be found."""
        ...

    def claim(self, digest: str, timeout_s: float) -> bool:
        """Return True where the caller is to read this text, and then to `release` it.

        False where somebody else did in the meantime, gave it up, or took longer than `timeout_s`: look again, and
        then claim again or read it anyway.
        """
        ...

    def release(self, digest: str) -> None:
        """Give a claim back, whether the text was added or not."""
        ...


@dataclass(frozen=True)
class PrefixStats:
    """How full a store is and how often it helped."""

    bytes: int
    num_segments: int
    hits: int
    misses: int
    evictions: int
    """Segments that made room."""
    refused: int
    """Segments larger than the store, or whose beginning was not there any more."""


class LocalPrefixes(Prefixes):
    """The texts of one process, the least recently used going first. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._tree: SegmentTree[None] = SegmentTree()
        self._claims: set[str] = set()
        self._changed = threading.Condition()
        self._hits = self._misses = self._evictions = self._refused = 0

    def find(self, digests: Sequence[str]) -> Encoded | None:
        with self._changed:
            found = self._tree.find(digests, time.monotonic())
            if found is None:
                self._misses += 1
                return None
            self._hits += 1
            return encoded_of(found)

    def add(self, encoded: Encoded) -> None:
        with self._changed:
            now = time.monotonic()
            for segment in encoded.segments:
                if segment.nbytes > self.max_bytes or not self._tree.add(segment, segment.nbytes, None, now):
                    self._refuse(segment)
                    break
            self._evictions += len(self._tree.evict(self.max_bytes, used_after=-1))
            self._changed.notify_all()

    def claim(self, digest: str, timeout_s: float) -> bool:
        with self._changed:
            if digest in self._tree:
                return False
            if digest not in self._claims:
                self._claims.add(digest)
                return True
            self._changed.wait_for(lambda: digest in self._tree or digest not in self._claims, timeout_s)
            return False

    def release(self, digest: str) -> None:
        with self._changed:
            self._claims.discard(digest)
            self._changed.notify_all()

    def segment(self, digest: str) -> Segment | None:
        """Return the segment with this digest, without counting it as used."""
        with self._changed:
            entry = self._tree.entries.get(digest)
            return None if entry is None else entry.segment

    def swap(self, segment: Segment) -> None:
        """Hold the same segment in other memory, where it is still known."""
        with self._changed:
            entry = self._tree.entries.get(segment.digest)
            if entry is not None and entry.segment.meta() == segment.meta():  # another may end at the same mark
                entry.segment = segment

    def digests(self, used_after: float = -1) -> list[str]:
        """Return the digests of the segments used after this time of `time.monotonic`."""
        with self._changed:
            return [digest for digest, entry in self._tree.entries.items() if entry.last_used > used_after]

    def forget(self, digests: Sequence[str]) -> None:
        """Remove the segments with these digests and what continues them."""
        with self._changed:
            self._tree.forget(digests)

    def drop(self, digest: str) -> None:
        """Remove the text with a mark of this digest, what continues it, and what only it continued."""
        with self._changed:
            self._tree.drop(digest)

    def stats(self) -> PrefixStats:
        """Return counts since the beginning."""
        with self._changed:
            return PrefixStats(
                bytes=self._tree.nbytes,
                num_segments=len(self._tree.entries),
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                refused=self._refused,
            )

    def _refuse(self, segment: Segment) -> None:
        self._refused += 1
        if segment.nbytes > self.max_bytes:
            logger.warning(
                "a text of %s tokens is not kept in this process, so each request may read it again: it takes %s "
                "bytes, all texts together may take %s; raise prefix_cache_bytes",
                *(f"{number:,}" for number in (segment.end, segment.nbytes, self.max_bytes)),
            )

    def check_integrity(self) -> None:
        """Assert what must always hold."""
        with self._changed:
            self._tree.check_integrity()
            assert self._tree.nbytes <= self.max_bytes, (self._tree.nbytes, self.max_bytes)


def encoded_of(found: Found[None]) -> Encoded:
    """Return the text that was found."""
    return Encoded(tuple(entry.segment for entry in found.entries), found.mark)
