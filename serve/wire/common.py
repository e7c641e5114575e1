"""What chats and completions share."""

from typing import Annotated, Any, ClassVar, Literal

import pydantic

from serve.wire.base import Wire

FinishReason = Literal["stop", "length"]

_DOCUMENT_ID = r"^[A-Za-z0-9_-]{1,128}$"

_MOST_ENTRIES = {"logit_bias": 300, "metadata": 16}
"""OpenAI's."""

Stop = Annotated[str, pydantic.Field(max_length=1024)]


class StreamOptions(Wire):
    """How a stream is sent."""

    include_usage: bool | None = None
    """Send the numbers of tokens in a last chunk without choices."""

    include_obfuscation: bool | None = None
    """Accepted and without effect."""


class LongContextOptions(Wire):
    """How this request reads an input past the model's window."""

    enabled: bool | None = None
    """True: by retrieval; false: an input past the window is an error. Null: as the server is set."""

    passages: bool | None = None
    """Say which passages of the input the answer drew on."""

    budget_tokens: Annotated[int, pydantic.Field(ge=0, le=2**31)] | None = None
    """Tokens fetched per layer and key-value head, at most. Null: as the server is set."""

    local_tokens: Annotated[int, pydantic.Field(ge=1, le=2**31)] | None = None
    """Newest tokens, always attended. Null: as the server is set."""

    positions: Literal["contiguous", "fixed"] | None = None
    """Where fetched tokens stand for the rotary embedding. Null: as the server is set."""

    @property
    def settings(self) -> dict[str, Any]:
        """Return what was set, `enabled` and `passages` apart."""
        return self.model_dump(exclude_none=True, exclude={"enabled", "passages"})


class GenerationRequest(Wire):
    """How tokens are chosen, how many, and how they are sent."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none",),
        "response_format": ({"type": "text"},),
        "audio": (),
        "modalities": (["text"],),
        "prediction": (),
        "web_search_options": (),
        "reasoning_effort": (),
        "verbosity": (),
        "best_of": (1,),
        "echo": (False,),
        "suffix": ("",),
    }

    counted: ClassVar[dict[str, str]] = {"documents": "num_documents"}

    model: str = pydantic.Field(max_length=1024)
    """Name of the model, as GET /v1/models lists it."""

    stream: bool | None = None
    """Send the answer piece by piece as server-sent events."""

    stream_options: StreamOptions | None = None
    """How the stream is sent."""

    max_tokens: Annotated[int, pydantic.Field(ge=1, le=2**31)] | None = None
    """New tokens, at most. Null: as the server is set; for completions 16."""

    temperature: Annotated[float, pydantic.Field(ge=0, le=2)] | None = None
    """Divides the logits; 0 always takes the likeliest token. Null: 1."""

    top_p: Annotated[float, pydantic.Field(gt=0, le=1)] | None = None
    """Smallest set of tokens with this much probability is drawn from. Null: 1, all."""

    top_k: Annotated[int, pydantic.Field(ge=-1, le=2**31)] | None = None
    """Number of likeliest tokens drawn from. Null, 0 or -1: all."""

    min_p: Annotated[float, pydantic.Field(ge=0, le=1)] | None = None
    """Tokens below this share of the likeliest one's probability are not drawn. Null: 0."""

    n: Annotated[int, pydantic.Field(ge=1, le=128)] | None = None
    """Answers to the same prompt; the server's own limit is lower. Null: 1."""

    seed: Annotated[int, pydantic.Field(ge=-(2**63), lt=2**63)] | None = None
    """Seed of the draws. Null: a new one each time."""

    stop: Stop | list[Stop] | None = None
    """Texts at which generation ends; they are not part of the answer. At most 16, of 1024 characters each."""

    frequency_penalty: Annotated[float, pydantic.Field(ge=-2, le=2)] | None = None
    """Taken from a token's logit for each time it was generated."""

    presence_penalty: Annotated[float, pydantic.Field(ge=-2, le=2)] | None = None
    """Taken from the logit of each token that was generated."""

    repetition_penalty: Annotated[float, pydantic.Field(gt=0, le=10)] | None = None
    """Divides the logits of tokens that prompt or answer hold. Null: 1."""

    logit_bias: dict[str, Annotated[float, pydantic.Field(ge=-100, le=100)]] | None = None
    """Token id -> what is added to its logit. At most 300."""

    ignore_eos: bool | None = None
    """Go on past the end-of-text token, up to `max_tokens`."""

    documents: list[Annotated[str, pydantic.Field(pattern=_DOCUMENT_ID)]] | None = None
    """Ids of documents that stand before the prompt, in this order."""

    long_context: LongContextOptions | None = None
    """How an input past the model's window is read."""

    user: str | None = None
    """Accepted and without effect."""
    metadata: dict[str, str] | None = None
    """Accepted and without effect."""
    store: bool | None = None
    """Accepted and without effect: nothing is stored."""
    service_tier: str | None = None
    """Accepted and without effect."""
    safety_identifier: str | None = None
    """Accepted and without effect."""
    prompt_cache_key: str | None = None
    """Accepted and without effect: prefixes are found by their content."""
    parallel_tool_calls: bool | None = None
    """Accepted and without effect."""

    @pydantic.field_validator("stop", mode="before")
    @classmethod
    def _check_stop(cls, value: Any) -> Any:
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list) and (len(texts) > 16 or "" in texts):
            raise ValueError("give at most 16 texts, none of them empty")
        return value

    @pydantic.field_validator("logit_bias", "metadata", mode="before")
    @classmethod
    def _check_size(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        most = _MOST_ENTRIES[str(info.field_name)]
        if isinstance(value, dict) and len(value) > most:
            raise ValueError(f"give at most {most} entries")
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        """Return the stop texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def sends_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class PromptDetails(Wire):
    """Of the prompt's tokens."""

    cached_tokens: int
    """Were read before and not read again."""


class UsageBody(Wire):
    """Tokens that were read and generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class PassageBody(Wire):
    """A passage the answer drew on."""

    document: str | None
    """Id of the document; null: the prompt."""
    begin: int
    """First token, counted from the beginning of the whole input."""
    end: int
    """Token behind the last."""
    mass: float
    """Share of the attention it got."""
    char_begin: int | None = None
    """First character in the document's text."""
    char_end: int | None = None
    """Character behind the last."""
    text: str | None = None
    """The passage itself, where it is of the prompt."""


class TimingBody(Wire):
    """Where the time went."""

    queue_s: float
    first_token_s: float
    seconds: float
    retrieval_ms_mean: float
    retrieval_share: float


class Extension(Wire):
    """What this server says beyond OpenAI's fields."""

    cached_tokens: int
    """Tokens of prompt and documents that had been read before."""
    document_tokens: int
    """Tokens of the documents."""
    timing: TimingBody | None = None
    """Where the time went; of the first prompt."""
    passages: list[PassageBody] | None = None
    """Passages the answer drew on, where asked for; of the first prompt."""
