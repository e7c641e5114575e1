"""Routes of resumable uploads: begun with a digest, sent in parts, gone on with after a break."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Request

from serve import openapi
from serve.bodies import body_schema, json_body
from serve.documents.client import DocumentsClient
from serve.documents.encoding import start_encoding
from serve.documents.receiving import check_length, check_name, kind_of, receive_part
from serve.documents.records import Stored, UploadState
from serve.documents.wire import DocumentBody, UploadBody, UploadRequest
from serve.errors import ApiError
from serve.keys import current_owner
from serve.openapi import errors
from serve.services import services_of

router = APIRouter(prefix="/uploads")
openapi.BODIES.append(UploadRequest)

Owner = Annotated[str, Depends(current_owner)]
Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
_PART = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    "",
    responses=errors(400, 408, 409, 413, 415, 429, 503, 507),
    openapi_extra=body_schema(UploadRequest),
)
async def begin_upload(
    request: Request, owner: Owner, body: Annotated[UploadRequest, Depends(json_body(UploadRequest))]
) -> UploadBody:
    """Begin an upload, or find it again: send its bytes from `offset` on. With `document`, all of it is here."""
    documents = _documents(request)
    state: UploadState = await documents.call(
        "begin",
        owner,
        name=check_name(body.name),
        kind=kind_of(body.content_type),
        digest=body.digest,
        num_bytes=body.bytes,
        resumable=True,
        encode=body.encode,
    )
    document = await _encoded(request, state.stored, wanted=body.encode) if state.stored else None
    return UploadBody.of(state, document)


@router.get("/{digest}", responses=errors(400, 404, 503))
async def get_upload(request: Request, owner: Owner, digest: Digest) -> UploadBody:
    """Return how far an unfinished upload is; once it is complete, there is none any more."""
    return UploadBody.of(await _documents(request).call("find_upload", owner, digest))


@router.patch("/{digest}", responses=errors(400, 404, 408, 409, 413, 429, 503, 507), openapi_extra=_PART)
async def continue_upload(
    request: Request, owner: Owner, digest: Digest, upload_offset: Annotated[int, Header(ge=0)]
) -> UploadBody:
    """Send the bytes from `Upload-Offset` on, as many as you like; the answer to the last has the document.

    What was received already is passed over, so that the rest of a broken request does no harm; the digest decides.
    """
    documents = _documents(request)
    check_length(request, services_of(request).args.limits.document_bytes)
    state: UploadState = await documents.call("find_upload", owner, digest)
    if upload_offset > state.offset:
        raise ApiError(409, f"Upload-Offset: got {upload_offset}, {state.offset} bytes are here; go on from there")
    offset = await receive_part(request, documents, owner, state.id, upload_offset)
    if offset != state.num_bytes:
        return UploadBody.of(await documents.call("find_upload", owner, digest))
    stored = await documents.call("finish", owner, state.id)
    done = UploadState(state.id, digest, offset, offset)
    return UploadBody.of(done, await _encoded(request, stored, wanted=state.encode))


@router.delete("/{digest}", status_code=204, responses=errors(400, 404, 503))
async def delete_upload(request: Request, owner: Owner, digest: Digest) -> None:
    """Give an unfinished upload up."""
    documents = _documents(request)
    state = await documents.call("find_upload", owner, digest)
    await documents.call("discard", owner, state.id)


async def _encoded(request: Request, stored: Stored, *, wanted: bool) -> DocumentBody:
    if not wanted or stored.listed.progress.state == "ready":
        return DocumentBody.of(stored.listed)
    generator = services_of(request).generator
    return DocumentBody.of(await start_encoding(generator, _documents(request), stored.listed))


def _documents(request: Request) -> DocumentsClient:
    return DocumentsClient(services_of(request).documents)
