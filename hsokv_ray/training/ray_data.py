"""Parts read and tokenised in Ray Data tasks, handed in order to the process that asked.

One task reads, tokenises and joins about 8 MB of text and returns one block of fixed-width rows (2-D NumPy). Each
training worker runs data sets of its own over its streams' parts only: Ray's `streaming_split` does not keep an order.
The requests are cut into successive data sets, so that memory stays bounded and passes have no end; while one starts,
blocks of the one before are still queued.
"""

import dataclasses
import functools
import json
import logging
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import cast

import numpy as np
import ray
from ray.data import Dataset, Datasource, ReadTask
from ray.data.block import Block, BlockAccessor, BlockMetadata
from ray.exceptions import RayError

from hsokv_ray.data import PartReader, PartRequest, PartTokens, ReadCounts, ShardPlan, cached_tokenizer
from hsokv_ray.data.packing import tokenize_part
from hsokv_ray.data.reading import Split
from hsokv_ray.errors import HsokvError

PAGE_TOKENS = 4096
"""Tokens in a row of a block."""

_TASK_BYTES = 8_000_000
_FIRST_TASK_BYTES = 1_000_000
_TASK_REQUESTS = 64
_TASKS_PER_DATASET = 16
_QUEUED_BLOCKS = 4


def read_with_ray(plan: ShardPlan, *, tokenizer_path: str, split: Split, num_cpus: float = 1.0) -> PartReader:
    """Return a reader that reads and tokenises in Ray tasks; the answers are those of `read_in_process`.

    Args:
        plan: the plan whose parts are requested.
        tokenizer_path: folder of the tokenizer, which every node sees.
        split: documents to yield.
        num_cpus: CPUs for this reader's tasks at a time; a fraction below 1 is one task that reserves that much.
    """

    def read(requests: Iterator[PartRequest]) -> Generator[PartTokens, None, None]:
        job = _Job(
            # The parts travel with the requests; a plan may have a great many.
            plan=ray.put(dataclasses.replace(plan, parts=())),
            tokenizer_path=tokenizer_path,
            split=split,
        )
        puller = _Puller(job, requests, num_cpus=num_cpus)
        try:
            for block in puller.blocks():
                yield from unpack_parts(block)
        finally:
            puller.stop()

    return read


def pack_parts(parts: Iterable[PartTokens]) -> dict[str, np.ndarray]:
    """Return parts as the columns of a block: rows of `PAGE_TOKENS` tokens, the last one of a part filled up with 0.

    `tokens` [rows, PAGE_TOKENS]; for each row `num_tokens`, the part's `stream`, `epoch`, `position` and the `offset`
    of the row in it (the cursor of its first token); `counts` is JSON in the first row of a part and empty elsewhere.
    Documents end at end-of-text tokens.
    """
    columns = [_pack(part) for part in parts]
    return {name: np.concatenate([column[name] for column in columns]) for name in columns[0]}


def unpack_parts(block: dict[str, np.ndarray]) -> Iterator[PartTokens]:
    """Yield the parts of a block that `pack_parts` made; their tokens are copies."""
    firsts = np.flatnonzero(block["offset"] == 0)
    for first, stop in zip(firsts, np.append(firsts[1:], len(block["offset"])), strict=True):
        num_tokens = int(block["num_tokens"][first:stop].sum())
        yield PartTokens(
            stream=int(block["stream"][first]),
            epoch=int(block["epoch"][first]),
            position=int(block["position"][first]),
            # A copy, as blocks held in the object store would hold back the tasks that are to come.
            tokens=block["tokens"][first:stop].reshape(-1)[:num_tokens].copy(),
            counts=ReadCounts(**json.loads(block["counts"][first])),
        )


