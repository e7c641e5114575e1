"""POST /v1/completions."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from serve.answering import Answering
from serve.bodies import body_schema, json_body
from serve.calls import GenerateCall
from serve.errors import ApiError
from serve.keys import current_owner
from serve.openapi import STREAMED
from serve.replies import reply
from serve.routes.asking import check, new_id, sampling
from serve.services import Services, services_of
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
    calls = _calls(services, body, owner, request_id)
    answering = Answering(services, owner, calls)
    shape, choices = CompletionShape(request_id, services.model_name), Choices(len(calls), body.n or 1)
    return await reply(answering, shape, choices, stream=bool(body.stream), sends_usage=body.sends_usage)


def _calls(services: Services, body: CompletionRequest, owner: str, request_id: str) -> list[GenerateCall]:
    most, prompts = services.args.limits.num_prompts, body.prompts
    if len(prompts) > most:
        raise ApiError(400, f"prompt: got {len(prompts)} prompts; at most {most} in a request", param="prompt")
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
        )
        for number, prompt in enumerate(prompts)
    ]
