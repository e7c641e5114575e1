"""JSON bodies: read within limits, strictly parsed, and checked against a class, with errors that say what to do.

A route takes `body: T = Depends(json_body(T))` and describes it with `openapi_extra=body_schema(T)`. A parameter of
FastAPI's own would be read and parsed before the key is checked.
"""

import asyncio
import difflib
import itertools
import json
import math
import re
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pydantic
from fastapi import Request
from starlette.requests import ClientDisconnect

from serve.args import Limits
from serve.errors import ApiError
from serve.wire.base import Wire

WireT = TypeVar("WireT", bound=Wire)

_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
"""A string, also one that is never closed: else each quote in it would be tried as a beginning."""
_ALTERNATIVE = re.compile(r"[\[\]A-Z]|^(constrained-)?(str|int|float)$")
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NOT_BRACKETS = bytes(set(range(256)) - set(_STEPS))
_DISCARDED_PARTS = 4
"""A body is read, and dropped, up to so many times the limit: answered earlier, a client that is still sending sees a
broken connection and not the answer."""
_LARGE_BYTES = 2**20
"""From here on parsing takes long enough to be felt by other requests, and goes to a thread."""


def json_body(cls: type[WireT]) -> Callable[[Request], Coroutine[Any, Any, WireT]]:
    """Return the dependency that reads a request's body as `cls`; it raises `ApiError`."""

    async def read(request: Request) -> WireT:
        limits: Limits = request.app.state.services.args.limits
        _check_content_type(request)
        raw = await read_body(request, limits)
        if len(raw) < _LARGE_BYTES:
            return parse(cls, raw, limits.json_depth, limits)
        return await asyncio.to_thread(parse, cls, raw, limits.json_depth, limits)

    return read


def body_schema(cls: type[Wire]) -> dict[str, Any]:
    """Return what OpenAPI says of a body of class `cls`; `serve.openapi` puts the class among the components."""
    reference = {"$ref": f"#/components/schemas/{cls.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the body. Raises `ApiError`: 413 where it is too large, 408 where it comes too slowly."""
    body, num_bytes = bytearray(), 0
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            async for piece in request.stream():
                num_bytes += len(piece)
                if num_bytes <= limits.body_bytes:
                    body += piece
                elif num_bytes > _DISCARDED_PARTS * limits.body_bytes:
                    break
    except TimeoutError:
        message = f"the body did not arrive within {limits.body_timeout_s:g} s; send it again"
        raise ApiError(408, message) from None
    except ClientDisconnect:
        raise ApiError(400, "the connection was closed before the body was complete; send it again") from None
    if num_bytes > limits.body_bytes:
        raise _too_large(limits)
    return bytes(body)


def parse(cls: type[WireT], raw: bytes, most_deep: int, limits: Limits | None = None) -> WireT:
    """Return the body `raw` as `cls`. Raises `ApiError` 400; what is too long by `limits` is not looked into."""
    value = parse_json(raw, most_deep)
    if not isinstance(value, dict):
        raise ApiError(400, f"the body is {_kind(value)}; send a JSON object")
    cls.refuse_unsupported(value)
    if limits is not None:
        cls.refuse_too_many(value, limits)
    try:
        return cls.model_validate(value)
    except pydantic.ValidationError as error:
        raise _invalid(cls, error) from None


def parse_json(raw: bytes, most_deep: int) -> Any:
    """Return the JSON value in `raw`. Raises `ApiError` 400: not JSON, NaN, too deep, or text that is not Unicode."""
    brackets = _STRINGS.sub(b"", raw).translate(None, _NOT_BRACKETS)
    if any(depth > most_deep for depth in itertools.accumulate(map(_STEPS.__getitem__, brackets))):
        raise ApiError(400, f"the JSON is nested deeper than {most_deep} levels; send a flatter one")
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8: byte {error.start} is wrong; send JSON in UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON ({' '.join(str(error).split())[:200]}); check it") from None
    if b"\\u" in raw:
        _refuse_lone_surrogates(value)
    return value


def _check_content_type(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        got = repr(kind[:100]) if kind else "none"
        raise ApiError(415, f"the Content-Type is {got}; send application/json")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def _refuse_lone_surrogates(value: Any) -> None:
    for text in _texts(value):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            code = f"\\u{ord(text[error.start]):04x}"
            message = f"a text holds half of a surrogate pair ({code}), which is no character; send both or neither"
            raise ApiError(400, message) from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"the body is over {limits.body_bytes:,} bytes; upload long texts as documents instead")


def _invalid(cls: type[Wire], error: pydantic.ValidationError) -> ApiError:
    """Return the first of what is wrong; of alternatives, the one that got furthest."""
    items = error.errors(include_url=False, include_context=False)
    unknown = (each for each in items if each["type"] == "extra_forbidden")
    item = next(unknown, None) or max(items, key=lambda each: _how_far(each["loc"]))
    if item["type"] == "extra_forbidden":
        return _unknown(cls, item["loc"])
    param = ".".join(_path(item["loc"]))
    if item["type"] == "missing":
        return ApiError(400, f"the field {param!r} is missing; it is required", param=param)
    message = item["msg"].removeprefix("Value error, ")
    got = _shown(item["input"])
    return ApiError(400, f"{param}: got {got}; {message[:1].lower()}{message[1:]}", param=param or None)


def _unknown(cls: type[Wire], loc: tuple[int | str, ...]) -> ApiError:
    name = str(loc[-1])[:100]
    param = ".".join([*_path(loc[:-1]), name])
    return ApiError(400, f"unknown field {param!r}; {_suggestion(name, cls)}", param=param)


def _path(loc: tuple[int | str, ...]) -> list[str]:
    """Return the fields and places in `loc`, without the names of alternatives."""
    return [str(part) for part in loc if isinstance(part, int) or not _ALTERNATIVE.search(part)]


def _how_far(loc: tuple[int | str, ...]) -> tuple[int, list[int]]:
    """Return how deep a place lies, and how far behind in its lists."""
    return len(loc), [part for part in loc if isinstance(part, int)]


def _shown(value: Any) -> str:
    """Return `value` in a few words; it may be millions of numbers."""
    if isinstance(value, list | dict) and len(value) > 8:
        return f"{'an array' if isinstance(value, list) else 'an object'} of {len(value)}"
    return repr(value[:80] if isinstance(value, str) else value)[:80]


def _suggestion(name: str, cls: type[Wire]) -> str:
    close = difflib.get_close_matches(name, cls.model_fields, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else "it is not one of this API's; see /openapi.json"
