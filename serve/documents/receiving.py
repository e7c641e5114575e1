"""A request's body on its way to the documents actor: in parts, so that neither side ever holds much of it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import PurePosixPath

from fastapi import Request
from starlette.requests import ClientDisconnect

from hsokv_ray.errors import DataError, StoreError
from serve.documents.client import DocumentsClient
from serve.documents.multipart import FilePart, read_file
from serve.documents.records import Kind, Stored, UploadState
from serve.errors import ApiError
from serve.services import services_of

PART_BYTES = 2**20
_PAGES = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines")
_PAGES_SUFFIXES = (".jsonl", ".ndjson")
_BINARY = "application/octet-stream"
MAX_NAME_CHARACTERS = 255


class _Broken(Exception):
    """The client went away (400), or sends no more (408)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def receive_document(request: Request, documents: DocumentsClient, owner: str, **plan: object) -> Stored:
    """Take a whole document, raw or as a form, and store it. Raises `ApiError`, `DataError` or `StoreError`.

    Args:
        plan: arguments of `Documents.begin`; a name that is given wins over the form's.
    """
    file = await _open(request)
    kind = kind_of(file.content_type)
    name = check_name(str(plan.pop("name", "") or file.name))
    upload: UploadState = await documents.call("begin", owner, name=name, kind=kind, **plan)
    try:
        await send(documents, owner, upload.id, 0, file.chunks)
        return await documents.call("finish", owner, upload.id)
    except BaseException as error:
        if not isinstance(error, DataError):  # then it is gone already
            await asyncio.shield(_discard(documents, owner, upload.id))
        if isinstance(error, _Broken):
            raise ApiError(error.status, f"{error}; nothing was stored: send it again") from None
        raise


async def receive_part(request: Request, documents: DocumentsClient, owner: str, upload_id: str, offset: int) -> int:
    """Take a part of a resumable upload; return how far it is. What came before a break is kept, on disk."""
    try:
        await send(documents, owner, upload_id, offset, _body(request))
    except _Broken as error:
        raise ApiError(error.status, f"{error}; what came before is kept: ask for the offset and go on") from None
    return await documents.call("flush", owner, upload_id)


async def send(
    documents: DocumentsClient, owner: str, upload_id: str, offset: int, chunks: AsyncIterator[bytes]
) -> None:
    """Write `chunks` from `offset` on, in parts of `PART_BYTES`; on a break, what has come until then."""
    held = bytearray()

    async def write(num_bytes: int) -> None:
        nonlocal offset
        part = bytes(held[:num_bytes])
        del held[:num_bytes]
        await documents.call("write", owner, upload_id, offset, part)
        offset += len(part)

    try:
        async for chunk in chunks:
            held += chunk
            while len(held) >= PART_BYTES:
                await write(PART_BYTES)
    except _Broken:
        await write(len(held))
        await documents.call("flush", owner, upload_id)
        raise
    await write(len(held))


def kind_of(content_type: str) -> Kind:
    """Return how a body of this type is read. Raises `ApiError` 415."""
    kind, _, rest = content_type.partition(";")
    kind = kind.strip().lower()
    if kind in _PAGES:
        return "pages"
    if not kind.startswith("text/"):
        raise ApiError(
            415,
            f"the Content-Type is {kind[:100]!r}; send text/plain, {_PAGES[0]} (a page each line), or a form with "
            'the file: curl -F file=@notes.txt, or curl -H "Content-Type: text/plain" --data-binary @notes.txt',
        )
    charset = rest.partition("charset=")[2].partition(";")[0].strip("\"' ").lower()
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise ApiError(415, f"the charset is {charset[:40]!r}; send the text as UTF-8")
    return "text"


def check_name(name: str) -> str:
    """Return what the document is called. Raises `ApiError` 400."""
    if len(name) > MAX_NAME_CHARACTERS:
        raise ApiError(400, f"name: got {len(name)} characters; at most {MAX_NAME_CHARACTERS} fit", param="name")
    return name or "document"


def check_length(request: Request, most: int) -> int | None:
    """Return the length that the request announces. Raises `ApiError` 413 before anything is read."""
    announced = request.headers.get("content-length", "")
    if not announced.isdecimal():
        return None
    if int(announced) > most:
        raise ApiError(413, f"the body has {int(announced)} bytes; at most {most} are allowed: split the document")
    return int(announced)


async def _open(request: Request) -> FilePart:
    content_type = request.headers.get("content-type", "")
    if content_type.lower().startswith("multipart/form-data"):
        return _typed(await read_file(content_type, _body(request)))
    return FilePart("", content_type, _body(request))


def _typed(file: FilePart) -> FilePart:
    """Give a form's file, whose type the client did not know, the type that its name's ending says."""
    if file.content_type.partition(";")[0].strip().lower() != _BINARY:
        return file
    is_pages = PurePosixPath(file.name).suffix.lower() in _PAGES_SUFFIXES
    return replace(file, content_type=_PAGES[0] if is_pages else "text/plain")


async def _body(request: Request) -> AsyncIterator[bytes]:
    """Yield the body as it arrives. Raises `_Broken` where it ends early, or nothing comes for too long."""
    patience_s = services_of(request).args.limits.body_timeout_s
    chunks = request.stream()
    while True:
        try:
            async with asyncio.timeout(patience_s):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise _Broken(408, f"nothing came for {patience_s:g} s") from None
        except ClientDisconnect:
            raise _Broken(400, "the connection was closed before the body was complete") from None
        if chunk is None:
            return
        yield chunk


async def _discard(documents: DocumentsClient, owner: str, upload_id: str) -> None:
    with contextlib.suppress(ApiError, StoreError):  # it is gone already, or expires by itself
        await documents.call("discard", owner, upload_id)
