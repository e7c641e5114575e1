"""What a run tells its user while it goes: events from the workers, one board that holds them, one printer.

Workers push events without waiting; the driver polls the board and prints. Nothing here touches the loss curve.
"""

import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

import ray

Event = dict[str, Any]
POLL_INTERVAL_S = 0.5


class Board:
    """Events in order, kept by one actor so that workers and driver need no common file system."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._fatal: Event | None = None

    def push(self, event: Event) -> None:
        """Append `event`; the first of kind `fatal` is remembered."""
        self._events.append(event)
        if event["kind"] == "fatal" and self._fatal is None:
            self._fatal = event

    def since(self, position: int) -> list[Event]:
        """Return the events from `position` on."""
        return self._events[position:]

    def fatal(self) -> Event | None:
        """Return the first fatal event, or None."""
        return self._fatal


class Follower:
    """A thread of the driver that hands every new event of a board to a callback, until closed."""

    def __init__(self, board: Any, on_event: Callable[[Event], None], *, on_idle: Callable[[], None]) -> None:
        self._board, self._on_event, self._on_idle = board, on_event, on_idle
        self._position = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> "Follower":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._drain()

    def _follow(self) -> None:
        while not self._stop.wait(POLL_INTERVAL_S):
            self._drain()
            self._on_idle()

    def _drain(self) -> None:
        for event in ray.get(self._board.since.remote(self._position)):
            self._position += 1
            self._on_event(event)


class Printer:
    """Prints progress lines: one that is rewritten on a terminal, one per report elsewhere."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._live = self._out.isatty()
        self._open_line = False

    def progress(self, line: str, *, keep: bool = False) -> None:
        """Show `line`; on a terminal the next one replaces it unless `keep`."""
        if not self._live:
            print(line, file=self._out, flush=True)
            return
        self._out.write(f"\r\x1b[2K{line}" + ("\n" if keep else ""))
        self._out.flush()
        self._open_line = not keep

    def say(self, text: str) -> None:
        """Print `text` on lines of its own."""
        if self._open_line:
            self._out.write("\n")
            self._open_line = False
        print(text, file=self._out, flush=True)
