"""GET /v1/models, GET /health, GET /metrics and GET /v1/status: what is served and how it is."""

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from ray.exceptions import RayError
from starlette.responses import JSONResponse

from serve.answering import refusal_of
from serve.board import EVERY_S, Report
from serve.calls import ModelFacts
from serve.errors import ApiError
from serve.metrics import render
from serve.openapi import errors
from serve.segments import segments_bytes
from serve.services import Services, current_services
from serve.wire.models import HealthBody, ModelBody, ModelList, StatusBody

router = APIRouter(tags=["server"])

_HEALTH_TIMEOUT_S = 5.0
_BOARD_TIMEOUT_S = 5.0
_BOARD_HEALTH_S = 1.0
_LATELY_S = 4 * EVERY_S
"""A report that is older says nothing of now."""


async def facts_of(services: Services) -> ModelFacts:
    """Return what a replica says of the model. Raises `ApiError` 503 where none answers in time."""
    try:
        async with asyncio.timeout(_HEALTH_TIMEOUT_S):
            return await services.generator.describe.remote()
    except TimeoutError:
        raise ApiError(503, "no replica of the model answers yet; try again", retry_after_s=2) from None
    except Exception as error:
        refusal = refusal_of(error)
        raise ApiError(503, f"the model cannot answer: {refusal.message}", retry_after_s=2) from error


@router.get("/v1/models", responses=errors(503))
async def list_models(services: Annotated[Services, Depends(current_services)]) -> ModelList:
    """Return the models that are served."""
    return ModelList(data=[_model(services, await facts_of(services))])


@router.get("/v1/models/{model:path}", responses=errors(404, 503))
async def get_model(
    services: Annotated[Services, Depends(current_services)], model: Annotated[str, Path(max_length=1024)]
) -> ModelBody:
    """Return what is known of one model."""
    if model != services.model_name:
        message = f"no model {model[:100]!r} is served here; there is: {services.model_name}"
        raise ApiError(404, message, param="model", code="model_not_found")
    return _model(services, await facts_of(services))


@router.head("/health", include_in_schema=False)
@router.get("/health", responses=errors(503))
async def health(services: Annotated[Services, Depends(current_services)]) -> HealthBody:
    """Return 200 where a replica of the model can answer; needs no key."""
    if not await _is_reported_ready(services):
        await facts_of(services)
    return HealthBody(model=services.model_name)


async def _is_reported_ready(services: Services) -> bool:
    """Return whether a replica said lately that it can answer: asked itself, it answers behind its generations."""
    try:
        async with asyncio.timeout(_BOARD_HEALTH_S):
            return await services.board.is_ready.remote(_LATELY_S)
    except (TimeoutError, RayError):
        return False


@router.get("/metrics", response_class=Response, responses=errors(503) | {200: {"content": {"text/plain": {}}}})
async def metrics(services: Annotated[Services, Depends(current_services)]) -> Response:
    """Return the metrics of every process of the application, for Prometheus."""
    return Response(render(await _reports(services)), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/status", responses=errors(503))
async def status(services: Annotated[Services, Depends(current_services)]) -> StatusBody:
    """Return the numbers of the moment, over all replicas."""
    reports = await _reports(services)
    replicas = [report for report in reports if report.role == "generator"]

    def total(name: str) -> float:
        return sum(report.numbers.get(name, 0) for report in replicas)

    return StatusBody(
        model=services.model_name,
        replicas=len(replicas),
        running=int(total("running")),
        queued=int(total("queued")),
        tokens_total=int(total("tokens_total")),
        tokens_per_s=total("tokens_per_s"),
        segment_bytes=int(total("segment_bytes")),
        segment_limit_bytes=segments_bytes(services.args),
        rss_bytes=sum(report.rss_bytes for report in reports),
        time_s=time.monotonic(),
    )


@router.get("/openapi.json", include_in_schema=False)
def openapi(request: Request) -> Response:
    """Return the description of this API."""
    return JSONResponse(request.app.openapi())


async def _reports(services: Services) -> list[Report]:
    try:
        async with asyncio.timeout(_BOARD_TIMEOUT_S):
            return await services.board.read.remote()
    except (TimeoutError, RayError):
        raise ApiError(503, "the metrics cannot be read at the moment; try again", retry_after_s=2) from None


def _model(services: Services, facts: ModelFacts) -> ModelBody:
    return ModelBody(
        id=services.model_name,
        created=facts.created,
        window_tokens=facts.window_tokens,
        max_input_tokens=facts.max_input_tokens,
        unlimited=facts.unlimited,
    )
