"""One stream of a plan: the chain of its parts, pass after pass, and the tokens read from it but not yet consumed."""

import math
from collections import deque
from collections.abc import Iterator

import numpy as np

from hsokv_ray.data.packing import PartRequest, PartTokens
from hsokv_ray.data.plan import ShardPlan
from hsokv_ray.data.reading import ReadCounts
from hsokv_ray.errors import DataError


class Lane:
    """The unconsumed tokens of one stream, and what to read next.

    `upcoming`, `bytes_ahead` and `take_request` may be used from a reader's thread, the rest from the consumer's only:
    no field is written by both.

    Attributes:
        num_tokens: tokens that are here and not consumed.
        counts: what was read and skipped in parts that are wholly consumed.
    """

    def __init__(self, plan: ShardPlan, stream: int, *, epochs: float | None, start: np.ndarray) -> None:
        self._after: tuple[int, int] = (int(start[0]), int(start[1]))
        self._offset = int(start[2])
        self._chain = _chain(plan, stream, epochs=epochs, start=self._after)
        self._next_request = next(self._chain, None)
        self._requested: deque[PartRequest] = deque()
        self._segments: deque[PartTokens] = deque()
        self._segment_bytes: deque[int] = deque()
        self._bytes_requested = self._bytes_consumed = 0
        self._pass_is_empty = self._has_no_text = False
        self.num_tokens = 0
        self.counts = ReadCounts()

    @property
    def upcoming(self) -> PartRequest | None:
        """The next part to ask for; None at the end, and once a whole pass had not a single token."""
        return None if self._has_no_text else self._next_request

    @property
    def bytes_ahead(self) -> int:
        """Text asked for and not consumed, in bytes."""
        return self._bytes_requested - self._bytes_consumed

    @property
    def at_end(self) -> bool:
        """Whether no further token will arrive."""
        return self.upcoming is None and not self._requested

    @property
    def cursor(self) -> tuple[int, int, int]:
        """The (epoch, position, token offset) of the first token not consumed."""
        if not self._segments:
            return (*self._after, self._offset)
        return self._segments[0].epoch, self._segments[0].position, self._offset

    @property
    def counts_here(self) -> ReadCounts:
        """What was read and skipped in parts of which tokens are still here."""
        return sum((segment.counts for segment in self._segments), start=ReadCounts())

    def take_request(self) -> PartRequest:
        """Return `upcoming` and move on."""
        request = self._next_request
        assert request is not None
        # Noted as requested before the chain moves on, so that `at_end` is never true in between.
        self._requested.append(request)
        self._bytes_requested += request.part.num_bytes
        self._next_request = next(self._chain, None)
        return request

    def add(self, part: PartTokens) -> None:
        """Append the tokens of the oldest request."""
        request = self._requested[0]
        assert (part.epoch, part.position) == (request.epoch, request.position), "parts must arrive in order"
        if not self._segments and self._offset and self._offset >= len(part.tokens):
            raise DataError(
                f"{request.part.shard} has {len(part.tokens)} tokens, the checkpoint stands at token {self._offset}: "
                "the source changed since; restore it, or start a run with another --name"
            )
        self.num_tokens += len(part.tokens) - (0 if self._segments else self._offset)
        self._segments.append(part)
        self._segment_bytes.append(request.part.num_bytes)
        self._look_for_text(part)
        self._drop_consumed()
        self._requested.popleft()

    def copy_block(self, out: np.ndarray, *, stride: int) -> bool:
        """Fill `out` and advance if the oldest part holds the block and a token more; return whether it did."""
        if not self._segments:
            return False
        tokens, start = self._segments[0].tokens, self._offset
        stop = start + len(out)
        if stop >= len(tokens):
            return False
        out[:] = tokens[start:stop]
        self._offset = start + stride
        self.num_tokens -= stride
        return True

    def gather(self, out: np.ndarray) -> None:
        """Fill `out` with the next `len(out)` tokens, which must be here; nothing is consumed."""
        filled, offset = 0, self._offset
        for segment in self._segments:
            piece = segment.tokens[offset : offset + len(out) - filled]
            out[filled : filled + len(piece)] = piece
            filled, offset = filled + len(piece), 0
        assert filled == len(out)

    def advance(self, num_tokens: int) -> None:
        """Consume `num_tokens`, which must be here."""
        self._offset += num_tokens
        self.num_tokens -= num_tokens
        self._drop_consumed()

    def _look_for_text(self, part: PartTokens) -> None:
        is_empty = not len(part.tokens)
        if part.position == 0:
            self._has_no_text = self._pass_is_empty and is_empty
            self._pass_is_empty = True
        self._pass_is_empty &= is_empty

    def _drop_consumed(self) -> None:
        while self._segments and self._offset >= len(self._segments[0].tokens):
            part = self._segments.popleft()
            self._offset -= len(part.tokens)
            self._after = (part.epoch, part.position + 1)
            self._bytes_consumed += self._segment_bytes.popleft()
            self.counts += part.counts


def _chain(plan: ShardPlan, stream: int, *, epochs: float | None, start: tuple[int, int]) -> Iterator[PartRequest]:
    epoch, position = start
    limit = math.inf if epochs is None else epochs
    while epoch < limit:
        parts = plan.stream_parts(stream, epoch)
        if not parts:
            return
        stop = math.ceil(min(limit - epoch, 1) * len(parts))
        for i in range(position, stop):
            yield PartRequest(stream=stream, epoch=epoch, position=i, part=parts[i])
        epoch, position = epoch + 1, 0
