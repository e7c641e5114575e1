"""The HTTP side: a FastAPI application over the replicas and actors. Holds neither model nor text."""

import logging
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import hsokv_ray
from hsokv_ray.errors import HsokvError
from serve import console_routes, vectors
from serve.answering import error_of, refusal_of
from serve.documents import routes as documents
from serve.errors import ApiError, of
from serve.keys import authenticate
from serve.openapi import describe
from serve.routes import chat, completions, models
from serve.services import Services

logger = logging.getLogger(__name__)


def make_app(services: Services) -> FastAPI:
    """Return the application. Every route depends on `authenticate`; FastAPI's own pages would not, so they are off."""
    app = FastAPI(
        title="hsokv_ray",
        version=getattr(hsokv_ray, "__version__", "0.1.0"),
        description="Generation over inputs past the model's window, documents that are read once, and vectors.",
        dependencies=[Depends(authenticate)],
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    for router in (chat.router, completions.router, models.router, documents.router, vectors.router):
        app.include_router(router)
    if services.args.console:
        app.include_router(console_routes.router)
    _answer_errors(app)
    app.openapi = lambda: _described(app, services)  # type: ignore[method-assign]
    app.add_middleware(Counted, services=services)
    if services.args.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(services.args.cors_origins),
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Upload-Offset"],
        )
    return app


class Counted:
    """Counts answers by route and status. The route's pattern is the label, so that ids do not become labels."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app, self._services = app, services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                self._services.metrics.answers.labels(route, str(message["status"])).inc()
            await send(message)

        return await self._app(scope, receive, counting)


def _described(app: FastAPI, services: Services) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = describe(app, has_keys=bool(services.keys))
    return app.openapi_schema


def _answer_errors(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _of_ours)
    app.add_exception_handler(HsokvError, _of_ours)
    app.add_exception_handler(HTTPException, _of_starlette)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _of_validation)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _of_bug)


def _answer(error: ApiError) -> Response:
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def _of_ours(request: Request, error: Exception) -> Response:
    cause: Any = getattr(error, "cause", error)  # from an actor it comes wrapped, with the traceback as its text
    return _answer(cause if isinstance(cause, ApiError) else of(cause))


async def _of_starlette(request: Request, error: HTTPException) -> Response:
    messages = {
        404: f"there is no route {request.url.path[:100]!r}; see /openapi.json",
        405: f"{request.url.path[:100]} has no method {request.method}; see /openapi.json",
    }
    answer = _answer(ApiError(error.status_code, messages.get(error.status_code, str(error.detail))))
    answer.headers.update(error.headers or {})
    return answer


async def _of_validation(request: Request, error: RequestValidationError) -> Response:
    item = error.errors()[0]
    param = ".".join(str(part) for part in item["loc"][1:])
    got = repr(item.get("input"))[:80]
    return _answer(ApiError(400, f"{param}: got {got}; {item['msg'][:1].lower()}{item['msg'][1:]}", param=param))


async def _of_bug(request: Request, error: Exception) -> Response:
    return _answer(error_of(refusal_of(error)))
