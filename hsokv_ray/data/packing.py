"""Documents to tokens: each part of a plan becomes one array in which every document ends with the end-of-text token.

Text never gives that token (see `tokenizer.py`), so it alone marks where documents end: nothing else has to travel.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from hsokv_ray.data.plan import Part, ShardPlan
from hsokv_ray.data.reading import ReadCounts, Split, read_documents
from hsokv_ray.data.tokenizer import TextTokenizer

_DOCUMENTS_PER_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRequest:
    """The `position`-th part of stream `stream` in pass `epoch`."""

    stream: int
    epoch: int
    position: int
    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTokens:
    """The tokens of one requested part: documents joined, each ended by the end-of-text token.

    `tokens` is 1-D, uint16 or uint32; it is empty where the part has no document of the split.
    """

    stream: int
    epoch: int
    position: int
    tokens: np.ndarray
    counts: ReadCounts


PartReader = Callable[[Iterator[PartRequest]], Generator[PartTokens, None, None]]
"""Answers requests in their order. It may take requests ahead of what it has answered; closing it stops it."""


def tokenize_part(
    plan: ShardPlan, part: Part, *, tokenizer: TextTokenizer, split: Split, epoch: int, counts: ReadCounts
) -> np.ndarray:
    """Read one part and return its tokens, 1-D of `tokenizer.dtype`; what was read or skipped is added to `counts`."""
    documents = read_documents(plan, part, split=split, epoch=epoch, counts=counts)
    texts = (document.text for document in documents)
    pieces: list[np.ndarray] = []
    while batch := list(islice(texts, _DOCUMENTS_PER_BATCH)):
        pieces += tokenizer.encode_documents(batch)
    return join_documents(pieces, tokenizer=tokenizer)


def join_documents(pieces: Sequence[np.ndarray], *, tokenizer: TextTokenizer) -> np.ndarray:
    """Join the documents' tokens, each ended by the end-of-text token; 1-D of `tokenizer.dtype`."""
    end = np.array([tokenizer.eos_id], dtype=tokenizer.dtype)
    ended = [array for piece in pieces for array in (piece, end)]
    return np.concatenate(ended) if ended else np.empty(0, dtype=tokenizer.dtype)


def read_in_process(plan: ShardPlan, *, tokenizer: TextTokenizer, split: Split) -> PartReader:
    """Return a reader that reads and tokenises in the calling process, one part at a time."""

    def read(requests: Iterator[PartRequest]) -> Generator[PartTokens, None, None]:
        for request in requests:
            counts = ReadCounts()
            tokens = tokenize_part(
                plan, request.part, tokenizer=tokenizer, split=split, epoch=request.epoch, counts=counts
            )
            yield PartTokens(
                stream=request.stream, epoch=request.epoch, position=request.position, tokens=tokens, counts=counts
            )

    return read
