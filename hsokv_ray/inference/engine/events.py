"""What a request's stream carries, in this order: Started, pieces and ends of its choices, then Finished or Failed.

Events hold numbers and text only, so they may cross processes. A failed request may end without `Started`; a cancelled
one ends without another event.
"""

from dataclasses import dataclass
from typing import Literal

Reason = Literal["stop", "length", "window"]
FailedKind = Literal["invalid", "overloaded", "unavailable", "internal"]


@dataclass(frozen=True, slots=True)
class Started:
    """The request left the queue."""

    prompt_tokens: int
    """Tokens of the whole input, documents included."""
    cached_tokens: int
    """Of these, read before this request: documents, and a prefix that was known."""
    document_tokens: int
    """Of these, in documents."""
    first_in_queue_s: float
    """Seconds it waited."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely a token was, before temperature and every other setting of the sampling."""

    token_id: int
    text: str
    logprob: float
    top: tuple["TokenLogprob", ...] = ()
    """The likeliest tokens of this place, likeliest first; their own `top` is empty."""


@dataclass(frozen=True, slots=True)
class Piece:
    """More of an answer. Pieces of a choice, joined, are its text and its tokens."""

    choice: int
    text: str
    """Whole characters, never the beginning of what turns out to be a stop string."""
    token_ids: tuple[int, ...]
    """An end token is among them."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """One for each token; None where they were not asked for."""


@dataclass(frozen=True, slots=True)
class ChoiceEnded:
    """A choice is complete."""

    choice: int
    reason: Reason
    """An end token or a stop string; `max_tokens`; or the model's window, where the request is not unlimited."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of the input that the answer drew on."""

    begin: int
    """First token, counted through the whole input, documents first."""
    end: int
    mass: float
    """Share of the attention it got, a mean over layers that fetch, heads and generated tokens."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request."""

    prompt_tokens: int
    """The whole input, documents included."""
    completion_tokens: int
    """Of all choices, end tokens included."""
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a request went."""

    queue_s: float
    first_token_s: float
    """From submission to the first token of the first choice."""
    seconds: float
    """From submission to the end."""
    retrieval_ms_mean: float
    """Choosing and fetching, per generated token; 0 inside the window."""
    retrieval_share: float
    """Of `seconds`, reading the prompt included."""


@dataclass(frozen=True, slots=True)
class Finished:
    """All choices are complete."""

    usage: Usage
    timing: Timing
    passages: tuple[Passage, ...] | None = None
    """Heaviest first; None where they were not asked for."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended early."""

    kind: FailedKind
    message: str
    """One line for the user."""
    param: str | None = None
    """The option that is wrong."""
    retry_after_s: float | None = None


Event = Started | Piece | ChoiceEnded | Finished | Failed
