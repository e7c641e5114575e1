"""A text that is read for later requests."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

import numpy as np

from hsokv_ray.inference.engine.served import ServedModel
from hsokv_ray.inference.engine.text_reading import TextReading, recorded_reading
from hsokv_ray.longcontext.recorder import Recorder
from hsokv_ray.longcontext.segments import Encoded


class EncodeJob:
    """What `Engine.encode` returns. `future` is for callbacks and event loops (`asyncio.wrap_future`)."""

    def __init__(
        self, token_ids: np.ndarray, recorder: Recorder, on_tokens: Callable[[int], Any], wake: Callable[[], None]
    ) -> None:
        self.token_ids, self._recorder = token_ids, recorder
        self.future: Future[Encoded] = Future()
        self.reading: TextReading | None = None
        self.num_done = 0
        """Tokens read so far, of `token_ids`."""
        self._on_tokens, self._wake = on_tokens, wake
        self._cancelled = threading.Event()

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set() or self.future.cancelled()

    def cancel(self) -> None:
        """End the job; what it held is freed within a piece, and `result` raises `CancelledError`."""
        self._cancelled.set()
        self._wake()

    def result(self, timeout_s: float | None = None) -> Encoded:
        """Wait for the text to be read.

        Raises:
            TimeoutError: it takes longer; the job goes on.
            CancelledError: the job was cancelled.
            RunError: the engine ended.
        """
        return self.future.result(timeout_s)

    def begun(self, served: ServedModel) -> TextReading:
        """Return the reading, begun at the first call."""
        if self.reading is None:
            self.reading = recorded_reading(
                served, self.token_ids, self._recorder, marks=[self.num_tokens], settings=served.settings
            )
        return self.reading

    def succeed(self, encoded: Encoded) -> None:
        """Give the result, unless the job was cancelled."""
        with suppress(InvalidStateError):  # its future can be cancelled at any time
            self.future.set_result(encoded)

    def fail(self, error: Exception) -> None:
        """End with an error, unless the job was cancelled."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def tell(self, num_done: int) -> None:
        """Note how far the reading is."""
        self.num_done = num_done
        self._on_tokens(num_done)
