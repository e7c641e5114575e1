"""How long a streamed answer's events gather before they are sent on, and what becomes one piece then."""

import os
from collections.abc import Sequence
from dataclasses import replace

from hsokv_ray.inference.engine.events import Event, Piece

_MESSAGE_S = 0.032 / (os.cpu_count() or 1)
"""Of all streams of a replica together, a message is sent as often, at most: it costs three processes about 3 ms of a
core, so that messages take a tenth of the machine."""
_LONGEST_S = 0.25


def rest_s(interval_s: float, num_streams: int) -> float:
    """Return the seconds between two messages of one of `num_streams` streams; 0: every token by itself."""
    return min(max(interval_s, num_streams * _MESSAGE_S), max(interval_s, _LONGEST_S)) if interval_s else 0.0


def merged(events: Sequence[Event]) -> list[Event]:
    """Return `events` with the pieces of each choice as one, where the first of them was."""
    result: list[Event] = []
    places: dict[int, int] = {}
    for event in events:
        if isinstance(event, Piece) and event.choice in places:
            place = places[event.choice]
            before = result[place]
            assert isinstance(before, Piece)
            result[place] = _joined(before, event)
            continue
        if isinstance(event, Piece):
            places[event.choice] = len(result)
        result.append(event)
    return result


def _joined(first: Piece, second: Piece) -> Piece:
    logprobs = None if first.logprobs is None else first.logprobs + (second.logprobs or ())
    return replace(
        first, text=first.text + second.text, token_ids=first.token_ids + second.token_ids, logprobs=logprobs
    )