def _pack(part: PartTokens) -> dict[str, np.ndarray]:
    num_tokens = len(part.tokens)
    rows = max(1, -(-num_tokens // PAGE_TOKENS))
    pages = np.zeros(rows * PAGE_TOKENS, dtype=part.tokens.dtype)
    pages[:num_tokens] = part.tokens
    offsets = np.arange(rows) * PAGE_TOKENS
    counts = json.dumps(dataclasses.asdict(part.counts))
    return {
        "tokens": pages.reshape(rows, PAGE_TOKENS),
        "num_tokens": np.minimum(num_tokens - offsets, PAGE_TOKENS),
        "stream": np.full(rows, part.stream),
        "epoch": np.full(rows, part.epoch),
        "position": np.full(rows, part.position),
        "offset": offsets,
        "counts": np.array([counts] + [""] * (rows - 1), dtype=object),
    }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What every task of a reader needs."""

    plan: "ray.ObjectRef"
    tokenizer_path: str
    split: Split

    def run(self, requests: list[PartRequest]) -> Iterable[Block]:
        plan: ShardPlan = ray.get(self.plan)
        tokenizer = cached_tokenizer(self.tokenizer_path)
        parts = []
        for request in requests:
            counts = ReadCounts()
            tokens = tokenize_part(
                plan, request.part, tokenizer=tokenizer, split=self.split, epoch=request.epoch, counts=counts
            )
            parts.append(
                PartTokens(
                    stream=request.stream, epoch=request.epoch, position=request.position, tokens=tokens, counts=counts
                )
            )
        return [BlockAccessor.batch_to_block(pack_parts(parts))]


class _Parts(Datasource):
    """One read task per group of requests."""

    def __init__(self, job: _Job, groups: list[list[PartRequest]]) -> None:
        super().__init__()
        self._job, self._groups = job, groups

    def get_name(self) -> str:
        return "Tokens"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, per_task_row_limit: int | None = None, data_context=None):
        return [
            ReadTask(
                functools.partial(self._job.run, group),
                BlockMetadata(num_rows=None, size_bytes=_bytes(group), input_files=None, exec_stats=None),
            )
            for group in self._groups
        ]


class _Puller:
    """A thread that runs data set after data set and queues their blocks."""

    def __init__(self, job: _Job, requests: Iterator[PartRequest], *, num_cpus: float) -> None:
        self._job, self._requests, self._num_cpus = job, requests, num_cpus
        self._queue: queue.Queue[dict[str, np.ndarray] | BaseException | None] = queue.Queue(_QUEUED_BLOCKS)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ray-data-parts", daemon=True)

    def blocks(self) -> Iterator[dict[str, np.ndarray]]:
        self._thread.start()
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def _run(self) -> None:
        try:
            task_bytes = _FIRST_TASK_BYTES
            while groups := list(islice(_groups(self._requests, task_bytes), _TASKS_PER_DATASET)):
                for block in _dataset(self._job, groups, self._num_cpus).iter_batches(
                    batch_size=None, batch_format="numpy", prefetch_batches=1
                ):
                    if not self._put(cast(dict[str, np.ndarray], block)):
                        return
                task_bytes = _TASK_BYTES
            self._put(None)
        except BaseException as error:  # handed to the consumer, who raises it
            self._put(_own_error(error))

    def _put(self, item: dict[str, np.ndarray] | BaseException | None) -> bool:
        """Queue `item`; return False when the consumer has gone."""
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False


def _dataset(job: _Job, groups: list[list[PartRequest]], num_cpus: float) -> Dataset:
    # A data set starts every few seconds, and each would announce itself.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    dataset = ray.data.read_datasource(
        _Parts(job, groups),
        override_num_blocks=len(groups),
        num_cpus=min(num_cpus, 1.0),
        concurrency=min(max(int(num_cpus), 1), len(groups)),
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    # A part is one block, whatever its size.
    dataset.context.target_max_block_size = None
    return dataset


def _groups(requests: Iterator[PartRequest], most_bytes: int) -> Iterator[list[PartRequest]]:
    group: list[PartRequest] = []
    for request in requests:
        group.append(request)
        if _bytes(group) >= most_bytes or len(group) == _TASK_REQUESTS:
            yield group
            group = []
    if group:
        yield group


def _bytes(group: list[PartRequest]) -> int:
    return sum(request.part.num_bytes for request in group)


def _own_error(error: BaseException) -> BaseException:
    """Return the project's own error that a task raised, if that is what `error` wraps, else `error`."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, HsokvError) and not isinstance(seen, RayError):
            # Ray appends advice of its own to the message; ours is one line.
            return type(seen)(str(seen).partition("\n")[0])
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error
