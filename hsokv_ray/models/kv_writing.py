"""What is worth writing to a key-value memory: one pure function per policy, candidates to bool [N].

Surprise is the loss of what the model would have said (Grave 2017, arXiv:1612.04426, caches everything; here only what
it did not know); novelty is the distance to the nearest key that is there (as in Neural Episodic Control's
insert-or-update, Pritzel 2017, arXiv:1703.01988).

Shapes: N candidates, C entries.
"""

from typing import Literal

import pydantic
import torch
from torch import Tensor

from hsokv_ray.config import Config
from hsokv_ray.errors import ConfigError

PolicyName = Literal["always", "surprise", "novelty"]


class WritePolicy(Config):
    """Which candidates are written."""

    name: PolicyName = "always"
    """always: all. surprise: those whose loss is above `min_loss`. novelty: those further than `min_distance` from
    every entry."""
    min_loss: float = pydantic.Field(default=0.5, ge=0)
    """Loss in nats from which on the model counts as surprised."""
    min_distance: float = pydantic.Field(default=0.3, ge=0, le=2)
    """1 - cosine to the nearest entry above which a candidate is new."""


def policy_of(given: WritePolicy | str) -> WritePolicy:
    """Return `given`, or the policy of that name with its defaults. Raises `ConfigError`."""
    if isinstance(given, WritePolicy):
        return given
    if given not in ("always", "surprise", "novelty"):
        raise ConfigError(f"policy: got {given!r}; always, surprise, novelty or a WritePolicy is needed")
    return WritePolicy(name=given)


def always(num: int) -> Tensor:
    """Return True for each of `num` candidates."""
    return torch.ones(num, dtype=torch.bool)


def surprise(losses_N: Tensor, min_loss: float) -> Tensor:
    """Return whether the loss (nats) is above `min_loss`. A loss that is NaN surprises nobody: it is not written."""
    return losses_N > min_loss


def novelty(nearest_N: Tensor, min_distance: float) -> Tensor:
    """Return whether 1 - cosine is above `min_distance`.

    Args:
        nearest_N: cosine of the nearest entry; -inf where there is none, which is always new.
        min_distance: in [0, 2].
    """
    return 1.0 - nearest_N > min_distance


def choose(policy: WritePolicy, num: int, *, losses_N: Tensor | None, nearest_N: Tensor | None) -> Tensor:
    """Return which of `num` candidates `policy` writes, bool [num]; a policy looks at its own measure alone."""
    match policy.name:
        case "surprise":
            assert losses_N is not None, "the caller measures what the policy asks for"
            return surprise(losses_N, policy.min_loss)
        case "novelty":
            assert nearest_N is not None, "the caller measures what the policy asks for"
            return novelty(nearest_N, policy.min_distance)
    return always(num)
