"""POST /v1/completions."""

from typing import Annotated, Any, Literal

import pydantic

from serve.args import Limits
from serve.errors import ApiError
from serve.wire.base import Wire
from serve.wire.common import Extension, FinishReason, GenerationRequest, UsageBody

TokenId = Annotated[int, pydantic.Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], pydantic.Field(min_length=1)]
Prompt = str | list[TokenId]


class CompletionRequest(GenerationRequest):
    """A text to be continued, or several."""

    prompt: str | list[str] | list[TokenId] | list[TokenIds] | None = None
    """A text, several, token ids, or several lists of token ids. Null or empty: the beginning of a text."""

    logprobs: Annotated[int, pydantic.Field(ge=0, le=20)] | None = None
    """Say how likely each token was, and this many of the likeliest ones."""

    @classmethod
    def refuse_too_many(cls, values: dict[str, Any], limits: Limits) -> None:
        super().refuse_too_many(values, limits)
        given, most = values.get("prompt"), limits.num_prompts
        if isinstance(given, list) and len(given) > most and not isinstance(given[0], int):
            raise ApiError(400, f"prompt: got {len(given)} prompts; at most {most} in a request", param="prompt")

    @property
    def prompts(self) -> list[Prompt]:
        """Return the prompts, each a text or token ids."""
        prompt = self.prompt
        if prompt is None or prompt == []:
            return [""]
        if isinstance(prompt, list) and not isinstance(prompt[0], int):
            return list(prompt)  # type: ignore[arg-type]
        return [prompt]  # type: ignore[list-item]


class CompletionLogprobs(Wire):
    """Of each generated token, in lists that go together."""

    text_offset: list[int]
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]


class CompletionChoice(Wire):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None


class CompletionResponse(Wire):
    """The continuations; in a stream, what is new in one of them."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody | None = None
    hsokv: Extension | None = None
