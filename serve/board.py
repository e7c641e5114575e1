"""The board: an actor to which every process of the application sends its metrics, so that one scrape shows all."""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
from prometheus_client import CollectorRegistry

logger = logging.getLogger(__name__)

READY = "ready"
"""The number that says whether a replica of the model can answer."""
STALE_S = 15.0
"""A process that has not been heard of for so long has ended."""
EVERY_S = 1.0
"""How often a process sends."""


@dataclass(frozen=True)
class Sample:
    """One number of a metric."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


@dataclass(frozen=True)
class Family:
    """One metric of one process, as plain data."""

    name: str
    help: str
    type: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Report:
    """What one process sends."""

    source: str
    """Its name, the label `replica` of its metrics."""
    role: str
    """gateway or generator."""
    families: tuple[Family, ...] = ()
    rss_bytes: int = 0
    """Memory it has in use."""
    numbers: dict[str, float] = field(default_factory=dict)
    """Of the moment: running, queued, tokens_total and so on."""


class Board:
    """Keeps the newest report of each process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reports: dict[str, tuple[float, Report]] = {}

    def post(self, report: Report) -> None:
        """Take `report` in the place of the last one of its source."""
        self._reports[report.source] = (self._clock(), report)
        self._forget()

    def read(self) -> list[Report]:
        """Return the reports of all processes that live."""
        self._forget()
        return [report for _, report in self._reports.values()]

    def is_ready(self, within_s: float) -> bool:
        """Return whether a replica of the model said within so many seconds that it can answer."""
        since = self._clock() - within_s
        return any(at >= since and report.numbers.get(READY) for at, report in self._reports.values())

    def _forget(self) -> None:
        oldest = self._clock() - STALE_S
        self._reports = {source: each for source, each in self._reports.items() if each[0] >= oldest}


def keep_posting(board: Any, report: Callable[[], Report], ended: threading.Event, every_s: float = EVERY_S) -> None:
    """Send `report()` to the actor `board` again and again until `ended`; what goes wrong is logged and tried again.

    A process that no longer reports counts as one that has ended.
    """
    while not ended.wait(every_s):
        try:
            board.post.remote(report())
        except Exception:
            logger.exception("the metrics could not be sent; trying again in %.0f s", every_s)


def families_of(registry: CollectorRegistry) -> tuple[Family, ...]:
    """Return the metrics in `registry` as plain data."""
    return tuple(
        Family(
            name=metric.name,
            help=metric.documentation,
            type=metric.type,
            samples=tuple(Sample(s.name, tuple(sorted(s.labels.items())), s.value) for s in metric.samples),
        )
        for metric in registry.collect()
    )


def rss_bytes() -> int:
    """Return the memory this process has in use."""
    return psutil.Process(os.getpid()).memory_info().rss
