"""How far a long command is: a bar on a terminal, a line now and then elsewhere. On standard error.

with Meter("upsert", total=rows, unit="rows") as meter:
    meter.update(done)
"""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

LINE_EVERY_S = 10.0


class Meter:
    """Shows progress while it is entered.

    Args:
        title: what goes on.
        total: units there are; None where that is not known.
        unit: what is counted.
        out: where to; default standard error.
        clock: seconds.
    """

    def __init__(
        self,
        title: str,
        *,
        total: int | None,
        unit: str = "rows",
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._total, self._unit, self._clock = title, total, unit, clock
        self._out = out or sys.stderr
        self._last = clock()
        self._bar = None

    def __enter__(self) -> Self:
        if self._out.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(self._unit))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=Console(file=self._out))
            self._task = self._bar.add_task(self._title, total=self._total)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int) -> None:
        """Say that `done` units are behind us."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif self._clock() - self._last >= LINE_EVERY_S:
            self._last = self._clock()
            of = f" of {self._total:,}" if self._total is not None else ""
            self.say(f"{self._title}: {done:,}{of} {self._unit}")

    def say(self, text: str) -> None:
        """Print `text` on a line of its own."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._out, flush=True)
