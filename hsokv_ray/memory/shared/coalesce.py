"""Many callers, few calls: what waits while a call is under way goes out together in the next one.

A call between processes costs more than a search in it, so single queries of many threads are joined to batches. Nobody
waits for a batch to fill: with one caller there is one call per query, at once.
"""

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hsokv_ray.errors import Overloaded, StoreError


@dataclass(eq=False, slots=True)
class _Call:
    key: Hashable
    queries: np.ndarray
    leads: bool = False
    """It was told to send the next batch."""
    answer: list[Any] | None = None
    error: BaseException | None = None
    turn: threading.Event = field(default_factory=threading.Event)


class Coalescer:
    """Joins concurrent calls with equal keys.

    Args:
        send: `send(key, queries [n, d]) -> list of n answers`; called from the callers' threads.
        max_queries: of one call; a larger one goes alone.
        depth: calls under way at once.
        limit_bytes: of the queries that wait; past them `Overloaded` is raised.
    """

    def __init__(
        self,
        send: Callable[[Any, np.ndarray], list[Any]],
        *,
        max_queries: int = 256,
        depth: int = 2,
        limit_bytes: int = 64 * 2**20,
    ) -> None:
        self._send, self._max_queries, self._depth, self._limit_bytes = send, max_queries, depth, limit_bytes
        self._lock = threading.Lock()
        self._waiting: dict[_Call, None] = {}
        self._waiting_bytes = 0
        self._under_way = 0
        self.num_calls = 0
        """Batches sent."""

    def call(self, key: Hashable, queries: np.ndarray) -> list[Any]:
        """Return the answers of `queries`, one each; what `send` raises is raised in every caller it concerns."""
        call = _Call(key, queries)
        if not self._enter(call):
            try:
                call.turn.wait()
            except BaseException:  # Ctrl-C: nobody may wait for this thread any more
                self._leave(call)
                raise
        if call.answer is None and call.error is None:
            self._lead(call)
        if call.error is not None:
            raise call.error
        assert call.answer is not None
        return call.answer

    def _enter(self, call: _Call) -> bool:
        """Queue `call`; return whether its thread sends at once."""
        with self._lock:
            if self._waiting and self._waiting_bytes + call.queries.nbytes > self._limit_bytes:
                waiting = f"{self._waiting_bytes} bytes of queries wait for the memory"
                raise Overloaded(f"{waiting}, the limit is {self._limit_bytes}", 0.1)
            self._waiting[call] = None
            self._waiting_bytes += call.queries.nbytes
            call.leads = self._under_way < self._depth
            self._under_way += call.leads
            return call.leads

    def _lead(self, call: _Call) -> None:
        with self._lock:
            batch = self._take(call)
            self.num_calls += 1
        try:
            self._run(batch)
        finally:
            with self._lock:
                self._hand_on()
            for each in batch:
                each.turn.set()

    def _hand_on(self) -> None:
        """Let the next one send, if one waits. The caller holds the lock."""
        following = next((each for each in self._waiting if not each.leads), None)
        if following is None:
            self._under_way -= 1
        else:
            following.leads = True
            following.turn.set()

    def _leave(self, call: _Call) -> None:
        with self._lock:
            if call in self._waiting:
                del self._waiting[call]
                self._waiting_bytes -= call.queries.nbytes
                if call.leads:
                    self._hand_on()

    def _take(self, call: _Call) -> list[_Call]:
        """Remove `call` and what fits beside it from the queue."""
        batch, num_queries = [call], len(call.queries)
        for each in self._waiting:
            if not each.leads and each.key == call.key and num_queries + len(each.queries) <= self._max_queries:
                batch.append(each)
                num_queries += len(each.queries)
        for each in batch:
            del self._waiting[each]
            self._waiting_bytes -= each.queries.nbytes
        return batch

    def _run(self, batch: list[_Call]) -> None:
        try:
            answers = self._send(batch[0].key, np.concatenate([each.queries for each in batch]))
        except BaseException as error:
            ours = isinstance(error, Exception)  # an interruption concerns the thread that was interrupted, alone
            for each in batch:
                each.error = error if ours or each is batch[0] else StoreError("the call was interrupted; try again")
            return
        start = 0
        for each in batch:
            each.answer = answers[start : start + len(each.queries)]
            start += len(each.queries)
