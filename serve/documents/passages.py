"""Characters of a document, found without reading all of it."""

import json
from bisect import bisect_right
from pathlib import Path
from typing import Any

from hsokv_ray.errors import DataError
from serve.documents.records import Document, Page, Passage, Piece
from serve.documents.shelf import Shelf

MAX_CHARACTERS = 1_000_000
"""Of one passage."""


def check_range(document: Document, begin: int, end: int | None) -> tuple[int, int]:
    """Return a range of characters; `end` None means as far as one passage goes. Raises `DataError`."""
    length = document.num_characters
    end = min(length, begin + MAX_CHARACTERS) if end is None else end
    if not 0 <= begin <= end <= length:
        raise DataError(f"begin and end: got {begin} and {end}; the document has characters 0 to {length}")
    if end - begin > MAX_CHARACTERS:
        raise DataError(f"end: {end - begin} characters were asked for; {MAX_CHARACTERS} come at once")
    return begin, end


def read_passage(shelf: Shelf, document: Document, begin: int, end: int) -> Passage:
    """Return characters `begin` to `end` and the pages they touch. Raises `OSError` where the files are gone."""
    texts: list[str] = []
    pages: list[Page] = []
    first = 0
    for piece in document.pieces:
        low, high = max(begin - first, 0), min(end - first, piece.num_characters)
        if low < high:
            index = json.loads(shelf.index_path(document, piece).read_text(encoding="utf-8"))
            texts.append(_read(shelf.text_path(document, piece), piece, index, low, high))
            pages += _pages(index["pages"], low, high, first)
        first += piece.num_characters
    return Passage(begin, end, document.num_characters, "".join(texts), pages)


def _read(path: Path, piece: Piece, index: dict[str, Any], begin: int, end: int) -> str:
    every, offsets = index["every"], index["offsets"]
    last = -(-end // every)
    stop = offsets[last] if last < len(offsets) else piece.num_bytes
    with path.open("rb") as file:
        file.seek(offsets[begin // every])
        text = file.read(stop - file.tell()).decode()
    start = begin - begin // every * every
    return text[start : start + end - begin]


def _pages(pages: list[list[Any]], begin: int, end: int, first: int) -> list[Page]:
    """Return the pages of a piece that have a character between `begin` and `end`; its text begins at `first`."""
    i = bisect_right(pages, begin, key=lambda page: page[1])
    found = []
    while i < len(pages) and pages[i][0] < end:
        low, high, label, title = pages[i]
        if low < high:
            found.append(Page(first + low, first + high, label, title))
        i += 1
    return found
