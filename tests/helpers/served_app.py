"""What tests of the running application share."""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

APP = "tests"
CHAOS_APP = "chaos"
KEYS = {"ann": "key-of-ann-0123456789", "ben": "key-of-ben-0123456789"}
MODEL = "tiny"


@dataclass(frozen=True)
class Served:
    """The running application."""

    url: str
    folder: Path
    """The model's."""
    args: Any
    app: str = APP
    model: str = MODEL
    key: str = KEYS["ann"]
    other_key: str = KEYS["ben"]

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_until(condition: Callable[[], Any], *, within_s: float = 60, what: str = "it") -> Any:
    """Return what `condition` returns once that is true; fail after `within_s`."""
    end_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < end_s, f"{what} did not happen within {within_s} s"
        time.sleep(0.02)
    return found
