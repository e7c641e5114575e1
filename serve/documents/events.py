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
_LAST = ("ready", "failed")


async def follow(
    documents: DocumentsClient,
    id: str,
    owner: str,
    first: Progress,
    gone: asyncio.Event,
    *,
    keep_alive_s: float = KEEP_ALIVE_S,
) -> AsyncIterator[bytes]:
    """Yield `first`, then every change, until the document is ready, has failed or was deleted, or `gone` is set."""
    last, sent_s, pause_s = first, time.monotonic(), _SHORTEST_PAUSE_S
    yield _event(first)
    while last.state not in _LAST and not await _is_set(gone, pause_s):
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
