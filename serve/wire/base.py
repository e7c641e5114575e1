"""Base of all requests and answers."""

from typing import Any, ClassVar

import pydantic
from pydantic_core import CoreSchema

from serve.args import Limits
from serve.errors import ApiError

_SPARE_FIELDS = 64
"""Fields beyond the known ones that are looked at, so that the error names one."""


def _fail_fast(schema: Any) -> None:
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for inner in schema.values():
            _fail_fast(inner)
    elif isinstance(schema, list | tuple):
        for inner in schema:
            _fail_fast(inner)


class Wire(pydantic.BaseModel):
    """A JSON object; unknown fields are errors, and types are not converted."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Fields of OpenAI's that are not served -> the values that ask for nothing, and may be given."""

    counted: ClassVar[dict[str, str]] = {}
    """Fields that are lists -> the limit on how many are in them."""

    @classmethod
    def refuse_unsupported(cls, values: dict[str, Any]) -> None:
        """Take harmless values of fields that are not served out of `values`; raise `ApiError` for the others."""
        for name, harmless in cls.unsupported.items():
            if name not in values:
                continue
            value = values.pop(name)
            if value is not None and not any(type(value) is type(each) and value == each for each in harmless):
                raise ApiError(400, f"{name!r} is not supported here; leave it out", param=name, code="unsupported")

    @classmethod
    def refuse_too_many(cls, values: dict[str, Any], limits: Limits) -> None:
        """Raise `ApiError` where a list is too long, before anything in it is looked at."""
        for name, limit in cls.counted.items():
            given, most = values.get(name), getattr(limits, limit)
            if isinstance(given, list) and len(given) > most:
                raise ApiError(400, f"{name}: got {len(given)}; at most {most}", param=name)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _refuse_very_many_fields(cls, values: Any) -> Any:
        if isinstance(values, dict) and len(values) > len(cls.model_fields) + _SPARE_FIELDS:
            raise ValueError(f"{len(values)} fields are more than there are; see /openapi.json")
        return values

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: pydantic.GetCoreSchemaHandler) -> CoreSchema:
        """Let every list end at its first wrong element: an error for each of a million would fill the memory."""
        schema = handler(source)
        _fail_fast(schema)
        return schema


class ErrorDetail(Wire):
    """What went wrong."""

    message: str
    """One line: what, what was got, what is allowed, what to do."""
    type: str
    """Kind of error, such as invalid_request_error."""
    param: str | None = None
    """Field of the request at fault."""
    code: str | None = None
    """Short name of the error."""


class ErrorBody(Wire):
    """Every error answer."""

    error: ErrorDetail
    """What went wrong."""
