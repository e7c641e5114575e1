"""What `Documents` keeps and returns; all of it is plain data that actors can send."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Kind = Literal["text", "pages"]
"""How a text came: as it is, or as JSON lines of pages."""
CONTENT_TYPES: dict[Kind, str] = {"text": "text/plain", "pages": "application/x-ndjson"}
State = Literal["stored", "queued", "encoding", "ready", "failed"]
STATES: tuple[State, ...] = ("stored", "queued", "encoding", "ready", "failed")
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a document that had a line of its own; `begin` and `end` count characters of the document."""

    begin: int
    end: int
    page: int | str | None = None
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """What one upload added to a document. Pieces are tokenised each by itself, so that appending re-reads nothing."""

    file: str
    """Name of its text file without the ending; also the upload that brought it."""
    sha256: str
    """Of the text, UTF-8."""
    num_bytes: int
    num_characters: int
    num_pages: int
    """0 for plain text."""
    source_sha256: str
    """Of what was sent; the same as `sha256` for plain text."""
    path: str = ""
    """Of the text file, on the actor's machine; filled in by `Documents.pieces`."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document of one owner."""

    id: str
    owner: str
    name: str
    kind: Kind
    created_us: int
    """Microseconds since 1970; no two documents of a store share it."""
    pieces: tuple[Piece, ...]

    @property
    def num_bytes(self) -> int:
        return sum(piece.num_bytes for piece in self.pieces)

    @property
    def num_characters(self) -> int:
        return sum(piece.num_characters for piece in self.pieces)

    @property
    def num_pages(self) -> int:
        return sum(piece.num_pages for piece in self.pieces)

    @property
    def content(self) -> tuple[str, Kind, str] | None:
        """Owner, kind and digest of what was uploaded; None once something was appended."""
        return (self.owner, self.kind, self.pieces[0].source_sha256) if len(self.pieces) == 1 else None

    @property
    def position(self) -> tuple[int, str]:
        """Where it stands in lists."""
        return self.created_us, self.id

    def with_piece(self, piece: Piece) -> "Document":
        """Return it with `piece` at its end."""
        return replace(self, pieces=(*self.pieces, piece))

    def to_json(self) -> dict[str, Any]:
        """Return what `of_json` takes."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> "Document":
        """Return the document that was written. Raises `ValueError`, `KeyError` or `TypeError` where it was not."""
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']!r}, this version reads {FORMAT}")
        pieces = tuple(Piece(**piece) for piece in values["pieces"])
        return cls(**{key: values[key] for key in ("id", "owner", "name", "kind", "created_us")}, pieces=pieces)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the encoding of a document is."""

    state: State = "stored"
    tokens_done: int = 0
    tokens_total: int = 0
    tokens_per_s: float = 0.0
    message: str | None = None
    """Why it failed."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A document as clients see it."""

    document: Document
    progress: Progress


@dataclass(frozen=True, slots=True)
class Listing:
    """Some documents of an owner, newest first."""

    items: list[Listed]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Passage:
    """Characters `begin` to `end` of a document, and the pages they touch."""

    begin: int
    end: int
    num_characters: int
    """Of the whole document."""
    text: str
    pages: list[Page]


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a finished upload."""

    listed: Listed
    created: bool
    """False: the owner had this content already."""


@dataclass(frozen=True, slots=True)
class UploadState:
    """How far an upload is."""

    id: str
    digest: str | None
    offset: int
    """Bytes received."""
    num_bytes: int | None
    """Bytes announced."""
    encode: bool = True
    """Encode the document as soon as it is complete."""
    stored: Stored | None = None
    """The document, where the content is there already."""
