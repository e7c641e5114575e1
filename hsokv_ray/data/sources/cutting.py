"""A source cut into ranges that are read on their own."""

from collections.abc import Mapping
from dataclasses import dataclass

from hsokv_ray.data.config import DataConfig
from hsokv_ray.data.sources.base import (
    MAX_DOCUMENT_BYTES,
    PART_BYTES,
    SHARD_ERRORS,
    ReadOptions,
    Shard,
    Span,
    refuse_binary,
    shard_problem,
)
from hsokv_ray.data.sources.listing import FORMATS, Listing, format_of, list_source, parallel_map
from hsokv_ray.data.sources.stdlib import stdlib_revision, stdlib_sizes
from hsokv_ray.data.text import choose_column
from hsokv_ray.data.uri import SourceSpec

FILES = "files"
"""`Range.shard` of a group of small documents; its span counts in `Cut.files`."""

PARTS_PER_STREAM = 4
_MIN_PART_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A span of a shard."""

    shard: str
    """Path, URL or `FILES`."""
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A source as ranges, and what was found on the way; the fields are those of `ShardPlan`."""

    ranges: list[Range]
    files: list[str]
    columns: dict[str, str | None]
    format: str
    revision: str | None
    skipped_files: list[str]
    bad_shards: list[str]


def cut_source(spec: SourceSpec, config: DataConfig, *, options: ReadOptions, num_streams: int) -> Cut:
    """List `spec` and cut it into ranges of up to 8 MB, smaller where `num_streams` would get too few.

    Raises:
        DataError: a file is missing or damaged and `--on-bad-shard` is error, or nothing is left.
    """
    if spec.backend == "stdlib":
        return _cut_stdlib(num_streams)
    return _cut_listing(list_source(spec, config), options, num_streams)


def _cut_stdlib(num_streams: int) -> Cut:
    sizes = stdlib_sizes()
    return Cut(
        ranges=_group(sizes, _target(sum(sizes.values()), num_streams)),
        files=list(sizes),
        columns={},
        format="py",
        revision=stdlib_revision(),
        skipped_files=[],
        bad_shards=[],
    )


def _cut_listing(listing: Listing, options: ReadOptions, num_streams: int) -> Cut:
    total = sum(shard.text_bytes for shard in listing.shards)
    target = _target(total, num_streams)
    whole = _largest_document(total, len(listing.shards), num_streams)
    columns = _choose_columns(listing.shards, options)

    def is_document(shard: Shard) -> bool:
        return kind_of(shard) == "txt" and shard.text_bytes <= whole

    def spans(shard: Shard) -> list[Span] | str:
        kind = kind_of(shard)
        try:
            if is_document(shard):
                refuse_binary(shard)
                return []
            return FORMATS[kind].spans(shard, column=columns.get(kind), target=target, options=options)
        except Exception as error:
            return shard_problem(shard.path, error, on_bad_shard=options.on_bad_shard)

    cuts = dict(zip(listing.shards, parallel_map(spans, listing.shards), strict=True))
    good = {shard: cut for shard, cut in cuts.items() if not isinstance(cut, str)}
    small = {shard.path: shard.text_bytes for shard in good if is_document(shard)}
    large = [Range(shard=shard.path, span=span) for shard, cut in good.items() for span in cut]
    return Cut(
        ranges=_group(small, target) + large,
        files=list(small),
        columns=columns,
        format="+".join(sorted({kind_of(shard) for shard in listing.shards})),
        revision=listing.revision,
        skipped_files=listing.skipped_files,
        bad_shards=listing.bad_shards + [cut for cut in cuts.values() if isinstance(cut, str)],
    )


def kind_of(shard: Shard) -> str:
    """Return the format of a listed shard."""
    kind = format_of(shard.path)
    assert kind is not None, shard.path
    return kind


def _target(num_bytes: int, num_streams: int) -> int:
    """Return the text per range that gives every stream a few of them."""
    return min(PART_BYTES, max(_MIN_PART_BYTES, num_bytes // (num_streams * PARTS_PER_STREAM)))


def _largest_document(num_bytes: int, num_files: int, num_streams: int) -> int:
    """Return up to which size a text file is one document: with fewer files than streams, up to a stream's share."""
    if num_files >= num_streams:
        return PART_BYTES
    return min(PART_BYTES, max(_MIN_PART_BYTES, num_bytes // num_streams))


def _group(sizes: Mapping[str, int], target: int) -> list[Range]:
    """Join consecutive small documents into ranges of up to about 1 MB."""
    target = min(target, MAX_DOCUMENT_BYTES)
    ranges, start, num_bytes = [], 0, 0
    for i, size in enumerate(sizes.values(), start=1):
        num_bytes += size
        if num_bytes >= target or i == len(sizes):
            ranges.append(Range(shard=FILES, span=Span(start=start, stop=i, num_bytes=num_bytes)))
            start, num_bytes = i, 0
    return ranges


def _choose_columns(shards: list[Shard], options: ReadOptions) -> dict[str, str | None]:
    """Return the text column of each format of table, told by its first file that can be read."""
    chosen: dict[str, str | None] = {}
    for shard in shards:
        kind = kind_of(shard)
        if kind in chosen:
            continue
        try:
            columns = FORMATS[kind].columns(shard)
        except SHARD_ERRORS:
            # Cutting the shard meets the same damage and reports it.
            continue
        if columns is not None:
            chosen[kind] = choose_column(columns, wanted=options.text_column, where=shard.path)
    return chosen
