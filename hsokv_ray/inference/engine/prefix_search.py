"""What of an input was read before, and who reads the rest: of requests with the same beginning, one at a time."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from hsokv_ray.longcontext.prefixes import Prefixes
from hsokv_ray.longcontext.segments import Encoded

_LOOK_AGAIN_S = 1.0
_MOST_REFUSALS = 8
"""Claims refused at once, at most: a store that says it knows a text and cannot give it is not asked for ever."""


@dataclass(frozen=True)
class Found:
    """The longest beginning that was read before."""

    encoded: Encoded | None = None
    claim: str | None = None
    """Digest that others wait for until it is released."""


def search(prefixes: Prefixes, digests: list[str], is_wanted: Callable[[], bool]) -> Found:
    """Return what is known of an input with these digests, which ascend in length.

    While somebody else reads the next part, wait for them. Once `is_wanted` says no, nothing is found.
    """
    num_refusals = 0
    while is_wanted():
        encoded = prefixes.find(digests)
        missing = digests if encoded is None else digests[digests.index(encoded.digest) + 1 :]
        asked = time.monotonic()
        if not missing or num_refusals > _MOST_REFUSALS:
            return Found(encoded)
        if prefixes.claim(missing[0], _LOOK_AGAIN_S):
            return Found(encoded, missing[0])
        num_refusals += time.monotonic() - asked < _LOOK_AGAIN_S / 2
    return Found()
