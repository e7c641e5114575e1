"""POST /v1/embeddings."""

import base64
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Request

from serve import openapi
from serve.answering import error_of, refusal_of
from serve.bodies import body_schema, json_body
from serve.encoder import Embedded
from serve.errors import ApiError
from serve.openapi import errors
from serve.services import Services, services_of
from serve.vectors.wire import EmbeddingBody, EmbeddingsRequest, EmbeddingsResponse, EmbeddingsUsage

router = APIRouter()
openapi.BODIES.append(EmbeddingsRequest)


@router.post(
    "/v1/embeddings",
    responses=errors(400, 404, 408, 413, 415, 429, 503),
    openapi_extra=body_schema(EmbeddingsRequest),
)
async def create_embeddings(
    request: Request, body: Annotated[EmbeddingsRequest, Depends(json_body(EmbeddingsRequest))]
) -> EmbeddingsResponse:
    """Make texts into vectors, by the server's encoder."""
    services = services_of(request)
    name = _check(services, body)
    try:
        embedded: Embedded = await services.encoder.embed.remote(body.texts, body.dimensions)
    except Exception as error:  # whatever a replica raises is sorted there
        raise error_of(refusal_of(error)) from error
    data = [
        EmbeddingBody(index=index, embedding=_packed(vector, body.encoding_format))
        for index, vector in enumerate(embedded.vectors)
    ]
    usage = EmbeddingsUsage(prompt_tokens=embedded.num_tokens, total_tokens=embedded.num_tokens)
    return EmbeddingsResponse(data=data, model=name, usage=usage)


def _check(services: Services, body: EmbeddingsRequest) -> str:
    """Return the encoder's name. Raises `ApiError`: there is none, another one is asked for, or too many texts."""
    name = services.args.encoder
    if name is None or services.encoder is None:
        raise ApiError(404, "this server has no encoder; start it with encoder=NAME", code="no_encoder")
    if body.model not in (name, short_name(name)):
        message = f"no encoder {body.model[:100]!r} is served here; there is: {short_name(name)}"
        raise ApiError(404, message, param="model", code="model_not_found")
    most = services.args.limits.embedding_inputs
    if not 1 <= len(body.texts) <= most:
        raise ApiError(400, f"input: got {len(body.texts)} texts; 1 to {most} are taken at once", param="input")
    return short_name(name)


def short_name(spec: str) -> str:
    """Return the last part of an encoder's name or folder."""
    return spec.rstrip("/").rpartition("/")[2].rpartition(":")[2] or spec


def _packed(vector: np.ndarray, encoding_format: str) -> list[float] | str:
    if encoding_format == "float":
        return vector.tolist()
    return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()
