"""The front of a plan: text to train a tokenizer on, tokens to count or to validate on."""

from collections.abc import Iterator
from contextlib import closing
from itertools import zip_longest

import numpy as np

from hsokv_ray.data.packing import PartReader, PartRequest
from hsokv_ray.data.plan import ShardPlan
from hsokv_ray.data.reading import ReadCounts, Split, read_documents


def plan_order(plan: ShardPlan) -> Iterator[PartRequest]:
    """Yield every part of the plan's first pass: the first part of each stream, then the second ones, and so on."""
    passes = [plan.stream_parts(stream, 0) for stream in range(plan.num_streams)]
    for position, parts in enumerate(zip_longest(*passes)):
        for stream, part in enumerate(parts):
            if part is not None:
                yield PartRequest(stream=stream, epoch=0, position=position, part=part)


def sample_texts(plan: ShardPlan, *, split: Split, max_bytes: int, counts: ReadCounts) -> Iterator[str]:
    """Yield the first documents of the plan until they hold `max_bytes` of UTF-8; the last one is not cut."""
    num_bytes = 0
    for request in plan_order(plan):
        for document in read_documents(plan, request.part, split=split, epoch=0, counts=counts):
            yield document.text
            num_bytes += len(document.text.encode("utf-8", "replace"))
            if num_bytes >= max_bytes:
                return


def sample_tokens(plan: ShardPlan, reader: PartReader, *, max_tokens: int) -> np.ndarray:
    """Return the first `max_tokens` tokens of the plan, 1-D; fewer where one pass gives no more."""
    pieces, num_left = [np.empty(0, dtype=np.uint16)], max_tokens
    with closing(reader(plan_order(plan))) as parts:
        for part in parts:
            pieces.append(part.tokens[:num_left])
            num_left -= len(pieces[-1])
            if num_left == 0:
                break
    return np.concatenate(pieces)
