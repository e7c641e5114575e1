"""Base of all requests and answers."""

from typing import Any, ClassVar

import pydantic

from serve.errors import ApiError


class Wire(pydantic.BaseModel):
    """A JSON object; unknown fields are errors, and types are not converted."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Fields of OpenAI's that are not served -> the values that ask for nothing, and may be given."""

    @classmethod
    def refuse_unsupported(cls, values: dict[str, Any]) -> None:
        """Take harmless values of fields that are not served out of `values`; raise `ApiError` for the others."""
        for name, harmless in cls.unsupported.items():
            if name not in values:
                continue
            value = values.pop(name)
            if value is not None and not any(type(value) is type(each) and value == each for each in harmless):
                raise ApiError(400, f"{name!r} is not supported here; leave it out", param=name, code="unsupported")


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
