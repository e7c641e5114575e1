"""Snapshots: a copy of a store on any file system, complete and checked, while the store goes on.

    store.snapshot("s3://bucket/notes-monday")
    restore_snapshot("s3://bucket/notes-monday", "memory/notes")

A snapshot is a store's folder without a log: rows that are not sealed yet are written as one more segment. Its list of
files with their checksums, snapshot.json, is written last; a place without one was never finished.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from hsokv_ray.errors import CheckpointError, DataError, StoreError
from hsokv_ray.manifest import FileEntry, flush_folder, read_manifest
from hsokv_ray.memory.stores.lsm.catalog import (
    FOLDER,
    Catalog,
    SegmentEntry,
    list_catalogs,
    read_catalog,
    write_catalog,
)
from hsokv_ray.memory.stores.lsm.fence import EPOCHS
from hsokv_ray.memory.stores.lsm.maintenance import Maintenance
from hsokv_ray.memory.stores.lsm.recovery import LOG, SEGMENTS, SNAPSHOT, next_catalog
from hsokv_ray.memory.stores.lsm.rewrite import merge
from hsokv_ray.memory.stores.lsm.table import Source

FORMAT = "hsokv-faiss-snapshot"
VERSION = 1
_CHUNK = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Place:
    """A folder on some file system."""

    uri: str
    filesystem: fs.FileSystem
    path: str

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def join(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"


def find_place(uri: str) -> Place:
    """Return the place of a path or a pyarrow.fs URI. Raises `DataError`."""
    try:
        if "://" in uri:
            return Place(uri, *fs.FileSystem.from_uri(uri))
        return Place(uri, fs.LocalFileSystem(), str(Path(uri).absolute()))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"snapshot {uri!r}: {error}; a path, s3://, gs:// or another pyarrow.fs URI is needed"
        ) from None


def write_snapshot(maintenance: Maintenance, uri: str) -> str:
    """Write what the store holds now to `uri`, an empty or missing folder; return `uri`. Reads and writes go on.

    Raises `DataError`: the place is not empty; `StoreError`: it cannot be written, or a segment is damaged.
    """
    place = find_place(uri)
    with _place_errors(uri):
        _check_empty(place)
        with _frozen_picture(maintenance) as catalog:
            files: dict[str, FileEntry] = {}
            for entry in catalog.segments:
                _copy_segment(maintenance.opened.folder / SEGMENTS / entry.name, place, files)
            _write_catalog(catalog, place, files)
        _write_list(place, files)
    return uri


def restore_snapshot(uri: str, path: str | Path) -> None:
    """Make the store that `uri` is a snapshot of, in the empty or missing folder `path`.

    Raises `DataError`: the folder is not empty; `StoreError`: the snapshot is unfinished or damaged.
    """
    place, folder = find_place(uri), Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"restore: {folder} is not empty; give an empty or new folder")
    with _place_errors(uri):
        files = _read_list(place)
        for name in (EPOCHS, FOLDER, LOG, SEGMENTS):
            (folder / name).mkdir(parents=True, exist_ok=True)
        catalogs_last = sorted(files, key=lambda name: (name.startswith(FOLDER), name.endswith(".json"), name))
        for name in catalogs_last:
            if name.startswith(f"{FOLDER}/") and name.endswith(".json"):
                _flush(folder)  # the catalog comes last: a folder without one is refused
            _fetch(place, name, files[name], folder)
        newest = read_catalog(folder / FOLDER / list_catalogs(folder)[-1])
        (folder / EPOCHS / f"{newest.epoch:06d}").touch()
        _flush(folder)


@contextmanager
def _frozen_picture(maintenance: Maintenance) -> Iterator[Catalog]:
    """Yield a catalog of everything that is there now; rows that are not sealed yet get a segment for the time."""
    opened = maintenance.opened
    with ExitStack() as stack:
        with maintenance.changed:
            stack.enter_context(maintenance.pinned())
            catalog = next_catalog(opened.table, opened.epoch, 0)
            unsealed = [key for key, state in opened.table.parts.items() if state.segment is None]
            sources = opened.table.begin_rewrite(unsealed)
        if (extra := _write_unsealed(maintenance, sources, catalog.dim)) is not None:
            stack.callback(maintenance.unpin, extra.name)
        segments = catalog.segments if extra is None else (*catalog.segments, extra)
        yield replace(catalog, replay_after=catalog.seq, segments=segments)


def _write_unsealed(maintenance: Maintenance, sources: list[Source], dim: int | None) -> SegmentEntry | None:
    if dim is None or not sources:
        return None
    rows = merge(sources, dim).rows
    if not len(rows):
        return None
    return SegmentEntry(maintenance.write_rows(rows, "flat").name, len(rows), None)


def _copy_segment(folder: Path, place: Place, files: dict[str, FileEntry]) -> None:
    """Copy a segment and compare it with its own checksums on the way."""
    try:
        expected = read_manifest(folder).files
    except CheckpointError as error:
        raise StoreError(f"segment {folder} is damaged ({error}); restore an earlier snapshot") from None
    for path in sorted(folder.iterdir()):
        entry = _put(path, place, f"{SEGMENTS}/{folder.name}/{path.name}", files)
        if expected.get(path.name, entry) != entry:
            raise StoreError(f"segment file {path} is damaged: its checksum differs; restore an earlier snapshot")


def _write_catalog(catalog: Catalog, place: Place, files: dict[str, FileEntry]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / FOLDER).mkdir()
        write_catalog(folder, catalog)
        for path in sorted((folder / FOLDER).iterdir()):
            _put(path, place, f"{FOLDER}/{path.name}", files)


def _write_list(place: Place, files: dict[str, FileEntry]) -> None:
    body = {"format": FORMAT, "version": VERSION, "files": {name: asdict(entry) for name, entry in files.items()}}
    data = json.dumps({"sha256": _digest(body), "snapshot": body}, indent=1).encode()
    if place.is_local:
        _flush(Path(place.path))
    with place.filesystem.open_output_stream(place.join(SNAPSHOT)) as target:
        target.write(data)
    if place.is_local:
        _flush(Path(place.path))


def _read_list(place: Place) -> dict[str, FileEntry]:
    if place.filesystem.get_file_info(place.join(SNAPSHOT)).type != fs.FileType.File:
        raise StoreError(f"snapshot {place.uri}: no {SNAPSHOT}: it was never finished, or this is not a snapshot")
    try:
        with place.filesystem.open_input_stream(place.join(SNAPSHOT)) as source:
            whole = json.loads(source.read())
        body, digest = whole["snapshot"], whole["sha256"]
        if _digest(body) != digest:
            raise ValueError("its checksum differs")
        if (body["format"], body["version"]) != (FORMAT, VERSION):
            raise ValueError(f"it has version {body['version']!r}; this version reads {VERSION}")
        return {name: FileEntry(**values) for name, values in body["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"snapshot {place.uri}: {SNAPSHOT} cannot be used ({error}); use another snapshot") from None


def _put(path: Path, place: Place, name: str, files: dict[str, FileEntry]) -> FileEntry:
    """Copy a file to `name` and note its size and checksum."""
    target = place.join(name)
    place.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
    digest, num_bytes = hashlib.sha256(), 0
    with path.open("rb") as source, place.filesystem.open_output_stream(target) as sink:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            num_bytes += len(chunk)
            sink.write(chunk)
    files[name] = FileEntry(num_bytes, digest.hexdigest())
    return files[name]


def _fetch(place: Place, name: str, expected: FileEntry, folder: Path) -> None:
    """Copy `name` into `folder`; raise `StoreError` where it is not what was written."""
    target = folder / name
    if not target.resolve().is_relative_to(folder.resolve()):
        raise StoreError(f"snapshot {place.uri}: the file name {name!r} leads out of the folder; use another snapshot")
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, num_bytes = hashlib.sha256(), 0
    with place.filesystem.open_input_stream(place.join(name), compression=None) as source, target.open("wb") as sink:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            num_bytes += len(chunk)
            sink.write(chunk)
    if FileEntry(num_bytes, digest.hexdigest()) != expected:
        target.unlink()
        raise StoreError(f"snapshot {place.uri}: {name} is damaged: its checksum differs; use another snapshot")


def _check_empty(place: Place) -> None:
    info = place.filesystem.get_file_info(place.path)
    if info.type == fs.FileType.NotFound:
        return
    selector = fs.FileSelector(place.path, allow_not_found=True)
    if info.type == fs.FileType.File or place.filesystem.get_file_info(selector):
        raise DataError(f"snapshot {place.uri!r}: the place is not empty; give an empty or new one")


def _flush(folder: Path) -> None:
    """Put every file and name below `folder` on disk."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            flush_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


@contextmanager
def _place_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"snapshot {uri}: {error}; check the place, its room and its permissions") from error
