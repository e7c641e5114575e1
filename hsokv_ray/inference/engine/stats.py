"""What the engine has done since it started, and what it holds now."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from hsokv_ray.longcontext.row import Row


@dataclass
class Counters:
    """Sums since the start; the engine's thread alone adds to them."""

    requests_started: int = 0
    requests_finished: int = 0
    request_s: float = 0.0
    """From submission to the end, of those that finished."""
    requests_failed: int = 0
    requests_cancelled: int = 0
    generated_tokens: int = 0
    read_tokens: int = 0
    """Of prompts, and of texts to encode."""
    encoded_tokens: int = 0
    """Of texts to encode."""
    cached_tokens: int = 0
    """Of inputs, not read anew."""
    steps: int = 0
    step_s: float = 0.0
    pieces: int = 0
    piece_s: float = 0.0
    retrieval_s: float = 0.0
    """Choosing and fetching, of requests that ended."""
    unpublished: int = 0
    """Texts that were read and could not be shared."""


@dataclass(frozen=True)
class EngineStats:
    """One look at an engine; fit for JSON through `dataclasses.asdict`."""

    queued: int
    """Requests that wait."""
    reading: int
    """Requests whose prompt is being read."""
    running: int
    """Choices that are being generated."""
    encoding: int
    """Texts being encoded, or waiting for it."""
    counters: Counters
    prefixes: dict[str, Any] = field(default_factory=dict)
    """What the store of read texts says of itself."""


def held_bytes(rows: Iterable[Row]) -> int:
    """Return the bytes of keys and values that `rows` hold; those that are shared count once."""
    spans = (span for row in rows for span in (row.sinks, row.local, *(far.span for far in row.far)))
    return sum({id(span.buffer): span.nbytes for span in spans}.values())


def told(prefixes: Any) -> dict[str, Any]:
    """Return what a store says of itself; {} where it says nothing."""
    stats: Any = getattr(prefixes, "stats", dict)()
    return dict(stats) if isinstance(stats, dict) else asdict(stats)
