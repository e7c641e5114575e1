"""How many answers an owner may have generated at once."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serve.errors import ApiError


class OwnerLimit:
    """Counts the answers that run for each owner; used by one event loop.

    Args:
        most: at once, for one owner.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._running: Counter[str] = Counter()

    @contextmanager
    def hold(self, owner: str, number: int = 1) -> Iterator[None]:
        """Count `number` more for `owner` while the block runs.

        Raises:
            ApiError: 429 where they are too many now, 400 where they always are.
        """
        if number > self._most:
            raise ApiError(400, f"{number} answers are asked for at once; at most {self._most} are: send fewer prompts")
        if self._running[owner] + number > self._most:
            raise ApiError(
                429,
                f"{self._running[owner]} answers of this key are on their way and {number} more are asked for; "
                f"at most {self._most} at once: wait for some to end",
                retry_after_s=1,
            )
        self._running[owner] += number
        try:
            yield
        finally:
            self._running[owner] -= number
            if not self._running[owner]:
                del self._running[owner]

    @property
    def num_running(self) -> int:
        """Return how many run, of all owners."""
        return self._running.total()
