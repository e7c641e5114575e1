"""Parts become documents: decode, clean, split by content, shuffle. Everything left out is counted."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from hsokv_ray.data.sources.base import Record, Shard, Span, shard_problem
from hsokv_ray.data.sources.cutting import FILES, kind_of
from hsokv_ray.data.sources.listing import FORMATS
from hsokv_ray.data.sources.stdlib import check_stdlib, read_stdlib
from hsokv_ray.data.sources.text_files import decode, whole_document
from hsokv_ray.data.text import replace_surrogates
from hsokv_ray.data.uri import STDLIB_URI
from hsokv_ray.errors import DataError

if TYPE_CHECKING:
    from hsokv_ray.data.plan import Part, ShardPlan

Split = Literal["train", "val", "all"]

_SHUFFLE_BYTES = 64_000_000
"""Text that the shuffle of documents holds at most; parts are smaller where the format can be cut."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it comes from."""

    id: str
    """`<path or URL>#<position>`: byte offset, row, or sample name."""
    text: str


@dataclass(slots=True, kw_only=True)
class ReadCounts:
    """What was read and what was left out; counts of several parts add up."""

    documents: int = 0
    """Documents yielded."""
    text_bytes: int = 0
    """Their UTF-8 bytes."""
    held_out_documents: int = 0
    """Documents of the other split."""
    non_ascii_documents: int = 0
    """Left out by `--ascii-only`."""
    replaced_documents: int = 0
    """Documents (kept) in which bytes that are not UTF-8 became U+FFFD."""
    empty_documents: int = 0
    """Documents without text but white space, and null values."""
    missing_text_documents: int = 0
    """Rows without the text column, tar samples without the member `--wds-key`."""
    bad_rows: int = 0
    """Rows that do not parse, allowed by `--on-bad-shard skip`."""
    skipped_members: int = 0
    """Links, devices and names outside the archive in tar shards."""
    bad_shards: list[str] = field(default_factory=list)
    """Shards given up with the cause, allowed by `--on-bad-shard skip`; what lies before the damage was read."""

    def __add__(self, other: "ReadCounts") -> "ReadCounts":
        names = [f.name for f in dataclasses.fields(self)]
        return ReadCounts(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def to_dict(self) -> dict[str, int]:
        """Return the counts by name; `bad_shards` is the number of different ones."""
        return {**dataclasses.asdict(self), "bad_shards": len(set(self.bad_shards))}


def read_documents(
    plan: "ShardPlan", part: "Part", *, split: Split, epoch: int, counts: ReadCounts
) -> Iterator[Document]:
    """Yield the documents of a part in the shuffled order of pass `epoch`, the same on every machine.

    Args:
        plan: the plan the part belongs to.
        part: one of `plan.parts`, or of what `plan.stream_parts` returned.
        split: "val" yields the share `plan.options.val_split` chosen by content and seed, so that copies of a document
            fall on the same side; "train" the others; "all" both.
        epoch: pass over the data, from 0.
        counts: is added to.

    Raises:
        DataError: a shard, row or text is damaged and the options do not allow it, naming file and position.
    """
    rng = np.random.default_rng([plan.seed, epoch, part.index])
    is_tar = part.shard != FILES and kind_of(Shard(part.shard)) == "tar"
    documents = read_in_order(plan, part, split=split, counts=counts)
    return shuffled(documents, rng, most=plan.options.wds_shuffle if is_tar else None)


def read_in_order(plan: "ShardPlan", part: "Part", *, split: Split, counts: ReadCounts) -> Iterator[Document]:
    """Yield the documents of a part in the order of the file; see `read_documents`."""
    threshold = int(plan.options.val_split * 2**64)
    records = itertools.islice(_records(plan, part, counts), part.remainder, part.max_documents, part.modulus)
    for name, record in records:
        document = _document(name, record, plan, counts)
        if document is None:
            continue
        if split != "all":
            is_val = threshold > 0 and content_hash(document.text, seed=plan.seed) < threshold
            if is_val != (split == "val"):
                counts.held_out_documents += 1
                continue
        counts.documents += 1
        counts.text_bytes += len(document.text.encode())
        yield document


def content_hash(text: str, *, seed: int) -> int:
    """Return a number uniform in [0, 2**64) that depends on the text and the seed only (keyed BLAKE2b)."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=str(seed).encode())
    return int.from_bytes(digest.digest(), "little")


def shuffled(documents: Iterator[Document], rng: np.random.Generator, *, most: int | None) -> Iterator[Document]:
    """Yield `documents` in random order through a buffer.

    Args:
        documents: in their order.
        rng: the source of the order.
        most: documents the buffer holds; 0 keeps the order, None is up to 64 MB of text.
    """
    if most == 0:
        yield from documents
        return
    buffer: list[Document] = []
    num_bytes = 0
    for document in documents:
        buffer.append(document)
        num_bytes += len(document.text)
        if num_bytes > _SHUFFLE_BYTES if most is None else len(buffer) > most:
            i = int(rng.integers(len(buffer)))
            buffer[i], buffer[-1] = buffer[-1], buffer[i]
            num_bytes -= len(buffer[-1].text)
            yield buffer.pop()
    yield from (buffer[i] for i in rng.permutation(len(buffer)))


def _records(plan: "ShardPlan", part: "Part", counts: ReadCounts) -> Iterator[tuple[str, Record]]:
    if part.shard != FILES:
        shard = Shard(part.shard, plan.options.hf_token_env)
        kind = kind_of(shard)
        span = Span(start=part.start, stop=part.stop)
        records = FORMATS[kind].records(shard, span, column=plan.columns.get(kind), options=plan.options)
        yield from _guarded(part.shard, records, plan, counts)
        return
    for path in plan.files[part.start : part.stop]:
        yield from _guarded(path, _one_document(path, plan), plan, counts)


def _one_document(path: str, plan: "ShardPlan") -> Iterator[Record]:
    if path.startswith(STDLIB_URI):
        check_stdlib(plan.revision)
        data = read_stdlib(path)
        yield Record("0", lambda: decode(data))
    else:
        yield whole_document(Shard(path, plan.options.hf_token_env))


def _guarded(
    path: str, records: Iterator[Record], plan: "ShardPlan", counts: ReadCounts
) -> Iterator[tuple[str, Record]]:
    """Yield `records` until the shard turns out damaged."""
    while True:
        try:
            record = next(records, None)
        except DataError:
            raise
        except Exception as error:
            counts.bad_shards.append(shard_problem(path, error, on_bad_shard=plan.options.on_bad_shard))
            return
        if record is None:
            return
        yield path, record


def _document(path: str, record: Record, plan: "ShardPlan", counts: ReadCounts) -> Document | None:
    """Decode and clean a record; None where it is left out, which is counted."""
    name = f"{path}#{record.position}"
    if record.problem is not None:
        _count(counts, record.problem)
        return None
    try:
        text = record.text()
    except (ValueError, RecursionError) as error:
        if plan.options.on_bad_shard == "error":
            raise DataError(f"{name}: bad row ({error}); repair it or give --on-bad-shard skip") from error
        counts.bad_rows += 1
        return None
    if text is None or not text.strip():
        _count(counts, "missing_text_documents" if text is None else "empty_documents")
        return None
    text = _clean(name, text, plan, counts)
    if plan.options.ascii_only and not text.isascii():
        counts.non_ascii_documents += 1
        return None
    return Document(name, text)


def _clean(name: str, text: str, plan: "ShardPlan", counts: ReadCounts) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if plan.options.on_bad_text == "error":
            offset = len(text[: error.start].encode())
            raise DataError(
                f"{name}: not UTF-8 at byte {offset} of the document; convert the file or give --on-bad-text replace"
            ) from None
        counts.replaced_documents += 1
        return replace_surrogates(text)
    return text


def _count(counts: ReadCounts, name: str) -> None:
    setattr(counts, name, getattr(counts, name) + 1)
