"""Routes of documents: upload, list, read, append, encode, follow, delete."""

import asyncio
from contextlib import ExitStack, suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from hsokv_ray.errors import StoreError
from serve.documents import pin_routes, upload_routes
from serve.documents.client import DocumentsClient
from serve.documents.encoding import start_encoding
from serve.documents.events import FOLLOWED, follow
from serve.documents.passages import MAX_CHARACTERS
from serve.documents.receiving import MAX_NAME_CHARACTERS, check_length, receive_document
from serve.documents.wire import DeletedBody, DocumentBody, DocumentListBody, TextBody
from serve.keys import current_owner
from serve.limits import OwnerLimit
from serve.openapi import errors, event_schema
from serve.services import services_of
from serve.streaming import EventStream

router = APIRouter(prefix="/v1/documents", tags=["documents"])
router.include_router(upload_routes.router)
router.include_router(pin_routes.router)

Owner = Annotated[str, Depends(current_owner)]
Digest = Annotated[str | None, Query(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the body, to be checked.")]
Encode = Annotated[bool, Query(description="Encode it now, and not at the first question.")]
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "text/plain": {"schema": {"type": "string"}},
            "application/x-ndjson": {
                "schema": {"type": "string", "description": 'Lines {"text": "...", "page": 1, "title": "..."}.'}
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "format": "binary"}},
                    "required": ["file"],
                    "additionalProperties": False,
                }
            },
        },
    }
}
_OVERHEAD_BYTES = 2**16
"""Of a form around its file."""
_DROP_S = 5.0


@router.post(
    "",
    status_code=201,
    responses=errors(400, 408, 413, 415, 429, 503, 507)
    | {200: {"model": DocumentBody, "description": "You have this content already; this is its document."}},
    openapi_extra=BODY,
)
async def create_document(
    request: Request,
    response: Response,
    owner: Owner,
    name: Annotated[str, Query(max_length=MAX_NAME_CHARACTERS, description="What it is called.")] = "",
    digest: Digest = None,
    encode: Encode = True,
) -> DocumentBody:
    """Upload a document: plain text, JSON lines of pages, or a form with one file. It is on disk when this returns."""
    services, documents = services_of(request), documents_of(request)
    check_length(request, services.args.limits.document_bytes + _OVERHEAD_BYTES)
    stored = await receive_document(request, documents, owner, name=name, digest=digest)
    response.status_code = 201 if stored.created else 200
    response.headers["Location"] = f"/v1/documents/{stored.listed.document.id}"
    wanted = encode and stored.listed.progress.state != "ready"
    listed = await start_encoding(services.generator, documents, stored.listed) if wanted else stored.listed
    return DocumentBody.of(listed)


@router.get("", responses=errors(400, 404, 503))
async def list_documents(
    request: Request,
    owner: Owner,
    limit: Annotated[int, Query(ge=1, le=100, description="How many, at most.")] = 20,
    after: Annotated[str | None, Query(max_length=128, description="last_id of the list before.")] = None,
) -> DocumentListBody:
    """Return your documents, newest first."""
    return DocumentListBody.of(await documents_of(request).call("listing", owner, limit=limit, after=after))


@router.get("/{id}", responses=errors(400, 404, 503))
async def get_document(request: Request, owner: Owner, id: str) -> DocumentBody:
    """Return one document and how far its encoding is."""
    return DocumentBody.of(await documents_of(request).call("get", id, owner))


@router.get("/{id}/text", responses=errors(400, 404, 503))
async def get_text(
    request: Request,
    owner: Owner,
    id: str,
    begin: Annotated[int, Query(ge=0, description="First character.")] = 0,
    end: Annotated[
        int | None,
        Query(ge=0, description=f"Character behind the last. Without it: {MAX_CHARACTERS} at most come."),
    ] = None,
) -> TextBody:
    """Return characters of a document (Unicode code points), and the pages they are on."""
    return TextBody.of(await documents_of(request).call("text", id, owner, begin, end))


@router.delete("/{id}", responses=errors(400, 404, 503))
async def delete_document(request: Request, owner: Owner, id: str) -> DeletedBody:
    """Delete a document for good, and what is known to have been encoded of it."""
    segments = DocumentsClient(services_of(request).segments, patience_s=_DROP_S)
    for digest in await documents_of(request).call("delete", id, owner):
        with suppress(StoreError):  # a registry that has ended keeps nothing
            await segments.call("drop", digest)
    return DeletedBody(id=id)


@router.post("/{id}/append", responses=errors(400, 404, 408, 409, 413, 415, 429, 503, 507), openapi_extra=BODY)
async def append_to_document(
    request: Request,
    owner: Owner,
    id: str,
    digest: Digest = None,
    offset: Annotated[
        int | None,
        Query(ge=0, description="Bytes the document has now; with it, nothing is appended twice."),
    ] = None,
    encode: Encode = True,
) -> DocumentBody:
    """Append text or pages. What was encoded stays so; only the new part is read."""
    services, documents = services_of(request), documents_of(request)
    check_length(request, services.args.limits.document_bytes + _OVERHEAD_BYTES)
    stored = await receive_document(request, documents, owner, document_id=id, offset=offset, digest=digest)
    listed = await start_encoding(services.generator, documents, stored.listed) if encode else stored.listed
    return DocumentBody.of(listed)


@router.post("/{id}/encode", status_code=202, responses=errors(400, 404, 503))
async def encode_document(request: Request, owner: Owner, id: str) -> DocumentBody:
    """Have the document encoded; its events say how far that is."""
    documents = documents_of(request)
    listed = await documents.call("get", id, owner)
    return DocumentBody.of(await start_encoding(services_of(request).generator, documents, listed))


@router.get(
    "/{id}/events",
    response_class=Response,
    responses=errors(400, 404, 429, 503)
    | {
        200: {
            "description": "Server-sent events, a ProgressBody each: the present state, then every change.",
            "content": {"text/event-stream": {"schema": event_schema("A ProgressBody.")}},
        }
    },
)
async def follow_document(request: Request, owner: Owner, id: str) -> Response:
    """Follow the encoding of a document as server-sent events, while it is queued or encoding; half an hour at most."""
    documents = documents_of(request)
    first = await documents.call("read_progress", id, owner)
    gone, held = asyncio.Event(), ExitStack()
    held.enter_context(_followed(request).hold(owner))

    def close() -> None:
        gone.set()
        held.close()

    return EventStream(follow(documents, id, owner, first, gone), close)


def _followed(request: Request) -> OwnerLimit:
    """Return who follows how many documents at this gateway."""
    state = request.app.state
    if not hasattr(state, "followed"):
        state.followed = OwnerLimit(FOLLOWED)
    return state.followed


def documents_of(request: Request) -> DocumentsClient:
    """Return the documents of the application that got `request`."""
    return DocumentsClient(services_of(request).documents)
