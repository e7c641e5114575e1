"""What was told to a swarm, line by line, on disk before the swarm hears it.

journal = Journal(folder / "journal.jsonl")
records = journal.open()                              # whole lines; a torn last one is cut off
journal.append([record, record])                      # one flush for all that are ready together
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Self

from hsokv_ray.errors import CheckpointError, RunError


class Journal:
    """JSON lines that only ever grow, but for a last line that was not finished.

    Args:
        path: made by `open` if missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.num_lines = 0
        self._file: IO[bytes] | None = None

    def open(self, *, cut_after: int | None = None) -> list[dict[str, Any]]:
        """Return the records there are, and make room for more.

        Args:
            cut_after: records that stay at most; None: all.

        Raises:
            CheckpointError: a line before the last is damaged.
            RunError: the file cannot be written.
        """
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
            records, num_bytes = _whole_lines(data, self.path, cut_after)
            self._file = self.path.open("ab", buffering=0)
            if num_bytes < len(data):
                self._file.truncate(num_bytes)
                os.fsync(self._file.fileno())
        except OSError as error:
            raise _refused(self.path, error) from None
        self.num_lines = len(records)
        return records

    def append(self, records: Iterable[dict[str, Any]], *, flush: bool = True) -> None:
        """Write `records`, on disk when this returns.

        Args:
            records: JSON.
            flush: False: the operating system has them, so that only a power cut loses them.

        Raises:
            RunError: the disk refuses.
        """
        assert self._file is not None, "open() comes first"
        lines = [json.dumps(record, allow_nan=False, separators=(",", ":")) for record in records]
        if not lines:
            return
        try:
            data = memoryview("".join(line + "\n" for line in lines).encode())
            while data:
                data = data[self._file.write(data) :]
            if flush:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise _refused(self.path, error) from None
        self.num_lines += len(lines)

    def flush(self) -> None:
        """Put everything on disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Follower:
    """Reads the whole lines that others append to a file, each once.

    Args:
        path: need not exist yet; what it holds already is passed over.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        data = self.path.read_bytes() if self.path.exists() else b""
        self._offset = data.rfind(b"\n") + 1

    def read(self) -> list[dict[str, Any]]:
        """Return what has come since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            self._offset = min(self._offset, file.seek(0, os.SEEK_END))  # a torn end was cut off
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def _whole_lines(data: bytes, path: Path, most: int | None) -> tuple[list[dict[str, Any]], int]:
    """Return the records of `data`, and how many bytes they take."""
    lines = data.splitlines(keepends=True)
    records, num_bytes = [], 0
    for number, line in enumerate(lines):
        if len(records) == most:
            break
        try:
            if not line.endswith(b"\n"):
                break
            record = json.loads(line)
        except ValueError as error:
            if number + 1 < len(lines):  # only the last line can have been in the making when a process was killed
                raise CheckpointError(
                    f"{path}:{number + 1} is damaged ({error}); restore the file from a copy"
                ) from None
            break
        records.append(record)
        num_bytes += len(line)
    return records, num_bytes


def _refused(path: Path, error: OSError) -> RunError:
    return RunError(f"{path} cannot be written ({error.strerror}); make room, then resume the search")
