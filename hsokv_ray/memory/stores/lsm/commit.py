"""Group commit: writes of many threads share one flush of the disk.

    committer = Committer(carry_out, tick=lambda: None, tick_s=0.5)
    committer.submit(op)             # waits until carry_out([..., op, ...]) is done; raises op.error

One thread carries writes out, in the order in which they came. While it waits for the disk others queue up, and the
next round takes them all. A caller that is interrupted while it waits (Ctrl-C) leaves a write that is carried out whole
all the same, never half of one.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from hsokv_ray.errors import StoreError
from hsokv_ray.memory.stores.facets import Predicate
from hsokv_ray.memory.stores.lsm.records import Encoded
from hsokv_ray.memory.stores.lsm.requests import Outcome
from hsokv_ray.memory.stores.types import Rows

GROUP_BYTES = 16 * 2**20
"""A group takes no further write once it has this much."""


@dataclass(slots=True, eq=False)
class Operation:
    """One write on its way."""

    ids: list[str]
    rows: Rows | None = None
    """None for a delete."""
    predicate: Predicate | None = None
    """Of a delete by filter; `ids` and `encoded` are filled in when its turn comes."""
    request_id: str | None = None
    encoded: Encoded | None = None
    outcome: Outcome | None = None
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def num_bytes(self) -> int:
        return 0 if self.encoded is None else self.encoded.num_bytes


class Committer:
    """The thread that carries writes out."""

    def __init__(
        self, carry_out: Callable[[list[Operation]], None], *, tick: Callable[[], None], tick_s: float
    ) -> None:
        """`carry_out` gives each operation an outcome or an error; `tick` is called about every `tick_s`."""
        self._carry_out, self._tick, self._tick_s = carry_out, tick, tick_s
        self._queue: deque[Operation] = deque()
        self._changed = threading.Condition()
        self._is_open = True
        self._thread = threading.Thread(target=self._run, name="hsokv-commit", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation) -> Outcome:
        """Carry `operation` out and return what it did. Raises `StoreError` or `DataError`."""
        with self._changed:
            if not self._is_open:
                raise StoreError("this faiss store is closed; open it again with open_store")
            self._queue.append(operation)
            self._changed.notify()
        operation.done.wait()
        if operation.error is not None:
            raise type(operation.error)(*operation.error.args) from operation.error
        assert operation.outcome is not None
        return operation.outcome

    def close(self) -> None:
        """Carry out what is queued, take nothing more, and end the thread."""
        with self._changed:
            self._is_open = False
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        ticked = time.monotonic()
        while (group := self._next_group()) is not None:
            if group:
                self._finish(group)
            if time.monotonic() - ticked >= self._tick_s:
                self._tick()
                ticked = time.monotonic()

    def _finish(self, group: list[Operation]) -> None:
        try:
            self._carry_out(group)
        except Exception as error:
            for operation in group:
                if operation.outcome is None and operation.error is None:
                    operation.error = StoreError(f"the write failed: {error!r}; open the store again")
                    operation.error.__cause__ = error
        for operation in group:
            operation.done.set()

    def _next_group(self) -> list[Operation] | None:
        """Return what is queued, up to a size; empty after a while without writes; None at the end."""
        with self._changed:
            if not self._queue and self._is_open:
                self._changed.wait(self._tick_s)
            if not self._queue:
                return [] if self._is_open else None
            group = [self._queue.popleft()]
            num_bytes = group[0].num_bytes
            while self._queue and num_bytes < GROUP_BYTES:
                group.append(self._queue.popleft())
                num_bytes += group[-1].num_bytes
            return group
