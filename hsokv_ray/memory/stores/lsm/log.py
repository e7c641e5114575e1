"""The log: every write, in order, on disk before it is acknowledged.

    log/000007-000000.log      entries of epoch 7 (see records.py); a new file about every 64 MB

    writer = LogWriter(folder, epoch=7, seq=41)
    writer.write([encode_upsert(rows)], sync=True)        # seq 42
    for write in read_writes(folder, after=40): ...       # 41, 42

Each file begins with the number of the last write before it. What a file holds beyond the number with which a later
file begins was never acknowledged (a fenced writer's, or a failed one's) and is passed over. What it lacks up to there
is lost and an error. Of the newest file a torn end is cut: those writes were not acknowledged either. Any other fault
is an error, because an acknowledged write may hide behind it.
"""

import errno
import itertools
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hsokv_ray.errors import StoreError
from hsokv_ray.manifest import flush_folder
from hsokv_ray.memory.stores.lsm.records import (
    HEADER_BYTES,
    Buffer,
    Encoded,
    Kind,
    Split,
    Stop,
    Write,
    encode_mark,
    split,
)

ROTATE_BYTES = 64 * 2**20
_MAX_PIECES = 1000
"""Of one writev; the system's limit is 1024."""
_NAME = re.compile(r"(\d{6,})-(\d{6,})\.log")
_flush = getattr(os, "fdatasync", os.fsync)


@dataclass(frozen=True, order=True, slots=True)
class LogName:
    """Epoch and number of a log file."""

    epoch: int
    index: int

    def __str__(self) -> str:
        return f"{self.epoch:06d}-{self.index:06d}.log"


@dataclass(slots=True)
class Tail:
    """How reading ended."""

    seq: int
    """The last write that was read."""
    torn_bytes: int = 0
    """Cut from the newest file."""
    notes: list[str] = field(default_factory=list)
    """One line for everything that was passed over."""


class LogWriter:
    """Appends to the log of one epoch. `sync` may be called from any thread, all else from one.

    Raises `StoreError` from the constructor where the folder takes no file.
    """

    def __init__(self, folder: Path, *, epoch: int, seq: int, rotate_bytes: int = ROTATE_BYTES) -> None:
        self.folder, self.epoch, self.seq = folder, epoch, seq
        self._rotate_bytes = rotate_bytes
        self._index = 0
        self._descriptor: int | None = None
        self._end = 0
        self._lock = threading.RLock()
        """Keeps the file open while another thread syncs it."""
        self._start_file()

    @property
    def name(self) -> LogName:
        """The file in use."""
        return LogName(self.epoch, self._index - 1)

    def write(self, entries: Sequence[Encoded], *, sync: bool) -> None:
        """Append `entries` as the writes seq+1, seq+2, ...; on disk when it returns where `sync`.

        Raises `StoreError`: nothing of it counts; a later call may succeed.
        """
        if self._descriptor is None or self._end >= self._rotate_bytes:
            self._start_file()
        assert self._descriptor is not None
        pieces = [piece for i, entry in enumerate(entries) for piece in entry.with_seq(self.seq + 1 + i)]
        try:
            num_bytes = _write_all(self._descriptor, pieces)
            if sync:
                _flush(self._descriptor)
        except OSError as error:
            self._take_back(error)
            raise disk_error(f"log {self.folder / str(self.name)}", error) from error
        self._end += num_bytes
        self.seq += len(entries)

    def sync(self) -> None:
        """Put what was written on disk. Raises `StoreError`."""
        try:
            with self._lock:
                if self._descriptor is not None:
                    _flush(self._descriptor)
        except OSError as error:
            self._leave_file()  # the system may take the lost pages for written from now on
            raise disk_error(f"log {self.folder / str(self.name)}", error) from error

    def close(self) -> None:
        """Leave in good order, so that any later damage to the file is found; again: nothing. Raises `StoreError`."""
        if self._descriptor is None:
            return
        try:
            _write_all(self._descriptor, encode_mark(Kind.CLOSE).with_seq(self.seq))
            _flush(self._descriptor)
        except OSError as error:
            raise disk_error(f"log {self.folder / str(self.name)}", error) from error
        finally:
            self._leave_file()

    def abandon(self) -> None:
        """Close the file as it is, as a process that dies would."""
        self._leave_file()

    def _start_file(self) -> None:
        """Go on in a new file; the old one is on disk first."""
        self.sync()
        self._leave_file()
        self._index += 1
        path = self.folder / str(self.name)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise disk_error(f"log {path}", error) from error
        try:
            self._end = _write_all(descriptor, encode_mark(Kind.OPEN).with_seq(self.seq))
            os.fsync(descriptor)
            flush_folder(self.folder)
        except OSError as error:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise disk_error(f"log {path}", error) from error
        self._descriptor = descriptor

    def _leave_file(self) -> None:
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _take_back(self, cause: OSError) -> None:
        """Cut what a failed write left, which also gives its room back.

        Where even that fails, or the disk lost a flush (its pages may then look clean), the next write begins a new
        file, whose first entry says that this one counts up to `seq` only.
        """
        assert self._descriptor is not None
        try:
            os.ftruncate(self._descriptor, self._end)
            os.fsync(self._descriptor)
        except OSError as error:
            cause.add_note(f"taking it back failed too: {error}")
            self._leave_file()
            return
        if not is_no_room(cause):
            self._leave_file()


def list_logs(folder: Path) -> list[LogName]:
    """Return the log files of `folder`, oldest first."""
    found = (_NAME.fullmatch(entry.name) for entry in os.scandir(folder))
    return sorted(LogName(int(match[1]), int(match[2])) for match in found if match)


