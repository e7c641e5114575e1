"""Files that are there whole, or not at all, after the power fails at any moment."""

import errno
import fcntl
import json
import os
import shutil
from io import FileIO
from pathlib import Path
from typing import Any

from hsokv_ray.errors import StoreError
from hsokv_ray.manifest import flush_folder


def write_json(path: Path, value: Any) -> None:
    """Replace the file at `path`; on disk when it returns."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, separators=(",", ":"))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    flush_folder(path.parent)


def read_json(path: Path) -> Any:
    """Return what `write_json` wrote. Raises `OSError` or `ValueError`."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_all(file: FileIO, data: bytes) -> None:
    """Write all of `data` to an unbuffered file, so that nothing is left to be written by a later call."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def flush_file(path: Path) -> None:
    """Put the content of the file at `path` on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def link_file(source: Path, target: Path) -> None:
    """Give a file that is on disk a second name, or copy it where the file system knows no such thing.

    The new name is on disk only after `flush_folder`.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK):
            raise
        shutil.copyfile(source, target)
        flush_file(target)


def rename_folder(source: Path, target: Path) -> None:
    """Move a folder in one step; on disk when it returns."""
    source.rename(target)
    flush_folder(target.parent)
    if source.parent != target.parent:
        flush_folder(source.parent)


def make_folder(path: Path) -> None:
    """Make the folder `path`, whose parent is there; on disk when it returns."""
    path.mkdir()
    flush_folder(path.parent)


def take_lock(path: Path) -> int:
    """Hold the lock file at `path` until the returned descriptor is closed. Raises `StoreError` where another does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StoreError(f"{path.parent} is in use by another process; end it, or use another folder") from None
    return descriptor
