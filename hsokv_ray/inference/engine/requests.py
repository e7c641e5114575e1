"""What is asked of the engine. Nothing here is checked; `Engine.submit` does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsokv_ray.longcontext.segments import Encoded


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and when to stop."""

    max_tokens: int | None = None
    """New tokens of each choice, at most; None: the engine's cap."""
    temperature: float = 1.0
    """Divides the logits; 0 always takes the likeliest token (greedy)."""
    top_p: float = 1.0
    """Smallest set of tokens with this much probability is drawn from; 1 turns it off."""
    top_k: int = 0
    """Number of likeliest tokens drawn from; 0 turns it off."""
    min_p: float = 0.0
    """Tokens less likely than this share of the likeliest are left out; 0 turns it off."""
    seed: int | None = None
    """Of the draws, choice i takes `seed + i`; None: a new one each time."""
    n: int = 1
    """Choices."""
    stop: tuple[str, ...] = ()
    """An answer ends before the first of these texts."""
    logprobs: int | None = None
    """Tell how likely tokens were, with this many alternatives each; None: do not."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit for each time the answer has it."""
    presence_penalty: float = 0.0
    """Taken off a token's logit once the answer has it."""
    repetition_penalty: float = 1.0
    """Divides positive logits, and multiplies negative ones, of tokens that prompt or answer have; 1 turns it off."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Token id -> added to its logit."""
    ignore_eos: bool = False
    """Go on behind end tokens."""


@dataclass(frozen=True)
class Generation:
    """One request."""

    request_id: str
    prompt_ids: Sequence[int]
    """[N], at least one. Special tokens are the caller's to put."""
    after: "Encoded | None" = None
    """What was read before and stands before the prompt: documents."""
    sampling: Sampling = field(default_factory=Sampling)
    unlimited: bool | None = None
    """Whether the input may pass the model's window; None: as the engine is configured."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Long context settings of this request: `budget_tokens`, `local_tokens`, `positions`."""
    passages: bool = False
    """Tell which parts of the input the answer drew on."""