def read_log(path: Path) -> Split:
    """Return the entries of one file up to the first that is not whole. Raises `StoreError`: it cannot be read."""
    try:
        return split(path.read_bytes())
    except OSError as error:
        raise StoreError(f"log {path} cannot be read ({error}); restore a snapshot") from None


def first_seqs(folder: Path) -> dict[LogName, int]:
    """Return, per file that was begun, the number of the last write before it.

    Raises `StoreError` where a file's first entry is damaged.
    """
    firsts: dict[LogName, int] = {}
    for name in list_logs(folder):
        with (folder / str(name)).open("rb") as file:
            start = split(file.read(HEADER_BYTES + 4))
        if start.entries:
            firsts[name] = start.entries[0].seq
        elif start.stop is not None:
            whole = read_log(folder / str(name)).stop
            assert whole is not None
            if not whole.is_torn:
                raise _damaged(folder / str(name), whole)
    return firsts


def read_writes(folder: Path, *, after: int, tail: Tail) -> Iterator[Write]:
    """Yield the writes numbered after+1, after+2, ... to the last that can have been acknowledged; `tail` says which.

    Raises `StoreError`: a file is missing or damaged; it names the file and the byte.
    """
    firsts = first_seqs(folder)
    tail.seq = after
    names = list(firsts)
    limits = _limits(list(firsts.values()))
    needed = [(name, limit) for name, limit in zip(names, limits, strict=True) if limit is None or limit > after]
    if needed and firsts[needed[0][0]] > after:
        raise StoreError(
            f"log {folder}: the writes {after + 1} to {firsts[needed[0][0]]} are missing: a log file was removed; "
            "restore a snapshot"
        )
    for name, limit in needed:
        yield from _read_file(folder, name, firsts[name], limit, tail)


def delete_before(folder: Path, seq: int) -> int:
    """Delete the files that hold nothing after `seq`; return how many."""
    firsts = first_seqs(folder)
    limits = _limits(list(firsts.values()))
    old = [name for name, limit in zip(firsts, limits, strict=True) if limit is not None and limit <= seq]
    for name in old:
        (folder / str(name)).unlink(missing_ok=True)
    return len(old)


def flush_logs(folder: Path) -> None:
    """Put every file on disk: what a writer that died wrote last was read, but nobody waited for the disk.

    Raises `StoreError`.
    """
    try:
        for name in list_logs(folder):
            with (folder / str(name)).open("rb") as file:
                os.fsync(file.fileno())
        flush_folder(folder)
    except OSError as error:
        raise disk_error(f"log {folder}", error) from error


def is_no_room(error: OSError) -> bool:
    """Return whether `error` says that the disk, a quota or a limit is full."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return error.errno in full or any(os.strerror(each) in str(error) for each in full)  # FAISS passes on the text only


def disk_error(what: str, error: OSError) -> StoreError:
    """Return the error a user meets where the disk refused."""
    if is_no_room(error):
        return StoreError(
            f"no room for {what} ({error.strerror or error}); what was there before is safe: free some space"
        )
    return StoreError(f"{what} cannot be written ({error}); what was there before is safe: check the disk")


def _limits(firsts: list[int]) -> list[int | None]:
    """Return up to which number each file counts: the least with which a later one begins; None for the newest."""
    smallest = list(itertools.accumulate(reversed(firsts[1:]), min))[::-1]
    return [*smallest, None] if firsts else []


def _read_file(folder: Path, name: LogName, first: int, limit: int | None, tail: Tail) -> Iterator[Write]:
    path, seq = folder / str(name), first
    found = read_log(path)
    for entry in found.entries[1:]:
        if entry.kind == Kind.CLOSE or (limit is not None and entry.seq > limit):
            continue
        if entry.kind == Kind.OPEN or entry.seq != seq + 1:
            raise StoreError(f"log {path}: entry {entry.seq} follows {seq}; restore a snapshot")
        seq = entry.seq
        if seq > tail.seq:
            tail.seq = seq
            yield entry.write(name.epoch)
    _check_end(path, found.stop, seq, limit, tail)


def _check_end(path: Path, stop: Stop | None, seq: int, limit: int | None, tail: Tail) -> None:
    if limit is not None:
        if seq < limit:
            raise _damaged(path, stop or Stop(path.stat().st_size, False, f"it ends at write {seq} of {limit}"))
    elif stop is not None:
        if not stop.is_torn:
            raise _damaged(path, stop)
        tail.torn_bytes = path.stat().st_size - stop.offset
        tail.notes.append(f"log {path.name}: a torn end of {tail.torn_bytes} bytes was cut at byte {stop.offset}")


def _damaged(path: Path, stop: Stop) -> StoreError:
    return StoreError(
        f"log {path} is damaged at byte {stop.offset} ({stop.reason}): writes from there on cannot be trusted; "
        "restore a snapshot"
    )


def _write_all(descriptor: int, pieces: Sequence[Buffer]) -> int:
    """Write every piece; return the bytes."""
    total = 0
    for start in range(0, len(pieces), _MAX_PIECES):
        group = list(pieces[start : start + _MAX_PIECES])
        total += _write_group(descriptor, group)
    return total


def _write_group(descriptor: int, group: list[Buffer]) -> int:
    total = 0
    while group:
        done = os.writev(descriptor, group)
        total += done
        while group and done >= len(group[0]):
            done -= len(group.pop(0))
        if group:
            group[0] = memoryview(group[0])[done:]
    return total
