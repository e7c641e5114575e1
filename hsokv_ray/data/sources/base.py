"""What every source shares: a shard that can be opened, the spans it is cut into, the records a span holds."""

import csv
import gzip
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol, TypeVar, cast

import pyarrow as pa

from hsokv_ray.data.config import DataConfig
from hsokv_ray.env import hub_token
from hsokv_ray.errors import DataError

PART_BYTES = 8_000_000
"""Most text in one part, in bytes, where the format can be cut."""

MAX_PIECES = 8
"""How often a shard that can only be read from its front may be read again to cut it."""

MAX_DOCUMENT_BYTES = 1_000_000
"""Most text in one document of a text file that is cut."""

TO_END = -1
"""`Span.stop` of a shard that is read to its end."""

SHARD_ERRORS = (OSError, EOFError, ValueError, zlib.error, tarfile.TarError, csv.Error, pa.ArrowException)
"""What the readers raise on damaged local files."""


ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """The fields of `DataConfig` that decide which documents a plan yields."""

    val_split: float
    text_column: str | None
    ascii_only: bool
    on_bad_shard: Literal["error", "skip"]
    on_bad_text: Literal["replace", "error"]
    wds_decode: Literal["text", "bytes"]
    wds_key: str
    wds_shuffle: int
    wds_epoch_documents: int | None
    """Documents per epoch of resampled shards; None where they are read once per epoch."""
    hf_token_env: str

    @classmethod
    def from_config(cls, config: DataConfig) -> "ReadOptions":
        """Return the options `config` holds."""
        names = [name for name in cls.__dataclass_fields__ if name not in ("val_split", "wds_epoch_documents")]
        return cls(
            val_split=config.resolved_val_split,
            wds_epoch_documents=config.wds_epoch_documents if config.wds_resampled else None,
            **{name: getattr(config, name) for name in names},
        )


@dataclass(frozen=True)
class Shard:
    """A file by path or URL."""

    path: str
    token_env: str = "HF_TOKEN"

    @property
    def is_remote(self) -> bool:
        """Whether the file is read over a network."""
        return "://" in self.path

    @property
    def name(self) -> str:
        """The path in lower case, without the query of a URL: what tells the format."""
        return (self.path.partition("?")[0] if self.is_remote else self.path).lower()

    @property
    def is_gzip(self) -> bool:
        """Whether the file is compressed, and so can only be read from its front."""
        return self.name.endswith((".gz", ".tgz"))

    @cached_property
    def size(self) -> int:
        """Bytes of the file as stored; 0 where a server does not say."""
        if not self.is_remote:
            return os.stat(self.path).st_size
        filesystem, path = self._remote()
        return int(filesystem.info(path).get("size") or 0)

    @property
    def text_bytes(self) -> int:
        """Guess of the bytes of text, from the size and typical compression."""
        return self.size * (4 if self.is_gzip else 2 if self.name.endswith((".parquet", ".arrow")) else 1)

    def open_raw(self) -> BinaryIO:
        """Open the stored bytes for reading."""
        if not self.is_remote:
            return open(self.path, "rb")
        filesystem, path = self._remote()
        return filesystem.open(path, "rb")

    def open(self) -> BinaryIO:
        """Open the content for reading, decompressed."""
        if not self.is_gzip:
            return self.open_raw()
        return cast(BinaryIO, gzip.GzipFile(fileobj=self.open_raw()) if self.is_remote else gzip.open(self.path))

    def _remote(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        is_hub = self.path.startswith("hf://")
        try:
            return url_to_fs(self.path, **({"token": hub_token(self.token_env)} if is_hub else {}))
        except ImportError as error:
            raise DataError(f"{self.path}: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A range of a shard that is read on its own."""

    start: int = 0
    stop: int = TO_END
    num_bytes: int = 0
    """Text, estimated."""
    pieces: int = 1
    """The range is read this often, each time for another remainder of the document number."""
    num_documents: int | None = None


class Record(NamedTuple):
    """One document before it is decoded, or the reason (a field of `ReadCounts`) why there is none."""

    position: str
    text: Callable[[], str | None]
    problem: str | None = None


class Format(Protocol):
    """How files of one kind are cut and read."""

    def columns(self, shard: Shard) -> dict[str, bool] | None:
        """Return the columns and whether they hold strings; None where there are no columns."""
        ...

    def spans(self, shard: Shard, *, column: str | None, target: int, options: ReadOptions) -> list[Span]:
        """Cut the shard into spans of about `target` bytes of text. Called once, on the driver."""
        ...

    def records(self, shard: Shard, span: Span, *, column: str | None, options: ReadOptions) -> Iterator[Record]:
        """Yield the records of a span in the order of the file."""
        ...


def whole(shard: Shard) -> list[Span]:
    """Return the one span of a shard that can only be read from its front."""
    size = shard.text_bytes
    pieces = 1 if shard.is_remote else min(MAX_PIECES, -(-size // PART_BYTES))
    return [Span(num_bytes=size, pieces=max(1, pieces))]


def refuse_binary(shard: Shard) -> None:
    """Raise `DataError` where the first 8 KB hold a zero byte. Remote files are not opened for it."""
    if shard.is_remote:
        return
    with shard.open() as file:
        head = file.read(8192)
    if (at := head.find(b"\0")) >= 0:
        raise DataError(f"{shard.path}: zero byte at offset {at}, so it is binary or UTF-16; give UTF-8 text")


def readable(items: Iterator[ItemT]) -> Iterator[ItemT]:
    """Yield `items` up to the first damage, which is left to the one who reads in earnest to report."""
    try:
        yield from items
    except SHARD_ERRORS:
        return


def shard_problem(shard: str, error: Exception, *, on_bad_shard: str) -> str:
    """Return the line that names a shard and why it cannot be read, where such shards are skipped.

    Raises:
        DataError: that line, where `on_bad_shard` is error.
    """
    # Of a remote file any exception is the network's or the server's: their clients have no common base.
    if not isinstance(error, SHARD_ERRORS) and "://" not in shard:
        raise error
    cause = " ".join(str(error).split()) or type(error).__name__
    problem = cause if shard in cause else f"{shard}: {cause}"
    if on_bad_shard == "error":
        advice = "" if isinstance(error, DataError) else "; repair the shard or give --on-bad-shard skip"
        raise DataError(problem + advice) from error
    return problem


def absolute(path: str) -> str:
    """Return a local path in full (workers run in other folders); URLs stay."""
    return path if "://" in path else str(Path(path).expanduser().absolute())
