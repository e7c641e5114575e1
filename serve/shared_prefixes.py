"""Encoded texts shared by all replicas of an application: what one has read, the others attach without copying."""

import logging
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from hsokv_ray.errors import StoreError
from hsokv_ray.longcontext.prefixes import LocalPrefixes, Prefixes, PrefixStats
from hsokv_ray.longcontext.segments import Encoded, Segment
from serve.registry_link import RegistryLink, moving_s, node_id
from serve.segment_registry import Chain, Published

BEAT_S = 5.0
"""Between two renewals of claims; what was dropped elsewhere is let go within this time."""

_POLL_S = (0.05, 0.5)
"""Between two looks at a claim of another process: at first, at most."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SharedStats:
    """What sharing did in this process."""

    local: PrefixStats
    hits: int
    """Inputs of which a beginning was known, in this process or in another."""
    misses: int
    """Inputs of which nothing was known."""
    attached: int
    """Texts of other processes that were attached."""
    lost: int
    """Segments that were published but could not be read."""
    published: int
    """Segments given to others."""
    unpublished: int
    """Segments that could not be given to others; this process has them."""


class SharedPrefixes(Prefixes):
    """Looks in this process first, then asks the registry once. Where that does not answer, this process is alone."""

    def __init__(self, connect: Callable[[], Any], *, local_bytes: int, beat_s: float = BEAT_S) -> None:
        """Begin to renew claims in a thread, and to publish in another.

        Args:
            connect: returns the handle of the registry's actor and starts it where there is none:
                `partial(segments_actor, app, max_bytes=..., max_age_s=...)`.
            local_bytes: of the segments this process keeps at hand; attached ones are in the object store, which
                cannot free them as long.
        """
        self.local = LocalPrefixes(local_bytes)
        self._link = RegistryLink(connect)
        self._me = f"{os.getpid()}-{uuid.uuid4().hex}"
        self._claims: set[str] = set()
        """Granted by the registry, or by nobody where it does not answer."""
        self._holders: Counter[str] = Counter()
        """By digest: claims that were asked for and not given back to the registry yet."""
        self._holding = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._publisher = ThreadPoolExecutor(1, thread_name_prefix="publish-segments")
        self._last_job: Future[None] | None = None
        self._closed = threading.Event()
        self._beater = threading.Thread(target=self._beat_on, args=(beat_s,), name="beat-segments", daemon=True)
        self._beater.start()

    def find(self, digests: Sequence[str]) -> Encoded | None:
        found = self._find(digests)
        self._count("misses" if found is None else "hits")
        return found

    def _find(self, digests: Sequence[str]) -> Encoded | None:
        here = self.local.find(digests)
        known = 0 if here is None else list(digests).index(here.digest) + 1
        if known == len(digests):
            return here
        chain = self._ask("find", list(digests[known:]))
        return here if chain is None else self._attach(chain) or here

    def add(self, encoded: Encoded) -> None:
        self.local.add(encoded)
        self._later(self._publish, encoded)

    def claim(self, digest: str, timeout_s: float) -> bool:
        deadline, pause_s = time.monotonic() + timeout_s, _POLL_S[0]
        if not self.local.claim(digest, timeout_s):
            return False
        with self._holding:
            self._holders[digest] += 1
        while (verdict := self._ask("claim", digest, self._me)) == "busy" and time.monotonic() < deadline:
            if self._closed.wait(min(pause_s, max(0.0, deadline - time.monotonic()))):
                break
            pause_s = min(2 * pause_s, _POLL_S[1])
        if verdict in ("there", "busy"):
            self.release(digest)
            return False
        with self._holding:
            self._claims.add(digest)
        return True

    def release(self, digest: str) -> None:
        self.local.release(digest)
        self._later(self._release, digest)  # behind what is still to be published

    def pin(self, digest: str) -> bool:
        """Keep the text with this mark from being evicted. Raises `StoreError`: the registry does not answer."""
        return self._link.ask("pin", digest)

    def unpin(self, digest: str) -> bool:
        """Let the text be evicted again. Raises `StoreError`: the registry does not answer."""
        return self._link.ask("unpin", digest)

    def drop(self, digest: str) -> int:
        """Remove a text everywhere, within a beat. Raises `StoreError`: the registry does not answer."""
        self.flush()  # or it would be published after this
        self.local.drop(digest)
        return self._link.ask("drop", digest)

    def flush(self, timeout_s: float = 60.0) -> None:
        """Wait until all that was added is published, or could not be. Raises `TimeoutError`."""
        if self._last_job is not None:
            self._last_job.result(timeout_s)

    def stats(self) -> SharedStats:
        """Return counts since the beginning."""
        names = ("hits", "misses", "attached", "lost", "published", "unpublished")
        with self._counting:
            return SharedStats(self.local.stats(), **{name: self._counts[name] for name in names})

    def close(self) -> None:
        """Publish what waits, and stop; what was published stays."""
        self._closed.set()
        self._publisher.shutdown(wait=True)
        self._beater.join()

    def _count(self, what: str) -> None:
        with self._counting:
            self._counts[what] += 1

    def _ask(self, method: str, *args: Any) -> Any:
        """Return what the registry answers, None where it does not: this process is alone then."""
        try:
            return self._link.ask(method, *args)
        except StoreError as error:
            logger.info("%s; going on without it", error)
            return None

    def _attach(self, chain: Chain) -> Encoded | None:
        """Return the text of the chain; None where a part of it is lost, which is then forgotten everywhere."""
        segments: list[Segment] = []
        for published in chain.segments:
            segment = self.local.segment(published.digest)
            if segment is None or segment.meta() != published.meta:
                segment = self._fetch(published)
            if segment is None:
                return None
            segments.append(segment)
        mark = segments[-1].mark(chain.digest)
        assert mark is not None, chain.digest
        encoded = Encoded(tuple(segments), mark)
        self.local.add(encoded)
        self._count("attached")
        return encoded

    def _fetch(self, published: Published) -> Segment | None:
        try:
            arrays: Any = ray.get(published.refs[0], timeout=moving_s(published.nbytes))
        except RayError as error:
            logger.warning("an encoded text is lost and will be read again (%s)", type(error).__name__)
            self._count("lost")
            self.local.forget([published.digest])
            self._ask("forget", [published.digest])
            return None
        return Segment.of(published.meta, arrays)

    def _later(self, call: Callable[[Any], None], about: Any) -> None:
        if not self._closed.is_set():
            self._last_job = self._publisher.submit(_logged, call, about)

    def _publish(self, encoded: Encoded) -> None:
        try:
            missing = self._link.insist("missing", [segment.digest for segment in encoded.segments])
            for segment in encoded.segments:
                if segment.digest in missing:
                    self._publish_one(segment)
        except StoreError as error:
            self._count("unpublished")
            logger.warning("%s; this process keeps it", error)

    def _publish_one(self, segment: Segment) -> None:
        ref = self._link.keep(segment.arrays, segment.nbytes)
        published = Published(segment.meta(), segment.nbytes, [ref], node_id())
        if not self._link.insist("add", published):
            raise StoreError(f"the registry has no room for a segment of {segment.nbytes:,} bytes")
        self._count("published")
        shared = self._fetch(published)
        if shared is not None:
            self.local.swap(shared)  # one copy of it on this machine is enough

    def _release(self, digest: str) -> None:
        with self._holding:  # also while the registry is told, or it would take back what is claimed meanwhile
            self._holders[digest] -= 1
            if self._holders[digest] > 0:  # another thread has claimed it since
                return
            del self._holders[digest]
            if digest in self._claims:
                self._claims.remove(digest)
                self._ask("release", digest, self._me)

    def _beat_on(self, beat_s: float) -> None:
        while not self._closed.wait(beat_s):
            _logged(self._beat, time.monotonic() - 2 * beat_s)

    def _beat(self, used_after: float) -> None:
        used = self.local.digests(used_after)
        with self._holding:
            claims = list(self._claims)
        gone = self._ask("beat", self._me, claims, used, self.local.digests())
        self.local.forget(gone or [])


def _logged(call: Callable[[Any], None], about: Any) -> None:
    """Call it in a thread that must go on whatever happens."""
    try:
        call(about)
    except Exception:
        logger.exception("sharing encoded texts: %s failed", call.__name__)
