"""Errors as OpenAI's clients expect them: a status, and {"error": {message, type, param, code}}."""

import math
from typing import Any

from hsokv_ray.errors import CheckpointError, ConfigError, DataError, HsokvError, Overloaded, RunError, StoreError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "unavailable_error",
    507: "storage_error",
}
_CODES = {
    401: "invalid_api_key",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    415: "unsupported_media_type",
    429: "rate_limit_exceeded",
    503: "unavailable",
    507: "insufficient_storage",
}


class ApiError(Exception):
    """What a route raises to answer with an error.

    Args:
        status: of HTTP.
        message: one line: what, what was got, what is allowed, what to do.
        type, code: OpenAI's; None derives them from the status.
        param: the field of the request at fault.
        retry_after_s: when to try again; sent as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,  # noqa: A002 - the name in the wire format
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.retry_after_s = status, message, param, retry_after_s
        self.type = type or _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.code = code or _CODES.get(status)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.status, self.message, self.type, self.param, self.code, self.retry_after_s)

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that go with the answer."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    @property
    def body(self) -> dict[str, Any]:
        """Return the body of the answer."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}


def of(error: HsokvError) -> ApiError:
    """Return `error` as an answer: what the user gave is 400, what is full 429, what is away 503."""
    message = str(error)
    if isinstance(error, Overloaded):
        return ApiError(429, message, code="overloaded", retry_after_s=error.retry_after_s)
    if isinstance(error, ConfigError | DataError):
        return ApiError(400, message)
    if isinstance(error, StoreError | RunError):
        return ApiError(503, message, retry_after_s=1)
    assert isinstance(error, CheckpointError | HsokvError)
    return ApiError(500, message)


def _rebuilt(
    status: int, message: str, kind: str, param: str | None, code: str | None, retry_after_s: float | None
) -> ApiError:
    return ApiError(status, message, type=kind, param=param, code=code, retry_after_s=retry_after_s)
