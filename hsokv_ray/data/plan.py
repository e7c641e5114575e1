"""The plan of a source: its text cut into parts, and the fixed order in which logical streams read them.

A plan is resolved once, on the driver, and is a pure value afterwards: the same plan, part and epoch give the same
documents on any machine. Parts are dealt to `num_streams` streams, more than there are workers, so that the number of
workers can change without changing the order.
"""

import dataclasses
import functools
import hashlib
import heapq
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hsokv_ray.data.config import DataConfig
from hsokv_ray.data.reading import ReadCounts, read_in_order
from hsokv_ray.data.sources.base import ReadOptions
from hsokv_ray.data.sources.cutting import PARTS_PER_STREAM, Range, cut_source
from hsokv_ray.data.uri import source_spec
from hsokv_ray.errors import ConfigError, DataError

_STREAMS = 12
_UNBALANCE = 1.25
_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The unit of reading: about 8 MB of text at most where the format can be cut, read on its own."""

    index: int
    """Position in `ShardPlan.parts`."""
    shard: str
    """Absolute path or URL; `FILES` for a group of small documents."""
    start: int
    stop: int
    """Byte range (text, jsonl, csv), row groups (parquet), batches (arrow), member offsets (tar), documents (`FILES`);
    a stop of -1 is the end."""
    num_bytes: int
    """Text, estimated."""
    modulus: int = 1
    remainder: int = 0
    """Only the documents whose number within the range leaves `remainder` divided by `modulus`."""
    num_documents: int | None = None
    """Samples in the range, bad ones included, where a scan has told it (tar)."""
    max_documents: int | None = None
    """Reading stops after so many samples: the end of an epoch of resampled shards."""


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """Every part of a source, and who reads which when."""

    uri: str
    format: str
    """File formats, joined by `+`."""
    parts: tuple[Part, ...]
    revision: str | None
    """Commit on the hub, Python version, or digest of the files' names and sizes."""
    seed: int
    num_streams: int
    num_bytes: int
    """Text, estimated."""
    options: ReadOptions
    columns: dict[str, str | None] = field(default_factory=dict)
    """By format of table, the column that holds the text; None is the whole row as JSON."""
    files: tuple[str, ...] = ()
    """Small documents, one per file, that parts of the shard `FILES` are ranges of."""
    skipped_files: tuple[str, ...] = ()
    """Files whose format is not read."""
    bad_shards: tuple[str, ...] = ()
    """Shards left out with the cause, allowed by `--on-bad-shard skip`."""

    def stream_parts(self, stream: int, epoch: int) -> tuple[Part, ...]:
        """Return the parts of `stream` in their order in pass `epoch`.

        Streams are disjoint and together complete. Resampled shards are drawn with replacement instead, until the
        stream has its share of the epoch's documents.
        """
        rng = np.random.default_rng([self.seed, epoch, stream])
        if self.options.wds_epoch_documents is not None:
            return tuple(self._draw(rng, stream, self.options.wds_epoch_documents))
        mine = self._dealt[stream]
        return tuple(mine[i] for i in rng.permutation(len(mine)))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the whole plan: equal digests read the same text in the same order."""
        return hashlib.sha256(self._to_json().encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON; the file is complete or absent."""
        temporary = Path(f"{path}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(self._to_json())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "ShardPlan":
        """Read what `save` wrote. Raises `DataError` where it is missing or of another form."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            if values.pop("version") != _FORMAT_VERSION:
                raise ValueError("another version of the format")
            parts = tuple(Part(**dict(zip(values["part_fields"], row, strict=True))) for row in values.pop("parts"))
            del values["part_fields"]
            options = ReadOptions(**values.pop("options"))
            lists = {name: tuple(values.pop(name)) for name in ("files", "skipped_files", "bad_shards")}
            return cls(parts=parts, options=options, **lists, **values)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path}: not a plan of the data ({error}); delete it and start the run again") from None

    @functools.cached_property
    def _dealt(self) -> list[list[Part]]:
        return _deal(self.parts, self.num_streams)

    def _draw(self, rng: np.random.Generator, stream: int, num_documents: int) -> Iterable[Part]:
        left = num_documents // self.num_streams + (stream < num_documents % self.num_streams)
        while left > 0:
            part = self.parts[rng.integers(len(self.parts))]
            assert part.num_documents
            taken = min(left, part.num_documents)
            left -= taken
            yield part if taken == part.num_documents else dataclasses.replace(part, max_documents=taken)

    def _to_json(self) -> str:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        names = [f.name for f in dataclasses.fields(Part)]
        values["options"] = dataclasses.asdict(self.options)
        values["part_fields"] = names
        values["parts"] = [[getattr(part, name) for name in names] for part in self.parts]
        return json.dumps({"version": _FORMAT_VERSION, **values}, sort_keys=True)


def resolve_plan(config: DataConfig, *, seed: int, num_workers: int = 1) -> ShardPlan:
    """List the source, cut it into parts and fix the order. Run once, on the driver; reads headers and footers.

    Args:
        config: the source and how it is read.
        seed: of the order and of the validation split; not negative.
        num_workers: must divide the number of streams.

    Raises:
        ConfigError: the flags contradict one another, or the workers do not divide `--logical-ranks`.
        DataError: the source is missing, empty, damaged or unreachable.
    """
    spec = source_spec(config)
    num_streams = _num_streams(config.logical_ranks, num_workers)
    options = ReadOptions.from_config(config)
    cut = cut_source(spec, config, options=options, num_streams=num_streams)
    parts = _undivided(cut.ranges)
    num_bytes = sum(part.num_bytes for part in parts)
    if num_bytes == 0:
        is_tar = spec.backend == "webdataset"
        hint = f"no member {options.wds_key!r}; see --wds-key" if is_tar else "all files are empty"
        raise DataError(f"{spec.uri}: holds no text ({hint}); give a source with documents in it")
    if options.wds_epoch_documents is None:
        parts = balance(parts, num_streams=num_streams)
    plan = ShardPlan(
        uri=spec.uri,
        format=cut.format,
        parts=tuple(dataclasses.replace(part, index=i) for i, part in enumerate(parts)),
        revision=cut.revision,
        seed=seed,
        num_streams=num_streams,
        num_bytes=num_bytes,
        options=options,
        columns=cut.columns,
        files=tuple(cut.files),
        skipped_files=tuple(cut.skipped_files),
        bad_shards=tuple(cut.bad_shards),
    )
    _require_documents(plan)
    return plan


def validation_plan(config: DataConfig, *, seed: int, num_workers: int = 1) -> ShardPlan | None:
    """Return the plan of `--val-file`, to be read with `split="all"`; None where there is none.

    Without it, validation documents are those that the training plan yields with `split="val"`.
    """
    if config.val_file is None:
        return None
    changes = {
        "source": config.val_file,
        "val_file": None,
        "val_split": 0.0,
        "wds_resampled": False,
        "wds_epoch_documents": None,
        **dict.fromkeys(("dataset_file", "dataset_backend", "hf_name", "hf_config", "hf_revision", "wds_pattern")),
        "hf_split": DataConfig.model_fields["hf_split"].default,
    }
    return resolve_plan(config.model_copy(update=changes), seed=seed, num_workers=num_workers)


def balance(parts: list[Part], *, num_streams: int) -> list[Part]:
    """Divide parts by document number until no stream has more than 25 % over its share, at best.

    A part that is divided is read once per piece, so this is for sources with few parts.
    """
    share = sum(part.num_bytes for part in parts) / num_streams
    divided = parts
    for pieces in range(1, PARTS_PER_STREAM + 1):
        divided = [piece for part in parts for piece in _divide(part, math.ceil(part.num_bytes * pieces / share))]
        loads = [sum(part.num_bytes for part in stream) for stream in _deal(divided, num_streams)]
        if max(loads) <= _UNBALANCE * share:
            break
    return divided


def _num_streams(logical_ranks: int | None, num_workers: int) -> int:
    num_streams = logical_ranks or math.lcm(_STREAMS, num_workers)
    if num_streams % num_workers:
        choices = [n for n in range(1, num_streams + 1) if num_streams % n == 0]
        raise ConfigError(
            f"--num-workers {num_workers} does not divide --logical-ranks {num_streams}; "
            f"use {', '.join(map(str, choices))} workers, or other ranks in a new run"
        )
    return num_streams


def _undivided(ranges: Iterable[Range]) -> list[Part]:
    return [
        Part(
            index=i,
            shard=item.shard,
            start=item.span.start,
            stop=item.span.stop,
            num_bytes=item.span.num_bytes,
            modulus=item.span.pieces,
            num_documents=item.span.num_documents,
        )
        for i, item in enumerate(ranges)
    ]


def _divide(part: Part, pieces: int) -> list[Part]:
    modulus = max(1, part.modulus, pieces)
    if modulus == 1:
        return [part]
    return [
        dataclasses.replace(
            part,
            modulus=modulus,
            remainder=remainder,
            num_bytes=part.num_bytes // modulus,
            num_documents=None if part.num_documents is None else -(-(part.num_documents - remainder) // modulus),
        )
        for remainder in range(modulus)
    ]


def _deal(parts: Iterable[Part], num_streams: int) -> list[list[Part]]:
    """Deal the largest part first, each to the stream that has least; ties go to the first."""
    streams: list[list[Part]] = [[] for _ in range(num_streams)]
    loads = [(0, stream) for stream in range(num_streams)]
    for part in sorted(parts, key=lambda part: (-part.num_bytes, part.index, part.remainder)):
        load, stream = loads[0]
        heapq.heapreplace(loads, (load + part.num_bytes, stream))
        streams[stream].append(part)
    return [sorted(stream, key=lambda part: (part.index, part.remainder)) for stream in streams]


def _require_documents(plan: ShardPlan) -> None:
    counts = ReadCounts()
    if not any(True for part in plan.parts for _ in read_in_order(plan, part, split="all", counts=counts)):
        found = ", ".join(f"{name} {value}" for name, value in counts.to_dict().items() if value)
        raise DataError(f"{plan.uri}: no document has text ({found or 'no rows'}); give a source with documents in it")
