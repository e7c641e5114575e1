"""Asking the model's replicas to encode a document, and following that until it ends."""

import asyncio
import contextlib
import logging
from typing import Any

from hsokv_ray.errors import StoreError
from serve.documents.client import DocumentsClient
from serve.documents.records import Listed
from serve.errors import ApiError

BEAT_S = 5.0
"""How often a waiting encoding says that it still waits; well below `progress.STALE_S`."""
_LOG = logging.getLogger(__name__)
_TASKS: set[asyncio.Task[None]] = set()
"""The event loop itself keeps only weak references."""


async def start_encoding(generator: Any, documents: DocumentsClient, listed: Listed) -> Listed:
    """Have the document encoded, unless that is under way; return it as it is then."""
    if listed.progress.state in ("queued", "encoding"):
        return listed
    id, owner = listed.document.id, listed.document.owner
    await documents.call("progress", id, owner, "queued")
    task = asyncio.create_task(_encode(generator, documents, id, owner))
    _TASKS.add(task)
    task.add_done_callback(_TASKS.discard)
    return await documents.call("get", id, owner)


async def _encode(generator: Any, documents: DocumentsClient, id: str, owner: str) -> None:
    """Wait for the encoding and note how it ended; a document that is deleted meanwhile ends it."""
    response = generator.encode_document.remote(id, owner)
    waiting = asyncio.ensure_future(_result(response))
    try:
        while not (await asyncio.wait({waiting}, timeout=BEAT_S))[0]:
            await documents.call("wait_on", id, owner)
        num_tokens = waiting.result()["num_tokens"]
        await documents.call("progress", id, owner, "ready", num_tokens, num_tokens)
    except ApiError as error:
        if error.status != 404:
            await _fail(documents, id, owner, error)
    except Exception as error:  # whatever a replica may raise is for whoever watches the document
        await _fail(documents, id, owner, error)
    finally:
        if not waiting.done():
            response.cancel()
            waiting.cancel()


async def _result(response: Any) -> Any:
    return await response


async def _fail(documents: DocumentsClient, id: str, owner: str, error: Exception) -> None:
    cause = getattr(error, "cause", None) or error
    _LOG.warning("document %s was not encoded: %r", id, cause)
    message = " ".join(str(cause).split())[:500] or type(cause).__name__
    with contextlib.suppress(ApiError, StoreError):  # it is gone, or nobody can be told
        await documents.call("progress", id, owner, "failed", 0, 0, message)
