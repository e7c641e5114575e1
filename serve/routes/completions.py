"""POST /v1/completions."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from serve.answering import Answering
from serve.bodies import body_schema, json_body
from serve.calls import GenerateCall
from serve.keys import current_owner
from serve.openapi import STREAMED
from serve.replies import reply
from serve.routes.asking import check, new_id, sampling
from serve.services import services_of
from serve.shapes import Choices, CompletionShape
from serve.wire.completions import CompletionRequest, CompletionResponse

router = APIRouter(tags=["generation"])

_DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""


@router.post(
    "/v1/completions",
    response_model=CompletionResponse,
    responses=STREAMED,
    openapi_extra=body_schema(CompletionRequest),
)
async def create_completion(
    request: Request,
    body: Annotated[CompletionRequest, Depends(json_body(CompletionRequest))],
    owner: Annotated[str, Depends(current_owner)],
) -> Response:
    """Continue a text, or each of several; with `stream`, piece by piece as server-sent events."""
    services = services_of(request)
    check(services, body)
    request_id = new_id()
    calls = _calls(body, owner, request_id)
    answering = Answering(services, owner, calls)
    shape, choices = CompletionShape(request_id, services.model_name), Choices(len(calls), body.n or 1)
    return await reply(answering, shape, choices, stream=bool(body.stream), sends_usage=body.sends_usage)


def _calls(body: CompletionRequest, owner: str, request_id: str) -> list[GenerateCall]:
    options = body.long_context
    chosen = sampling(body, max_tokens=body.max_tokens or _DEFAULT_MAX_TOKENS, logprobs=body.logprobs)
    return [
        GenerateCall(
            request_id=f"{request_id}-{number}",
            owner=owner,
            prompt=prompt if isinstance(prompt, str) else tuple(prompt),
            documents=tuple(body.documents or ()),
            sampling=chosen,
            unlimited=options.enabled if options else None,
            settings=options.settings if options else {},
            passages=bool(options and options.passages),
            is_streamed=bool(body.stream),
        )
        for number, prompt in enumerate(body.prompts)
    ]
