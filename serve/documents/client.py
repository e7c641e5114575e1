"""Calls of the documents actor: errors arrive as they were raised, a restart in between is waited for.

documents = DocumentsClient(handle)                      # in a gateway
stored = await documents.call("finish", owner, upload_id)
text = read_piece(handle, id, owner, piece)              # in a thread of a replica
"""

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any

from hsokv_ray.errors import StoreError
from serve.documents.records import Piece

PATIENCE_S = 20.0
"""How long a call waits for an actor that restarts. Every method of `Documents` may be called a second time."""
_READ_BYTES = 8 * 2**20


class DocumentsClient:
    """The actor, for code in an event loop."""

    def __init__(self, handle: Any, *, patience_s: float = PATIENCE_S) -> None:
        self._handle, self._patience_s = handle, patience_s

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Return what `method` returns, or raise what it raises; `StoreError` where the actor does not answer."""
        from ray.exceptions import RayActorError, RayTaskError

        end_s, pause_s = time.monotonic() + self._patience_s, 0.05
        while True:
            try:
                return await getattr(self._handle, method).remote(*args, **kwargs)
            except RayTaskError as error:
                raise error.cause from None
            except RayActorError as error:
                if time.monotonic() + pause_s > end_s:
                    raise _away(error) from None
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)


def read_pieces(handle: Any, id: str, owner: str) -> list[Piece]:
    """Return the pieces of a document; waits. Raises `ApiError` 404 or `StoreError`."""
    return _ask(handle, "pieces", id, owner)


def read_piece(handle: Any, id: str, owner: str, piece: Piece) -> str:
    """Return the text of `piece`: from its file where this machine has it, else through the actor; waits.

    Raises `ApiError` 404 where the document is gone; `StoreError` where the actor does not answer.
    """
    data = _read_here(piece)
    if data is None:
        parts = [
            _ask(handle, "read", id, owner, piece.file, offset, _READ_BYTES)
            for offset in range(0, piece.num_bytes, _READ_BYTES)
        ]
        data = b"".join(parts)
    return data.decode()


def _read_here(piece: Piece) -> bytes | None:
    """Return the bytes at the piece's path, if they are its bytes: on another machine the path may mean anything."""
    try:
        data = Path(piece.path).read_bytes()
    except OSError:
        return None
    return data if hashlib.sha256(data).hexdigest() == piece.sha256 else None


def _ask(handle: Any, method: str, *args: Any) -> Any:
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

    end_s, pause_s = time.monotonic() + PATIENCE_S, 0.05
    while True:
        try:
            return ray.get(getattr(handle, method).remote(*args), timeout=PATIENCE_S)
        except RayTaskError as error:
            raise error.cause from None
        except (RayActorError, GetTimeoutError) as error:
            if time.monotonic() + pause_s > end_s:
                raise _away(error) from None
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 1.0)


def _away(error: Exception) -> StoreError:
    reason = " ".join(str(error).split())[:200]
    return StoreError(f"the documents do not answer ({reason}); they come back by themselves: try again")
