"""ByteBudget: how much may be on its way at once. Past it a call is refused, with the time after which to come back.

budget = ByteBudget(64 * 2**20, "the shard")
with budget.room(rows.nbytes):
    ...
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hsokv_ray.errors import Overloaded

_BYTES_PER_S = 200e6
"""How fast a queue empties, roughly; only the hint for when to come back depends on it."""


class ByteBudget:
    """Counts bytes up to a limit; what is larger than the limit is let through when it is alone."""

    def __init__(self, limit_bytes: int, owner: str) -> None:
        self.limit_bytes, self._owner = limit_bytes, owner
        self.num_bytes = 0
        """Taken now."""
        self.refused = 0
        """Calls refused so far."""
        self._lock = threading.Lock()

    def take(self, num_bytes: int) -> None:
        """Count `num_bytes` until `give`. Raises `Overloaded` where they do not fit."""
        with self._lock:
            if self.num_bytes and self.num_bytes + num_bytes > self.limit_bytes:
                self.refused += 1
                held = f"{self._owner} holds {self.num_bytes} bytes of calls"
                message = f"{held}, {num_bytes} more pass its limit of {self.limit_bytes}"
                raise Overloaded(message, retry_after_s=0.05 + self.num_bytes / _BYTES_PER_S)
            self.num_bytes += num_bytes

    def give(self, num_bytes: int) -> None:
        """Count them no longer."""
        with self._lock:
            self.num_bytes -= num_bytes

    @contextmanager
    def room(self, num_bytes: int) -> Iterator[None]:
        """Take them for the time of a `with` block."""
        self.take(num_bytes)
        try:
            yield
        finally:
            self.give(num_bytes)
