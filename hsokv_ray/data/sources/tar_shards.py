"""WebDataset shards: tar files read as streams, one document per sample. Nothing is ever extracted."""

import itertools
import tarfile
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from hsokv_ray.data.sources.base import TO_END, ReadOptions, Record, Shard, Span, whole
from hsokv_ray.data.sources.text_files import decode
from hsokv_ray.errors import ConfigError

UNSAFE_KEYS = frozenset({"pkl", "pickle", "pyd", "pth", "pt"})
_BLOCK = 512
_READ = 1 << 20


class TarShard:
    """Members with the same name up to the first dot are a sample; its member `--wds-key` is the document."""

    def columns(self, shard: Shard) -> dict[str, bool] | None:
        """Shards have no columns."""
        return None

    def spans(self, shard: Shard, *, column: str | None, target: int, options: ReadOptions) -> list[Span]:
        """Cut between samples after every `target` bytes of text, from the headers.

        Shards that cannot be entered in the middle (gz, URLs) stay whole; they are scanned only for resampling, which
        has to know how many documents they hold.
        """
        can_seek = not (shard.is_gzip or shard.is_remote)
        if not can_seek and options.wds_epoch_documents is None:
            return whole(shard)
        spans = _scan(shard, options.wds_key, target=target)
        if can_seek or not spans:
            return spans
        num_documents = sum(span.num_documents or 0 for span in spans)
        return [Span(num_bytes=sum(span.num_bytes for span in spans), num_documents=num_documents)]

    def records(self, shard: Shard, span: Span, *, column: str | None, options: ReadOptions) -> Iterator[Record]:
        """Yield the samples that start inside the span."""
        with shard.open() as file:
            if span.start:
                file.seek(span.start)
            with _open(shard, file) as tar:
                yield from _samples(tar, None if span.stop == TO_END else span.stop, options)


class _StrictTarInfo(tarfile.TarInfo):
    """Refuses what `tarfile` takes for the end of the archive: a damaged, cut or missing header after the first."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictTarInfo":
        if len(buf) == _BLOCK and not any(buf):
            return super().frombuf(buf, encoding, errors)
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged or cut off: {error}") from None


def refuse_unsafe_key(key: str) -> None:
    """Raise `ConfigError` where the wanted member's decoder would run code (pickle and its kin)."""
    if key.rpartition(".")[2] in UNSAFE_KEYS:
        raise ConfigError(f"--wds-key: got {key!r}, whose decoding can run code; give a text member, as txt")


def _samples(tar: tarfile.TarFile, stop: int | None, options: ReadOptions) -> Iterator[Record]:
    for name, members in itertools.groupby(_members(tar, stop), key=_sample_name):
        found = False
        for member in members:
            if name is None:
                yield Record(member.name, _nothing, problem="skipped_members")
            elif _key(member) == options.wds_key:
                found = True
                yield Record(name, partial(_text, _content(tar, member), options))
        if name is not None and not found:
            yield Record(name, _nothing, problem="missing_text_documents")
    if stop is None:
        _check_end(tar)


def _scan(shard: Shard, key: str, *, target: int) -> list[Span]:
    """Cut the samples of a shard, in file order, into spans of about `target` bytes of text; damage anywhere raises."""
    spans: list[Span] = []
    start = stop = num_bytes = num_records = 0
    with shard.open() as file, _open(shard, file) as tar:
        for name, members in itertools.groupby(_members(tar, None), key=_sample_name):
            texts = []
            for i, member in enumerate(members):
                if i == 0 and num_bytes >= target:
                    spans.append(Span(start=start, stop=stop, num_bytes=num_bytes, num_documents=num_records))
                    start, num_bytes, num_records = member.offset, 0, 0
                if name is None or _key(member) == key:
                    texts.append(member.size if name is not None else 0)
                stop = tar.offset
            num_bytes += sum(texts)
            num_records += max(1, len(texts))
        _check_end(tar)
    if num_records:
        spans.append(Span(start=start, stop=stop, num_bytes=num_bytes, num_documents=num_records))
    return spans


def _open(shard: Shard, file: BinaryIO) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="r|" if shard.is_remote else "r:", tarinfo=_StrictTarInfo)


def _members(tar: tarfile.TarFile, stop: int | None) -> Iterator[tarfile.TarInfo]:
    """Yield files, links and devices, not folders, that start before `stop`."""
    while (member := tar.next()) is not None and (stop is None or member.offset < stop):
        # A shard may have millions of members, and nobody looks back at them.
        tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
        if not member.isdir():
            yield member


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise where something follows the end of the archive; reading on also makes gzip check its sum."""
    stream = tar.fileobj
    assert stream is not None
    while rest := stream.read(_READ):
        if any(rest):
            raise tarfile.ReadError(f"data after the end of the archive at offset {tar.offset}")


def _sample_name(member: tarfile.TarInfo) -> str | None:
    """Return the name up to the first dot of its last part; None for a member that is not plainly a file inside."""
    name = member.name
    if not member.isreg() or member.issparse() or name.startswith("/") or ".." in name.split("/"):
        return None
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _key(member: tarfile.TarInfo) -> str:
    return member.name.rpartition("/")[2].partition(".")[2]


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    # Twice as fast as `extractfile`, which builds two file objects per member.
    stream = tar.fileobj
    assert stream is not None
    stream.seek(member.offset_data)
    data = stream.read(member.size)
    if len(data) < member.size:
        raise tarfile.ReadError(f"cut off inside member {member.name!r}")
    return data


def _text(data: bytes, options: ReadOptions) -> str:
    return decode(data) if options.wds_decode == "text" else data.decode("latin-1")


def _nothing() -> None:
    return None
