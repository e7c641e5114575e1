"""POST /v1/memory/{collection}/upsert, query and delete: vectors in the memory that the cluster shares."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from starlette.concurrency import run_in_threadpool

from hsokv_ray.memory.stores.types import Hit
from serve import openapi
from serve.bodies import body_schema, json_body
from serve.errors import ApiError
from serve.keys import current_owner
from serve.openapi import errors
from serve.services import services_of
from serve.vectors.collections import PATTERN, Collections
from serve.vectors.wire import (
    DeleteRequest,
    DeleteResponse,
    HitBody,
    QueryRequest,
    QueryResponse,
    UpsertRequest,
    UpsertResponse,
)

router = APIRouter(prefix="/v1/memory")
openapi.BODIES.extend((UpsertRequest, QueryRequest, DeleteRequest))

Owner = Annotated[str, Depends(current_owner)]
Name = Annotated[str, Path(pattern=PATTERN, description="Letters, digits, _ . -; a letter or digit first.")]
MAX_HITS = 10_000
"""Of one query, all its vectors together."""
_ERRORS = errors(400, 404, 408, 413, 415, 429, 503)


@router.post("/{collection}/upsert", responses=_ERRORS | errors(507), openapi_extra=body_schema(UpsertRequest))
async def upsert(
    request: Request,
    owner: Owner,
    collection: Name,
    body: Annotated[UpsertRequest, Depends(json_body(UpsertRequest))],
) -> UpsertResponse:
    """Keep vectors with metadata; the first ones make the collection. They are on disk when this returns."""
    _check_number(request, "ids", len(body.ids))
    _check_number(request, "vectors", len(body.vectors))

    collections = _collections(request)

    def work() -> int:
        with collections.writing(owner, collection) as memory:
            return memory.upsert(body.ids, body.vectors, body.metadata)

    return UpsertResponse(upserted=await run_in_threadpool(work))


@router.post("/{collection}/query", responses=_ERRORS, openapi_extra=body_schema(QueryRequest))
async def query(
    request: Request,
    owner: Owner,
    collection: Name,
    body: Annotated[QueryRequest, Depends(json_body(QueryRequest))],
) -> QueryResponse:
    """Return the records nearest to each vector; a collection that nothing was written to has none."""
    _check_number(request, "vectors", len(body.vectors))

    _check_hits(len(body.vectors), body.top_k)
    collections = _collections(request)

    def work() -> list[list[HitBody]]:
        with collections.using(owner, collection) as memory:
            found = memory.query(body.vectors, body.top_k, body.filter)
        return [[_body(hit, with_metadata=body.include_metadata) for hit in row] for row in found]

    return QueryResponse(data=await run_in_threadpool(work))


@router.post("/{collection}/delete", responses=_ERRORS, openapi_extra=body_schema(DeleteRequest))
async def delete(
    request: Request,
    owner: Owner,
    collection: Name,
    body: Annotated[DeleteRequest, Depends(json_body(DeleteRequest))],
) -> DeleteResponse:
    """Delete records by id, or all that pass a filter."""
    _check_number(request, "ids", len(body.ids or ()))

    collections = _collections(request)

    def work() -> int:
        with collections.using(owner, collection) as memory:
            return memory.delete(body.ids, filter=body.filter)

    return DeleteResponse(deleted=await run_in_threadpool(work))


def _body(hit: Hit, *, with_metadata: bool) -> HitBody:
    return HitBody(id=hit.id, score=hit.score, metadata=hit.metadata if with_metadata else None)


def _collections(request: Request) -> Collections:
    """Return the collections of this process; in the event loop, for two threads might make two.

    Raises `ApiError` 404 where the server has no memory.
    """
    services = services_of(request)
    if services.args.memory is None:
        raise ApiError(404, "this server has no memory; start it with memory=NAME", code="no_memory")
    state = request.app.state
    if not hasattr(state, "collections"):
        state.collections = Collections(services.args.memory)
    return state.collections


def _check_hits(num_vectors: int, top_k: int) -> None:
    if num_vectors * top_k > MAX_HITS:
        message = f"top_k: got {top_k} for {num_vectors} vectors; at most {MAX_HITS:,} hits are sent at once: ask twice"
        raise ApiError(400, message, param="top_k")


def _check_number(request: Request, param: str, number: int) -> None:
    most = services_of(request).args.limits.vectors
    if number > most:
        raise ApiError(400, f"{param}: got {number}; at most {most} are taken at once", param=param)
