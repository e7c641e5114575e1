"""Progress of a document as server-sent events."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from hsokv_ray.errors import HsokvError
from serve import errors
from serve.documents.client import DocumentsClient
from serve.documents.records import Progress
from serve.documents.wire import ProgressBody
from serve.errors import ApiError
from serve.streaming import frame

_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0
KEEP_ALIVE_S = 10.0
"""After so long without news a comment is sent, so that nothing in between takes the connection for dead."""
LIFETIME_S = 1800.0
"""A stream ends after so long; whoever still wants to know asks again."""
FOLLOWED = 64
"""Streams of one owner at once, on each gateway."""
_RESTING = ("stored", "ready", "failed")


async def follow(
    documents: DocumentsClient,
    id: str,
    owner: str,
    first: Progress,
    gone: asyncio.Event,
    *,
    keep_alive_s: float = KEEP_ALIVE_S,
    lifetime_s: float = LIFETIME_S,
) -> AsyncIterator[bytes]:
    """Yield `first`, then every change, until no encoding is under way, `gone` is set or `lifetime_s` are over."""
    last, sent_s, pause_s = first, time.monotonic(), _SHORTEST_PAUSE_S
    end_s = sent_s + lifetime_s
    yield _event(first)
    while last.state not in _RESTING and time.monotonic() < end_s and not await _is_set(gone, pause_s):
        try:
            now = await documents.call("read_progress", id, owner)
        except (ApiError, HsokvError) as error:
            refusal = error if isinstance(error, ApiError) else errors.of(error)
            yield frame(refusal.body)
            return
        if now != last:
            yield _event(now)
            last, sent_s, pause_s = now, time.monotonic(), _SHORTEST_PAUSE_S
            continue
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        if time.monotonic() - sent_s >= keep_alive_s:
            yield b": keep-alive\n\n"
            sent_s = time.monotonic()


async def _is_set(gone: asyncio.Event, timeout_s: float) -> bool:
    """Return whether the client has gone, after waiting for that a while."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(gone.wait(), timeout_s)
    return gone.is_set()


def _event(progress: Progress) -> bytes:
    return frame(ProgressBody(**ProgressBody.fields_of(progress)).model_dump())
