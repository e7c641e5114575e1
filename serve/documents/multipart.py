"""The one file of a multipart form, passed on as it arrives: nothing is spooled, nothing of the form becomes a path."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serve.errors import ApiError

FIELD = "file"


@dataclass(slots=True)
class FilePart:
    """The file as it arrives: its headers first, then its bytes."""

    name: str
    content_type: str
    chunks: AsyncIterator[bytes]


@dataclass(slots=True)
class _Form:
    """What the parser has said so far. Its callbacks only note; bytes are taken between two calls of it."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    key: bytes = b""
    value: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    num_parts: int = 0
    is_open: bool = False
    is_over: bool = False

    def begin_part(self) -> None:
        self.num_parts += 1
        if self.num_parts > 1:
            raise ApiError(400, f"the form has several parts; send one, named {FIELD!r}: the rest goes into the query")

    def add_key(self, data: bytes, begin: int, end: int) -> None:
        self.key += data[begin:end]

    def add_value(self, data: bytes, begin: int, end: int) -> None:
        self.value += data[begin:end]

    def end_header(self) -> None:
        self.headers[self.key.lower()] = self.value
        self.key = self.value = b""

    def end_headers(self) -> None:
        self.is_open = True

    def add_data(self, data: bytes, begin: int, end: int) -> None:
        self.chunks.append(data[begin:end])

    def end(self) -> None:
        self.is_over = True

    def take(self) -> bytes:
        """Return the bytes of the file that came since the last call."""
        data = b"".join(self.chunks)
        self.chunks.clear()
        return data


async def read_file(content_type: str, body: AsyncIterator[bytes]) -> FilePart:
    """Return the file of the form in `body`, whose Content-Type header is `content_type`. Raises `ApiError` 400."""
    form = _Form()
    parser = _parser(content_type, form)
    async for data in body:
        _feed(parser, data)
        if form.is_open:
            break
    if not form.is_open:
        raise ApiError(400, f"the form ends before its file begins; send one part named {FIELD!r}")
    name = _check_disposition(form)
    kind = form.headers.get(b"content-type", b"text/plain").decode("latin-1")
    return FilePart(name, kind, _chunks(parser, form, body))


async def _chunks(parser: MultipartParser, form: _Form, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield form.take()
    async for data in body:
        _feed(parser, data)
        yield form.take()
    if not form.is_over:
        raise ApiError(400, "the form ends within the file; send it again")


def _parser(content_type: str, form: _Form) -> MultipartParser:
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary or len(boundary) > 256:
        raise ApiError(400, "the Content-Type of the form has no usable boundary; let your client make the header")
    callbacks: Any = {
        "on_part_begin": form.begin_part,
        "on_header_field": form.add_key,
        "on_header_value": form.add_value,
        "on_header_end": form.end_header,
        "on_headers_finished": form.end_headers,
        "on_part_data": form.add_data,
        "on_end": form.end,
    }
    return MultipartParser(boundary, callbacks)


def _feed(parser: MultipartParser, data: bytes) -> None:
    try:
        parser.write(data)
    except FormParserError as error:
        raise ApiError(400, f"the form cannot be read ({str(error)[:200]}); let your client make it") from None


def _check_disposition(form: _Form) -> str:
    _, options = parse_options_header(form.headers.get(b"content-disposition", b""))
    found = options.get(b"name", b"").decode("utf-8", "replace")
    if found != FIELD:
        raise ApiError(400, f"the form's part is named {found[:80]!r}; name it {FIELD!r}")
    return options.get(b"filename", b"").decode("utf-8", "replace")
