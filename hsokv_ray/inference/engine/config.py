"""Settings of the generation engine."""

import pydantic

from hsokv_ray.config import Config
from hsokv_ray.longcontext.config import LongContextConfig


class EngineConfig(Config):
    """How many requests run at once, what each may ask for, and how reading and generating share the time."""

    max_running: int = pydantic.Field(default=16, ge=1)
    """Choices that are read for or generated at once."""

    max_queued: int = pydantic.Field(default=64, ge=0)
    """Requests that wait, at most; more are refused. Encode jobs count apart, with the same limit."""

    prefill_share: float = pydantic.Field(default=0.5, gt=0, le=1)
    """Share of the time in which inputs are read while answers are being generated; 1: reading always goes first."""

    piece_tokens: int | None = pydantic.Field(default=None, ge=1)
    """Tokens read at once, in whole chunks past the window. None: one chunk while answers are being generated, about
    512 otherwise."""

    prefix_stride: int | None = pydantic.Field(default=None, ge=1)
    """Tokens between the places where a later input with the same beginning can go on reading; whole chunks. None:
    eight times the local part and a chunk."""

    long_context: LongContextConfig = LongContextConfig(enabled=True)
    """How inputs past the window are read."""

    unlimited: bool = True
    """Whether inputs and answers may pass the model's window where the request does not say."""

    max_new_tokens: int = pydantic.Field(default=4096, ge=1)
    """New tokens of a choice, at most; also where the request names none."""

    max_input_tokens: int | None = pydantic.Field(default=None, ge=1)
    """Tokens of documents and prompt together, at most. None: what a quarter of the memory that is free at the start
    holds at this model's bytes per token, at least its window and at most 2,000,000; `ServedModel.max_input_tokens` is
    the number."""

    max_choices: int = pydantic.Field(default=4, ge=1)
    """Choices of one request (`n`), at most."""

    max_logprobs: int = pydantic.Field(default=20, ge=0)
    """Alternatives per token (`logprobs`), at most."""

    max_passages: int = pydantic.Field(default=16, ge=1)
    """Passages told per request, at most."""

    prefix_cache_bytes: int = pydantic.Field(default=2 * 2**30, ge=0)
    """Bytes of inputs that were read, kept for later ones with the same beginning."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "EngineConfig":
        if self.max_choices > self.max_running:
            raise ValueError(
                f"--max-choices {self.max_choices} are more than --max-running {self.max_running}; lower the first or "
                "raise the second"
            )
        if not self.long_context.enabled:
            raise ValueError("--enabled false: the engine reads through long context; set --unlimited false instead")
        return self
