"""A thread that does work when woken and every so often, and tries again later where the disk refuses.

background = Background("hsokv-seal", work, failed=note)
background.wake()
background.trouble                # what stands in the way at the moment; None: nothing
background.close()                # what it is in the middle of is finished first
"""

import threading
from collections.abc import Callable

from hsokv_ray.errors import StoreError

TICK_S = 1.0
LONGEST_PAUSE_S = 30.0


class Background:
    """Calls `work` in a thread until stopped."""

    def __init__(self, name: str, work: Callable[[], None], *, failed: Callable[[StoreError], None]) -> None:
        """`work` should return soon once `is_open` is false; `failed` gets every error but those of the disk."""
        self.trouble: str | None = None
        self.is_open = True
        self._work, self._failed = work, failed
        self._wakeup = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin. Apart from the constructor, so that `work` may use what is made after it."""
        self._thread.start()

    def wake(self) -> None:
        """There may be something to do."""
        self._wakeup.set()

    def stop(self) -> None:
        """Begin no more work; waits for nothing."""
        self.is_open = False
        self._wakeup.set()

    def close(self, wait_s: float | None = None) -> None:
        """Begin no more work and wait for the thread to end, at most `wait_s`."""
        self.stop()
        self._thread.join(wait_s)

    def _run(self) -> None:
        pause_s = TICK_S
        while self.is_open:
            self._wakeup.wait(pause_s)
            self._wakeup.clear()
            pause_s = TICK_S if self._try() else min(2 * pause_s, LONGEST_PAUSE_S)

    def _try(self) -> bool:
        try:
            if self.is_open:
                self._work()
        except Exception as error:
            if isinstance(error, OSError) or isinstance(error.__cause__, OSError):  # a later try may find room
                self.trouble = f"the disk refused: {error}"
                return False
            known = isinstance(error, StoreError)
            failure = error if known else StoreError(f"sealing or merging failed: {error!r}; open the store again")
            failure.__cause__ = None if known else error
            self.trouble = str(failure)
            self._failed(failure)
            return False
        self.trouble = None
        return True
