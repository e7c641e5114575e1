"""Calls of the documents actor: errors arrive as they were raised, a restart in between is waited for.

documents = DocumentsClient(documents_link(app, ...))    # in a gateway
stored = await documents.call("finish", owner, upload_id)
text = read_piece(link, id, owner, piece)                # in a thread of a replica

Instead of a link, a handle will do where its actor cannot end for good.
"""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hsokv_ray.errors import StoreError
from serve.actors import link_of
from serve.documents.records import Piece

PATIENCE_S = 20.0
"""How long a call waits for an actor that restarts. Every method of `Documents` may be called a second time."""
_NOTE_S = 5.0
_READ_BYTES = 8 * 2**20


class DocumentsClient:
    """The actor, for code in an event loop.

    Args:
        actor: `ActorLink` or handle.
    """

    def __init__(self, actor: Any, *, patience_s: float = PATIENCE_S) -> None:
        self._link, self._patience_s = link_of(actor), patience_s

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Return what `method` returns, or raise what it raises; `StoreError` where the actor does not answer."""
        from ray.exceptions import RayActorError, RayTaskError

        end_s, pause_s = time.monotonic() + self._patience_s, 0.05
        while True:
            handle = self._link.known or await asyncio.to_thread(self._link.handle)
            try:
                return await getattr(handle, method).remote(*args, **kwargs)
            except RayTaskError as error:
                raise error.cause from None
            except RayActorError as error:
                self._link.lose(handle)
                if time.monotonic() + pause_s > end_s:
                    raise _away(error) from None
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)


def read_pieces(actor: Any, id: str, owner: str) -> list[Piece]:
    """Return the pieces of a document; waits. Raises `ApiError` 404 or `StoreError`."""
    return _ask(actor, "pieces", id, owner)


def read_piece(actor: Any, id: str, owner: str, piece: Piece) -> str:
    """Return the text of `piece`: from its file where this machine has it, else through the actor; waits.

    Raises `ApiError` 404 where the document is gone; `StoreError` where the actor does not answer.
    """
    data = _read_here(piece)
    if data is None:
        parts = [
            _ask(actor, "read", id, owner, piece.file, offset, _READ_BYTES)
            for offset in range(0, piece.num_bytes, _READ_BYTES)
        ]
        data = b"".join(parts)
    return data.decode()


def note_encoded(actor: Any, encoded: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Say what was encoded of documents, as (id, owner, digest); waits, though not long.

    Returns those whose document is gone. Raises `StoreError` where the actor does not answer.
    """
    return _ask(actor, "note_encoded", list(encoded), patience_s=_NOTE_S)


def _read_here(piece: Piece) -> bytes | None:
    """Return the bytes at the piece's path, if they are its bytes: on another machine the path may mean anything."""
    try:
        data = Path(piece.path).read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == piece.sha256 else None


def _ask(actor: Any, method: str, *args: Any, patience_s: float = PATIENCE_S) -> Any:
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

    link, end_s, pause_s = link_of(actor), time.monotonic() + patience_s, 0.05
    while True:
        handle = link.handle()
        try:
            return ray.get(getattr(handle, method).remote(*args), timeout=patience_s)
        except RayTaskError as error:
            raise error.cause from None
        except (RayActorError, GetTimeoutError) as error:
            link.lose(handle)
            if time.monotonic() + pause_s > end_s:
                raise _away(error) from None
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 1.0)


def _away(error: Exception) -> StoreError:
    reason = " ".join(str(error).split())[:200]
    return StoreError(f"the documents do not answer ({reason}); they come back by themselves: try again")
