"""POST /v1/chat/completions."""

from typing import Annotated, Any, ClassVar, Literal

import pydantic

from serve.wire.base import Wire
from serve.wire.common import Extension, FinishReason, GenerationRequest, UsageBody


class TextPart(Wire):
    """A part of a message."""

    type: Literal["text"]
    """Only text is served."""
    text: str
    """The text."""


class Message(Wire):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    """Who speaks."""
    content: str | Annotated[list[TextPart], pydantic.Field(max_length=1024)]
    """What is said."""
    name: str | None = None
    """Accepted and without effect."""
    refusal: None = None
    """Of answers that are sent back."""
    tool_calls: None = None
    """Of answers that are sent back; tools are not served."""
    function_call: None = None
    """Of answers that are sent back; tools are not served."""
    audio: None = None
    """Of answers that are sent back; audio is not served."""
    annotations: list[Any] | None = None
    """Of answers that are sent back; without effect."""

    @property
    def text(self) -> str:
        """Return the content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(GenerationRequest):
    """A chat to be continued."""

    counted: ClassVar[dict[str, str]] = {**GenerationRequest.counted, "messages": "num_messages"}

    messages: list[Message] = pydantic.Field(min_length=1)
    """The chat so far."""

    max_completion_tokens: Annotated[int, pydantic.Field(ge=1, le=2**31)] | None = None
    """The same as `max_tokens`."""

    logprobs: bool | None = None
    """Say how likely each token was."""

    top_logprobs: Annotated[int, pydantic.Field(ge=0, le=20)] | None = None
    """Say the likeliest tokens at each place, this many; needs `logprobs`."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens are the same thing and differ here; give one")
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Return how many likeliest tokens to say, None where not even the token's own is asked for."""
        return (self.top_logprobs or 0) if self.logprobs else None


class TopLogprob(Wire):
    """A token and how likely it was."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobBody(TopLogprob):
    """The generated token, and the likeliest ones at its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Wire):
    """Of each generated token."""

    content: list[TokenLogprobBody]
    refusal: None = None


class AnswerMessage(Wire):
    """The model's message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Wire):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatResponse(Wire):
    """The answers."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody
    hsokv: Extension


class Delta(Wire):
    """What is new in a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Wire):
    """What is new in one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Wire):
    """An event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: UsageBody | None = None
    hsokv: Extension | None = None
