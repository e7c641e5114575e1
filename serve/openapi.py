"""What OpenAPI says of every route: its errors, its streams, the bodies it reads."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serve.wire.base import ErrorBody, Wire
from serve.wire.chat import ChatChunk, ChatRequest
from serve.wire.completions import CompletionRequest

_DESCRIPTIONS = {
    400: "The request is wrong; the message says what and where.",
    401: "No API key, or an unknown one.",
    403: "This client or Host is not answered.",
    404: "There is no such thing, or it is not yours.",
    405: "The route has no such method.",
    408: "The body came too slowly.",
    409: "Something else happened to it meanwhile.",
    413: "The body is too large.",
    415: "The Content-Type is not served.",
    429: "Too many requests; Retry-After says when to try again.",
    500: "The server failed; its log says why.",
    503: "Nobody can answer at the moment; Retry-After says when to try again.",
    507: "There is no room for it.",
}
_ALWAYS = (401, 403, 405, 500)
BODIES: list[type[Wire]] = [ChatRequest, CompletionRequest, ChatChunk]
"""Classes that routes refer to with `body_schema`; other modules add theirs."""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return `responses` of a route that may answer with these errors; 401, 403, 405 and 500 are of every route."""
    return {
        status: {"description": _DESCRIPTIONS[status], "model": ErrorBody} for status in sorted({*statuses, *_ALWAYS})
    }


def event_schema(data: str) -> dict[str, Any]:
    """Return the schema of a server-sent event whose `data` is JSON; `data` says which."""
    text = {"type": "string", "contentMediaType": "application/json", "description": data}
    return {"type": "object", "properties": {"data": text}, "required": ["data"]}


STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, events.",
        "content": {"text/event-stream": {"schema": event_schema("A ChatChunk, and at the end [DONE].")}},
    },
    **errors(400, 404, 408, 413, 415, 429, 503),
}
"""`responses` of the routes that generate."""


def describe(app: FastAPI, *, has_keys: bool) -> dict[str, Any]:
    """Return the OpenAPI description of `app`."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    for cls in BODIES:
        own = cls.model_json_schema(ref_template="#/components/schemas/{model}")
        components |= own.pop("$defs", {})
        components[cls.__name__] = own
    _tell_400_for_422(schema)
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    if has_keys:
        schema["security"] = [{"key": []}]
        schema["paths"].get("/health", {}).get("get", {})["security"] = []
    return schema


def _tell_400_for_422(schema: dict[str, Any]) -> None:
    """FastAPI describes wrong parameters as 422 with a body of its own; here they are 400, as every other mistake."""
    answer = {
        "description": _DESCRIPTIONS[400],
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}}},
    }
    for operation in (each for path in schema["paths"].values() for each in path.values()):
        if operation["responses"].pop("422", None) is not None:
            operation["responses"].setdefault("400", answer)
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
