"""Bytes that arrive in parts, made into text: checked as they come, with where its characters and pages are.

Both kinds of intake are fed the same way; what is wrong is said with its place, in the part in which it appears.
"""

import codecs
import json
from collections.abc import Callable
from typing import Any, Protocol

from hsokv_ray.errors import DataError

EVERY = 2**14
"""Characters between two entries of an index."""
SEPARATOR = "\n\n"
"""Between two pages: a blank line."""
MAX_LABEL_CHARACTERS = 1000
MAX_PAGES = 200_000
"""Of one upload: each is kept in memory while it comes."""
_KEYS = ("text", "page", "title")


class Index:
    """Where every `every`th character of a UTF-8 file begins, in bytes."""

    def __init__(self) -> None:
        self.every = EVERY
        self.num_characters = 0
        self.num_bytes = 0
        self.offsets = [0]

    def add(self, text: str) -> None:
        """Count `text`, which follows what was counted so far."""
        begin = 0
        while begin < len(text):
            end = min(len(text), begin + self.every - self.num_characters % self.every)
            self.num_bytes += len(text[begin:end].encode())
            self.num_characters += end - begin
            if self.num_characters % self.every == 0:
                self.offsets.append(self.num_bytes)
            begin = end


class Intake(Protocol):
    """Takes the bytes of one upload."""

    index: Index
    pages: list[list[Any]]
    """[begin, end, page, title] each, in characters of this upload."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises `DataError` where they cannot be part of a document."""
        ...

    def finish(self) -> None:
        """There are no more. Raises `DataError` where something is missing."""
        ...


class TextIntake:
    """Plain text in UTF-8."""

    def __init__(self) -> None:
        self.index = Index()
        self.pages: list[list[Any]] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self._num_fed = 0

    def feed(self, data: bytes) -> None:
        self._decode(data, final=False)

    def finish(self) -> None:
        self._decode(b"", final=True)
        if not self.index.num_characters:
            raise DataError("the document is empty; send text")

    def _decode(self, data: bytes, *, final: bool) -> None:
        begin = self._num_fed - len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError as error:
            raise DataError(
                f"the document is not UTF-8: byte {begin + error.start} ({error.reason}); save it as UTF-8"
            ) from None
        self._num_fed += len(data)
        self.index.add(text)


class PagesIntake:
    """JSON lines, one page each: {"text": "...", "page": 3, "title": "..."}; the text goes to `write`.

    Args:
        write: takes the document's text, UTF-8, in order.
        leads: text goes before these pages, so that a blank line comes first.
    """

    def __init__(self, write: Callable[[bytes], Any], *, leads: bool, line_bytes: int) -> None:
        self.index = Index()
        self.pages: list[list[Any]] = []
        self._write, self._leads, self._line_bytes = write, leads, line_bytes
        self._number = 0
        self._parts: list[bytes] = []
        self._num_held = 0

    def feed(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._hold(line)
            self._take_line()
        self._hold(rest)

    def finish(self) -> None:
        self._take_line()
        if not any(begin < end for begin, end, *_ in self.pages):
            raise DataError('the document is empty; send lines such as {"text": "...", "page": 1}')

    def _hold(self, part: bytes) -> None:
        self._num_held += len(part)
        if self._num_held > self._line_bytes:
            raise DataError(
                f"line {self._number + 1}: it has more than {self._line_bytes} bytes; make more pages of it"
            )
        self._parts.append(part)

    def _take_line(self) -> None:
        line = b"".join(self._parts)
        self._parts, self._num_held = [], 0
        self._number += 1
        if not line.strip():
            return
        page = _parse(line, self._number)
        if len(self.pages) == MAX_PAGES:
            raise _wrong(self._number, f"more than {MAX_PAGES} pages; send the others as an append")
        if self.pages or self._leads:
            self._put(SEPARATOR)
        begin = self.index.num_characters
        self._put(page["text"])
        self.pages.append([begin, self.index.num_characters, page.get("page"), page.get("title")])

    def _put(self, text: str) -> None:
        try:
            data = text.encode()
        except UnicodeEncodeError:
            raise _wrong(self._number, "'text' has a lone surrogate, which is not Unicode text") from None
        self._write(data)
        self.index.add(text)


def _parse(line: bytes, number: int) -> dict[str, Any]:
    try:
        page = json.loads(line.decode(), object_pairs_hook=lambda pairs: _as_object(pairs, number))
    except UnicodeDecodeError as error:
        raise _wrong(number, f"it is not UTF-8 at its byte {error.start} ({error.reason})") from None
    except RecursionError:
        raise _wrong(number, "it is nested too deep; an object with 'text' is needed") from None
    except DataError:
        raise
    except ValueError as error:
        raise _wrong(number, f"it is not JSON ({error}); an object with 'text' is needed") from None
    if not isinstance(page, dict):
        raise _wrong(number, f"got {type(page).__name__}; an object with 'text' is needed")
    _check(page, number)
    return page


def _as_object(pairs: list[tuple[str, Any]], number: int) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _wrong(number, "a key comes twice")
    return values


def _check(page: dict[str, Any], number: int) -> None:
    for key in page:
        if key not in _KEYS:
            raise _wrong(number, f"unknown key {key[:80]!r}; {', '.join(_KEYS)} are allowed")
    if not isinstance(page.get("text"), str):
        raise _wrong(number, f"'text' is {type(page.get('text')).__name__}; a string is needed")
    label = page.get("page")
    if isinstance(label, bool) or not isinstance(label, int | str | None):
        raise _wrong(number, f"'page' is {type(label).__name__}; a whole number or a string is needed")
    if isinstance(label, int) and abs(label) > 2**53:
        raise _wrong(number, "'page' is past 2^53; make it a string")
    if not isinstance(page.get("title"), str | None):
        raise _wrong(number, f"'title' is {type(page['title']).__name__}; a string is needed")
    for key in ("page", "title"):
        _check_label(page.get(key), key, number)


def _check_label(label: Any, key: str, number: int) -> None:
    if not isinstance(label, str):
        return
    if len(label) > MAX_LABEL_CHARACTERS:
        raise _wrong(number, f"{key!r} has {len(label)} characters; at most {MAX_LABEL_CHARACTERS} are allowed")
    try:
        label.encode()
    except UnicodeEncodeError:
        raise _wrong(number, f"{key!r} has a lone surrogate, which is not Unicode text") from None


def _wrong(number: int, what: str) -> DataError:
    return DataError(f"line {number}: {what}")
