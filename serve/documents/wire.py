"""What the routes of documents take and answer."""

from typing import Annotated, Any, Literal

import pydantic

from serve.documents.records import CONTENT_TYPES, Listed, Listing, Passage, Progress, State, UploadState
from serve.wire.base import Wire

Digest = Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]


class ProgressBody(Wire):
    """How far the encoding of a document is."""

    state: State
    """stored: kept, and encoded at the first question. queued, encoding, ready, failed: as they say."""
    tokens_done: int
    """Tokens read."""
    tokens_total: int
    """Tokens there are; 0 while that is not known."""
    tokens_per_s: float
    """Tokens read per second."""
    error: str | None = None
    """Why it failed."""

    @classmethod
    def fields_of(cls, progress: Progress) -> dict[str, Any]:
        return {
            "state": progress.state,
            "tokens_done": progress.tokens_done,
            "tokens_total": progress.tokens_total,
            "tokens_per_s": progress.tokens_per_s,
            "error": progress.message,
        }


class PieceBody(Wire):
    """What one upload added to a document."""

    sha256: str
    """Of its text in UTF-8."""
    num_bytes: int
    num_characters: int
    num_pages: int


class DocumentBody(ProgressBody):
    """A document."""

    id: str
    object: Literal["document"] = "document"
    name: str
    """As the client called it."""
    content_type: str
    """As it was uploaded."""
    created_at: int
    """Seconds since 1970."""
    num_bytes: int
    """Of the text in UTF-8."""
    num_characters: int
    num_pages: int
    """0 where it was no JSON lines of pages."""
    num_tokens: int | None
    """Known once it is encoded."""
    pieces: list[PieceBody]
    """What was uploaded, and what was appended."""

    @classmethod
    def of(cls, listed: Listed) -> "DocumentBody":
        """Return `listed` as clients see it: without its owner and its files."""
        document, progress = listed.document, listed.progress
        keys = PieceBody.model_fields
        return cls(
            **ProgressBody.fields_of(progress),
            id=document.id,
            name=document.name,
            content_type=CONTENT_TYPES[document.kind],
            created_at=document.created_us // 10**6,
            num_bytes=document.num_bytes,
            num_characters=document.num_characters,
            num_pages=document.num_pages,
            num_tokens=progress.tokens_total if progress.state == "ready" else None,
            pieces=[PieceBody(**{key: getattr(piece, key) for key in keys}) for piece in document.pieces],
        )


class PinBody(Wire):
    """Whether what was encoded of a document is kept, whatever else needs room."""

    id: str
    object: Literal["document.pin"] = "document.pin"
    pinned: bool


class DocumentListBody(Wire):
    """Documents, newest first."""

    object: Literal["list"] = "list"
    data: list[DocumentBody]
    has_more: bool
    """There are older ones: ask again with after=last_id."""
    first_id: str | None
    last_id: str | None

    @classmethod
    def of(cls, listing: Listing) -> "DocumentListBody":
        """Return `listing` as clients see it."""
        data = [DocumentBody.of(each) for each in listing.items]
        first_id, last_id = (data[0].id, data[-1].id) if data else (None, None)
        return cls(data=data, has_more=listing.has_more, first_id=first_id, last_id=last_id)


class PageBody(Wire):
    """A page, in characters of the document."""

    begin: int
    end: int
    page: int | str | None
    title: str | None


class TextBody(Wire):
    """Characters `begin` to `end` of a document."""

    begin: int
    end: int
    total: int
    """Characters of the whole document."""
    text: str
    pages: list[PageBody]
    """Pages that have a character here."""

    @classmethod
    def of(cls, passage: Passage) -> "TextBody":
        """Return `passage` as clients see it."""
        pages = [PageBody(begin=p.begin, end=p.end, page=p.page, title=p.title) for p in passage.pages]
        return cls(begin=passage.begin, end=passage.end, total=passage.num_characters, text=passage.text, pages=pages)


class DeletedBody(Wire):
    """A document that is no more."""

    id: str
    object: Literal["document"] = "document"
    deleted: Literal[True] = True


class UploadRequest(Wire):
    """A resumable upload, found again by its digest."""

    digest: Digest
    """SHA-256 of all bytes, hexadecimal."""
    bytes: int = pydantic.Field(ge=1)
    """How many there are."""
    name: str = pydantic.Field(default="", max_length=255)
    """What the document is called; never part of a path."""
    content_type: str = pydantic.Field(default=CONTENT_TYPES["text"], max_length=255)
    """text/plain, or application/x-ndjson for pages."""
    encode: bool = True
    """Encode it as soon as it is complete."""


class UploadBody(Wire):
    """How far an upload is."""

    object: Literal["document.upload"] = "document.upload"
    digest: str | None
    offset: int
    """Bytes received; the next part begins there."""
    bytes: int | None
    """Bytes announced."""
    document: DocumentBody | None = None
    """The document, once all bytes are there."""

    @classmethod
    def of(cls, state: UploadState, document: DocumentBody | None = None) -> "UploadBody":
        """Return `state` as clients see it."""
        return cls(digest=state.digest, offset=state.offset, bytes=state.num_bytes, document=document)
