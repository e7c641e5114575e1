"""manifest.json: what belongs to a folder, with a checksum per file, so that a folder is complete or refused.

The manifest is written last and atomically: a folder without one was never finished.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hsokv_ray.errors import CheckpointError

NAME = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class FileEntry:
    """One file of the folder."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of a folder by their path relative to it, and whatever else its writer recorded."""

    files: dict[str, FileEntry]
    extra: dict[str, Any]


def write_manifest(folder: str | Path, *, extra: dict[str, Any]) -> Path:
    """Flush every file below `folder` to disk, then write their checksums and `extra` (JSON) to its manifest.

    Returns the manifest's path. Raises `OSError` where the disk refuses.
    """
    folder = Path(folder)
    own = {folder / NAME, folder / f"{NAME}.tmp"}
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path not in own)
    files = {path.relative_to(folder).as_posix(): asdict(_entry(path, flush=True)) for path in paths}
    for subfolder in {path.parent for path in paths} - {folder}:
        flush_folder(subfolder)
    temporary, target = folder / (NAME + ".tmp"), folder / NAME
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, "files": files, "extra": extra}, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
    flush_folder(folder)
    return target


def read_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of `folder` without looking at the files. Raises `CheckpointError`: absent or damaged."""
    path = Path(folder) / NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {NAME}: it was never finished; use another checkpoint") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); use another checkpoint") from None
    try:
        if values["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {values['format']!r}; this version reads {FORMAT}")
        files = {name: FileEntry(**entry) for name, entry in values["files"].items()}
        return Manifest(files=files, extra=dict(values["extra"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a manifest ({error!r}); use another checkpoint") from None


def verify_manifest(folder: str | Path) -> Manifest:
    """Return the manifest of `folder` after every file in it was found unchanged.

    Raises:
        CheckpointError: names the first file that is missing, has another size or another checksum.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder}: {name} is missing; use another checkpoint")
        if path.stat().st_size != expected.num_bytes:
            raise _damaged(folder, name, f"{path.stat().st_size} bytes where {expected.num_bytes} were written")
        if _entry(path) != expected:
            raise _damaged(folder, name, "its checksum differs")
    return manifest


def _damaged(folder: Path, name: str, why: str) -> CheckpointError:
    return CheckpointError(f"{folder}: {name} is damaged ({why}); use another checkpoint")


def _entry(path: Path, *, flush: bool = False) -> FileEntry:
    with path.open("rb") as file:
        if flush:
            os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(num_bytes=file.tell(), sha256=digest)


def flush_folder(folder: Path) -> None:
    """Put the names in `folder` on disk. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
