"""What a gateway asks of a replica of the model; plain data that crosses processes."""

from dataclasses import dataclass, field
from typing import Any

from hsokv_ray.inference.engine.requests import Sampling


@dataclass(frozen=True)
class ChatMessage:
    """A message of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class GenerateCall:
    """One prompt to be continued."""

    request_id: str
    owner: str
    prompt: str | tuple[int, ...] = ""
    """Text or token ids; without effect where there are messages."""
    messages: tuple[ChatMessage, ...] | None = None
    """A chat."""
    documents: tuple[str, ...] = ()
    """Ids of documents that stand before the prompt."""
    sampling: Sampling = field(default_factory=Sampling)
    unlimited: bool | None = None
    """Whether the input may pass the window; None: as the replica is set."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Long context settings of this request."""
    passages: bool = False
    """Tell which parts of the input the answer drew on."""
    is_streamed: bool = True
    """Whether somebody reads the answer as it is written."""


@dataclass(frozen=True)
class DrawnFrom:
    """A passage an answer drew on, in its source. Sent behind `Finished`."""

    document: str | None
    """None: the prompt."""
    begin: int
    end: int
    mass: float
    char_begin: int | None = None
    char_end: int | None = None
    text: str | None = None


@dataclass(frozen=True)
class Sources:
    """The passages of an answer, heaviest first."""

    passages: tuple[DrawnFrom, ...]


@dataclass(frozen=True)
class ModelFacts:
    """What a replica says of its model."""

    model: str
    """Folder or hub name it was loaded from."""
    window_tokens: int | None
    max_input_tokens: int
    max_new_tokens: int
    max_choices: int
    unlimited: bool
    num_parameters: int
    device: str
    created: int
    """Unix time at which the replica had loaded it."""


@dataclass(frozen=True)
class Refused:
    """The request was refused, or broke off, outside the engine; the last of its events."""

    status: int
    """Of HTTP."""
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None
