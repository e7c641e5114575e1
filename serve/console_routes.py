"""The console's files and the schemas of its forms; open to everybody, for they hold no user's data."""

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from hsokv_ray.longcontext.config import LongContextConfig
from serve.errors import ApiError
from serve.wire.chat import ChatRequest
from serve.wire.common import LongContextOptions

FOLDER = Path(__file__).parent / "console"

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # a new version of the server must not meet scripts of an old one
}

SAMPLING = ("temperature", "top_p", "top_k", "max_tokens", "seed", "repetition_penalty")
"""What the form "How it answers" offers of a chat request."""

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class File:
    """What is sent, and how a browser knows it again."""

    body: bytes
    media_type: str

    @functools.cached_property
    def etag(self) -> str:
        """Of the body."""
        return f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'


@functools.cache
def files() -> dict[str, File]:
    """Return the console's files by name; requests are looked up here, so that no path comes from a client."""
    return {
        path.name: File(path.read_bytes(), TYPES[path.suffix])
        for path in sorted(FOLDER.iterdir())
        if path.suffix in TYPES
    }


@functools.cache
def forms() -> File:
    """Return the JSON schemas of the forms: what a request may set, explained by the settings' own docstrings."""
    options = [name for name in LongContextOptions.model_fields if name in LongContextConfig.model_fields]
    schemas = {
        "long_context": _form(LongContextOptions, [name for name in options if name != "enabled"], LongContextConfig),
        "sampling": _form(ChatRequest, SAMPLING, ChatRequest),
    }
    return File(json.dumps(schemas).encode(), "application/json")


def _form(
    request: type[pydantic.BaseModel], names: Iterable[str], explained: type[pydantic.BaseModel]
) -> dict[str, Any]:
    properties = request.model_json_schema()["properties"]
    return {
        "type": "object",
        "properties": {
            name: properties[name]
            | {"title": name.replace("_", " ").capitalize(), "description": _help(explained.model_fields[name])}
            for name in names
        },
    }


def _help(field: pydantic.fields.FieldInfo) -> str:
    """Return a field's docstring for readers of a form, where null is an empty field."""
    text = " ".join((field.description or "").split())
    return text.replace("None: ", "Empty: ").replace("Null: ", "Empty: ").replace("Null, 0", "Empty, 0")


def _answer(request: Request, file: File) -> Response:
    headers = HEADERS | {"ETag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.media_type, headers=headers)


@router.get("/")
def page(request: Request) -> Response:
    """Return the page."""
    return _answer(request, files()["index.html"])


@router.get("/console")
@router.get("/console/")
def from_console(request: Request) -> Response:
    """Lead to the page: its links are relative to the folder above."""
    return RedirectResponse(request.scope.get("root_path", "") + "/", headers=HEADERS)


@router.get("/console/schema")
def schema(request: Request) -> Response:
    """Return the JSON schemas of the page's forms."""
    return _answer(request, forms())


@router.get("/console/{name}")
def file(request: Request, name: str) -> Response:
    """Return one of the page's files. Raises `ApiError` 404."""
    if name not in files():
        raise ApiError(404, f"the console has no file {name!r:.100}; its page is /")
    return _answer(request, files()[name])
