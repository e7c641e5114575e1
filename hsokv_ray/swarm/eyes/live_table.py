"""The live view of a search in a terminal; where output is no terminal, lines.

    with LiveTable(name="words") as table:
        search(task, config, folder=folder, on_status=table)

A terminal shows a table that is drawn anew in place, at most 4 times a second, always of the same height. Elsewhere a
line is printed for every new best score, once a minute, and at the end.
"""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live

from hsokv_ray.swarm.eyes.status_view import status_line, status_view
from hsokv_ray.swarm.status import Status

REFRESH_S = 0.25
LINE_EVERY_S = 60.0


class LiveTable:
    """Shows one status after the other.

    Args:
        name: of the run.
        console: where to; None: standard output.
        clock: seconds; monotonic.
    """

    def __init__(
        self, name: str = "", *, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name, self._console, self._clock = name, console or Console(), clock
        self._live: Live | None = None
        self._last: Status | None = None
        self._shown: Status | None = None
        self._shown_at = float("-inf")

    def __call__(self, status: Status) -> None:
        """Show `status`, or keep it for later where the last one was shown just now."""
        self._last = status
        if self._is_due(status):
            self._draw(status)

    def close(self) -> None:
        """Show what was kept, and leave the terminal as it is."""
        if self._last is not None and self._last is not self._shown:
            self._draw(self._last)
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _is_due(self, status: Status) -> bool:
        since_s = self._clock() - self._shown_at
        if self._console.is_terminal:
            return since_s >= REFRESH_S
        return since_s >= LINE_EVERY_S or _is_better(status, self._shown)

    def _draw(self, status: Status) -> None:
        if self._console.is_terminal:
            self._started().update(status_view(status, name=self._name, height=self._console.height), refresh=True)
        else:
            line = status_line(status, is_better=_is_better(status, self._shown))
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)
        self._shown, self._shown_at = status, self._clock()

    def _started(self) -> Live:
        if self._live is None:
            # No thread of its own: it would draw between two lines that something else prints.
            self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
            self._live.start()
        return self._live


def _is_better(status: Status, before: Status | None) -> bool:
    if status.best is None:
        return False
    return before is None or before.best is None or status.best.score > before.best.score
