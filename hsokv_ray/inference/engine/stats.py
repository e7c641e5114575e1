"""What the engine has done since it started, and what it holds now."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from hsokv_ray.longcontext.row import Row

GAP_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass
class Gaps:
    """How long tokens were apart, as a histogram."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(GAP_BOUNDS_S) + 1))
    """Gaps up to each of `GAP_BOUNDS_S` and above the one before; the last counts those above all."""
    total_s: float = 0.0

    def add(self, seconds: float, number: int) -> None:
        """Note `number` gaps of so many seconds."""
        self.counts[bisect_left(GAP_BOUNDS_S, seconds)] += number
        self.total_s += seconds * number


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
    encode_s: float = 0.0
    """Reading texts to encode, waiting apart."""
    cached_tokens: int = 0
    """Of inputs, not read anew."""
    steps: int = 0
    step_s: float = 0.0
    pieces: int = 0
    piece_s: float = 0.0
    retrieval_s: float = 0.0
    """Choosing and fetching, of requests that ended."""
    gaps: Gaps = field(default_factory=Gaps)
    """Between the tokens of an answer."""
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
