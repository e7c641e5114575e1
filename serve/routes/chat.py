"""POST /v1/chat/completions."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from serve.answering import Answering
from serve.bodies import body_schema, json_body
from serve.calls import ChatMessage, GenerateCall
from serve.keys import current_owner
from serve.openapi import STREAMED
from serve.replies import reply
from serve.routes.asking import check, new_id, sampling
from serve.services import services_of
from serve.shapes import ChatShape, Choices
from serve.wire.chat import ChatRequest, ChatResponse

router = APIRouter(tags=["generation"])


@router.post(
    "/v1/chat/completions", response_model=ChatResponse, responses=STREAMED, openapi_extra=body_schema(ChatRequest)
)
async def create_chat_completion(
    request: Request,
    body: Annotated[ChatRequest, Depends(json_body(ChatRequest))],
    owner: Annotated[str, Depends(current_owner)],
) -> Response:
    """Continue a chat; with `stream`, piece by piece as server-sent events that end with `data: [DONE]`."""
    services = services_of(request)
    check(services, body)
    call = _call(body, owner)
    answering = Answering(services, owner, [call])
    shape, choices = ChatShape(call.request_id, services.model_name), Choices(1, body.n or 1)
    return await reply(answering, shape, choices, stream=bool(body.stream), sends_usage=body.sends_usage)


def _call(body: ChatRequest, owner: str) -> GenerateCall:
    options = body.long_context
    max_tokens = body.max_completion_tokens or body.max_tokens
    return GenerateCall(
        request_id=new_id(),
        owner=owner,
        messages=tuple(ChatMessage(each.role, each.text) for each in body.messages),
        documents=tuple(body.documents or ()),
        sampling=sampling(body, max_tokens=max_tokens, logprobs=body.num_logprobs),
        unlimited=options.enabled if options else None,
        settings=options.settings if options else {},
        passages=bool(options and options.passages),
        is_streamed=bool(body.stream),
    )
