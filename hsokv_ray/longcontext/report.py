"""What a request cost: tokens, time, the share of it spent finding and fetching, and what is held."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np


class Stopwatch:
    """Adds up the time it was entered, forward pass by forward pass.

    watch.lap()          # in the first layer, and after the last pass
    with watch: ...      # in each layer

    On a GPU it counts what the host waits, since kernels run behind its back.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._started = self._open_s = 0.0
        self.total_s = 0.0
        self.laps_s: list[float] = []
        """Seconds of each forward pass that entered it, since `end_reading`."""

    def __enter__(self) -> Self:
        self._started = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = self._clock() - self._started
        self._open_s += seconds
        self.total_s += seconds

    def lap(self) -> None:
        """End a forward pass."""
        if self._open_s:
            self.laps_s.append(self._open_s)
            self._open_s = 0.0

    def end_reading(self) -> None:
        """Forget the passes so far, which read a prompt in pieces; the total stays."""
        self._open_s = 0.0
        self.laps_s = []


@dataclass(frozen=True)
class Report:
    """The measurements of one request."""

    num_memory_tokens: int
    num_prompt_tokens: int
    num_new_tokens: int
    first_token_s: float
    seconds: float
    retrieval_mean_ms: float
    """Per generated token: choosing and fetching in all layers."""
    retrieval_p95_ms: float
    retrieval_share: float
    """Of the whole time, reading the prompt included."""
    memory_bytes: int
    index_bytes: int

    def describe(self) -> str:
        """Return the measurements in one line."""
        rate = self.num_new_tokens / self.seconds if self.seconds else 0.0
        return (
            f"{self.num_new_tokens} tokens in {self.seconds:.2f} s ({rate:.1f} tokens/s), first after "
            f"{self.first_token_s * 1000:.0f} ms; {self.describe_retrieval()}"
        )

    def describe_retrieval(self) -> str:
        """Return what reading past the window cost, in one line."""
        return (
            f"over {self.num_memory_tokens:,} + {self.num_prompt_tokens:,} tokens; retrieval "
            f"{self.retrieval_mean_ms:.2f} ms per token (p95 {self.retrieval_p95_ms:.2f}), "
            f"{self.retrieval_share:.0%} of the time; memory {self.memory_bytes / 1e6:.1f} MB, "
            f"index {self.index_bytes / 1e6:.1f} MB"
        )


def make_report(watch: Stopwatch, *, seconds: float, **facts: float) -> Report:
    """Return the report of a request that took `seconds`."""
    laps = watch.laps_s
    return Report(
        seconds=seconds,
        retrieval_mean_ms=1000 * math.fsum(laps) / len(laps) if laps else 0.0,
        retrieval_p95_ms=1000 * float(np.percentile(laps, 95)) if laps else 0.0,
        retrieval_share=watch.total_s / seconds if seconds else 0.0,
        **facts,  # pyright: ignore[reportArgumentType]
    )
