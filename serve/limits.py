"""How many generations an owner may run at once."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serve.errors import ApiError


class OwnerLimit:
    """Counts what runs for each owner; used by one event loop.

    Args:
        most: at once, for one owner.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._running: Counter[str] = Counter()

    @contextmanager
    def hold(self, owner: str) -> Iterator[None]:
        """Count one more for `owner` while the block runs. Raises `ApiError` 429 where it is one too many."""
        if self._running[owner] >= self._most:
            raise ApiError(
                429,
                f"{self._most} requests of this key run already, which is the most; wait for one of them to end",
                retry_after_s=1,
            )
        self._running[owner] += 1
        try:
            yield
        finally:
            self._running[owner] -= 1
            if not self._running[owner]:
                del self._running[owner]

    @property
    def num_running(self) -> int:
        """Return how many run, of all owners."""
        return self._running.total()
