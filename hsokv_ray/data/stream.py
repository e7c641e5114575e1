"""Tokens to blocks: an order that is fixed for a plan, whatever the number of workers, and resumes at any block.

A plan has L streams. The tokens of a stream are those of its parts, part after part and pass after pass, with nothing
padded or cut between them. A block is `seq_len + 1` tokens; blocks of a stream start every `stride` tokens, so with
`stride == seq_len` they share one token and every token is predicted exactly once. Global block i is the next block of
stream i % L and belongs to worker i % W, where W divides L: the order of blocks does not depend on W.

After its last pass a stream gives what is left once, padded, and then empty blocks, while longer streams go on; a run
is over when every worker `is_finished`.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hsokv_ray.data.cursor import DataCursor
from hsokv_ray.data.lane import Lane
from hsokv_ray.data.packing import PartReader, PartRequest
from hsokv_ray.data.plan import ShardPlan
from hsokv_ray.data.reading import ReadCounts
from hsokv_ray.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Consecutive blocks of one worker.

    Attributes:
        tokens: int64 [num_blocks, seq_len + 1]; what is missing at the end of a stream is padding.
        num_targets: int64 [num_blocks], tokens to predict in each block; 0 for an empty block.
        first_index: global index of the first block; the next ones follow in steps of the number of workers.
    """

    tokens: np.ndarray
    num_targets: np.ndarray
    first_index: int


class BlockStream:
    """The blocks of one worker, in order, from a cursor on.

    Args:
        plan: the parts and their streams.
        reader: reads the requested parts: in process, through Ray Data, or from token shards.
        seq_len: targets in a full block.
        stride: tokens between the starts of two blocks of a stream, at most `seq_len`, which is the default.
        epochs: passes over the plan; a fraction ends a pass after that share of each stream's parts. None: no end.
        rank, world_size: this worker and the number of workers, which divides the plan's streams.
        cursor: where to go on (of all streams, see `DataCursor.merge`); None: at the start.
        pad_id: token that fills up the last block of a stream.

    Attributes:
        num_tokens: tokens that became inputs.
        wait_s: seconds spent waiting for the reader.

    Raises `ConfigError` for a number of workers that does not divide the streams, `DataError` for a cursor that does
    not fit the plan.
    """

    def __init__(
        self,
        plan: ShardPlan,
        reader: PartReader,
        *,
        seq_len: int,
        stride: int | None = None,
        epochs: float | None = None,
        rank: int = 0,
        world_size: int = 1,
        cursor: DataCursor | None = None,
        pad_id: int = 0,
    ) -> None:
        cursor = cursor or DataCursor.start(plan.num_streams)
        _check(plan, cursor, world_size=world_size)
        self._world_size, self._seq_len, self._stride, self._pad_id = world_size, seq_len, stride or seq_len, pad_id
        own = range(rank, plan.num_streams, world_size)
        self._lanes = {stream: Lane(plan, stream, epochs=epochs, start=cursor.streams[stream]) for stream in own}
        self._num_streams = plan.num_streams
        self._global_blocks = cursor.num_blocks
        self._next_index = cursor.num_blocks + (rank - cursor.num_blocks) % world_size
        self._parts = reader(self._requests())
        self.num_tokens = 0
        self.wait_s = 0.0

    @property
    def counts(self) -> ReadCounts:
        """What was read and skipped in wholly consumed parts, so that a resumed run counts everything once."""
        return sum((lane.counts for lane in self._lanes.values()), start=ReadCounts())

    @property
    def counts_here(self) -> ReadCounts:
        """What was read and skipped in parts that are here and not wholly consumed; a resumed run reads them again."""
        return sum((lane.counts_here for lane in self._lanes.values()), start=ReadCounts())

    @property
    def is_finished(self) -> bool:
        """Whether every stream of this worker has given its last target; single empty blocks come before that."""
        return all(lane.at_end and lane.num_tokens < 2 for lane in self._lanes.values())

    def take(self, num_blocks: int) -> Blocks:
        """Return the worker's next `num_blocks` blocks."""
        tokens = np.empty((num_blocks, self._seq_len + 1), dtype=np.int64)
        num_targets = np.full(num_blocks, self._seq_len, dtype=np.int64)
        first_index = self._next_index
        for i in range(num_blocks):
            lane = self._lanes[self._next_index % self._num_streams]
            if not lane.copy_block(tokens[i], stride=self._stride):
                num_targets[i] = self._take_slowly(lane, tokens[i])
            self._next_index += self._world_size
        self._global_blocks += num_blocks * self._world_size
        self.num_tokens += int(num_targets.sum())
        return Blocks(tokens=tokens, num_targets=num_targets, first_index=first_index)

    def cursor(self) -> DataCursor:
        """Return where this worker's streams stand; the rows of other workers' streams are zero."""
        streams = np.zeros((self._num_streams, 3), dtype=np.int64)
        for stream, lane in self._lanes.items():
            streams[stream] = lane.cursor
        return DataCursor(streams=streams, num_blocks=self._global_blocks)

    def close(self) -> None:
        """Stop the reader."""
        self._parts.close()

    def _take_slowly(self, lane: Lane, out: np.ndarray) -> int:
        """Fill `out` where the block needs another part or is the stream's last; return its number of targets."""
        # One token more than a block shows whether this is the stream's last one.
        while lane.num_tokens < self._seq_len + 2 and not lane.at_end:
            self._receive()
        finished, num_left = lane.at_end, lane.num_tokens
        if num_left >= self._seq_len + 2:
            lane.gather(out)
            lane.advance(self._stride)
            return self._seq_len
        assert finished
        out[:] = self._pad_id
        lane.gather(out[:num_left])
        lane.advance(num_left)
        return max(num_left - 1, 0)

    def _receive(self) -> None:
        start = time.perf_counter()
        part = next(self._parts)
        self.wait_s += time.perf_counter() - start
        self._lanes[part.stream].add(part)

    def _requests(self) -> Iterator[PartRequest]:
        """Ask for the next part of the stream that has least text ahead of it; a reader's thread may run this."""
        while waiting := [lane for lane in self._lanes.values() if lane.upcoming]:
            yield min(waiting, key=lambda lane: lane.bytes_ahead).take_request()


def _check(plan: ShardPlan, cursor: DataCursor, *, world_size: int) -> None:
    if plan.num_streams % world_size:
        raise ConfigError(
            f"--num-workers: got {world_size}, which does not divide the {plan.num_streams} streams of the data; "
            f"choose one of {', '.join(str(w) for w in range(1, plan.num_streams + 1) if plan.num_streams % w == 0)}"
        )
    if cursor.streams.shape != (plan.num_streams, 3):
        raise DataError(
            f"the checkpoint's data position has {len(cursor.streams)} streams, the plan {plan.num_streams}; "
            f"resume with --logical-ranks {len(cursor.streams)}"
        )
