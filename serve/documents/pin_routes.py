"""Routes that keep what was encoded of a document, whatever else needs room."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from serve.documents.client import DocumentsClient
from serve.documents.wire import PinBody
from serve.errors import ApiError
from serve.keys import current_owner
from serve.openapi import errors
from serve.services import services_of

router = APIRouter()
Owner = Annotated[str, Depends(current_owner)]
_ANSWER_S = 5.0


@router.put("/{id}/pin", responses=errors(400, 404, 409, 503, 507))
async def pin_document(request: Request, owner: Owner, id: str) -> PinBody:
    """Keep what was encoded of a document until it is unpinned or deleted, or the server starts anew."""
    said = [await _segments(request).call("pin_for", digest, id) for digest in await _digests(request, owner, id)]
    if "pinned" in said:
        return PinBody(id=id, pinned=True)
    if "full" in said:
        raise ApiError(
            507, "pinned documents take half of the room for encoded text already; unpin one, or raise segments_bytes"
        )
    raise ApiError(409, f"nothing that was encoded of {id} is kept at the moment; have it encoded, then pin it")


@router.delete("/{id}/pin", responses=errors(400, 404, 503))
async def unpin_document(request: Request, owner: Owner, id: str) -> PinBody:
    """Let what was encoded of a document go again when room is needed."""
    for digest in await _digests(request, owner, id):
        await _segments(request).call("unpin_for", digest, id)
    return PinBody(id=id, pinned=False)


async def _digests(request: Request, owner: str, id: str) -> list[str]:
    return await DocumentsClient(services_of(request).documents).call("encoded_as", id, owner)


def _segments(request: Request) -> DocumentsClient:
    return DocumentsClient(services_of(request).segments, patience_s=_ANSWER_S)
