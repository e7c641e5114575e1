"""The catalog: which sealed segments make up a store, and from where on the log adds to them.

    manifests/000007-000123.json        the 124th catalog of epoch 7; the newest one that is whole wins
    manifests/000007-000123.requests    the requests it remembers

    write_catalog(folder, catalog)
    newest, before = load_catalogs(folder)

A file is written under another name, flushed, renamed, and its folder flushed: it is whole or absent. It carries its
own checksum. The last two stay: where the newest one is damaged the one before it says the same with the help of the
log, so segments and log files are kept as long as either of the two needs them. Epochs come first in the name: what a
fenced writer still writes never counts as the newest.
"""

import base64
import binascii
import hashlib
import json
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hsokv_ray.errors import ConfigError, StoreError
from hsokv_ray.manifest import flush_folder
from hsokv_ray.memory.stores.config import FaissConfig
from hsokv_ray.memory.stores.lsm.log import disk_error
from hsokv_ray.memory.stores.lsm.requests import Outcome, pack_requests, unpack_requests
from hsokv_ray.memory.stores.types import Metric

FOLDER = "manifests"
FORMAT = "hsokv-faiss-store"
VERSION = 1
KEPT = 2
_NAME = re.compile(r"(\d{6,})-(\d{6,})\.json")


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """A sealed segment and which of its rows count."""

    name: str
    num_rows: int
    alive: np.ndarray | None
    """bool [num_rows]; None: all of them."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """A store's sealed part, as of write `seq`."""

    epoch: int
    number: int
    seq: int
    """The masks and the requests count every write up to this one."""
    replay_after: int
    """The segments hold the rows of every write up to this one; those after it are in the log."""
    dim: int | None
    metric: Metric
    segments: tuple[SegmentEntry, ...]
    requests: tuple[tuple[str, Outcome], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.epoch:06d}-{self.number:06d}.json"


@dataclass(frozen=True, slots=True)
class Loaded:
    """The catalogs of a folder."""

    newest: Catalog | None
    """None: there is no catalog file at all."""
    before: Catalog | None
    notes: tuple[str, ...]
    """One line per file that is damaged."""


def write_catalog(folder: Path, catalog: Catalog) -> None:
    """Write `catalog` into the store's `folder`. Raises `StoreError` where the disk refuses."""
    path = folder / FOLDER / catalog.name
    requests = pack_requests(catalog.requests)
    body = {
        "format": FORMAT,
        "version": VERSION,
        "epoch": catalog.epoch,
        "number": catalog.number,
        "seq": catalog.seq,
        "replay_after": catalog.replay_after,
        "dim": catalog.dim,
        "metric": catalog.metric,
        "segments": [_entry_json(entry) for entry in catalog.segments],
        "requests_sha256": hashlib.sha256(requests).hexdigest(),
    }
    try:
        _write_file(path.with_suffix(".requests"), requests)
        _write_file(path, json.dumps({"sha256": _digest(body), "catalog": body}, indent=1).encode())
        flush_folder(path.parent)
    except OSError as error:
        raise disk_error(f"catalog {path}", error) from error


def load_catalogs(folder: Path) -> Loaded:
    """Return the newest whole catalog of a store's `folder` and the one before it.

    Raises `StoreError`: all of them are damaged; `ConfigError`: one is of a version this one does not read.
    """
    notes: list[str] = []
    whole: list[Catalog] = []
    names = list_catalogs(folder)
    for name in reversed(names):
        try:
            whole.append(read_catalog(folder / FOLDER / name))
        except StoreError as error:
            notes.append(str(error))
        if len(whole) == KEPT:
            break
    if names and not whole:
        raise StoreError(f"{folder}: no catalog can be read ({notes[0]}); restore a snapshot")
    return Loaded(whole[0] if whole else None, whole[1] if len(whole) > 1 else None, tuple(notes))


def list_catalogs(folder: Path) -> list[str]:
    """Return the names of the catalogs of a store's `folder`, oldest first; none where it has no such folder."""
    try:
        found = [match for name in os.listdir(folder / FOLDER) if (match := _NAME.fullmatch(name))]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [match[0] for match in sorted(found, key=lambda match: (int(match[1]), int(match[2])))]


def read_catalog(path: Path) -> Catalog:
    """Return the catalog at `path`. Raises `StoreError`: damaged; `ConfigError`: of another version."""
    try:
        whole = json.loads(path.read_bytes())
        body, digest = whole["catalog"], whole["sha256"]
        requests = path.with_suffix(".requests").read_bytes()
        if _digest(body) != digest or hashlib.sha256(requests).hexdigest() != body["requests_sha256"]:
            raise StoreError(f"catalog {path.name} is damaged: its checksum differs")
        _check_version(path, body)
        return _catalog(body, requests)
    except (OSError, ValueError, KeyError, TypeError, zlib.error) as error:
        if isinstance(error, ConfigError):
            raise
        raise StoreError(f"catalog {path.name} cannot be read ({error!r})") from None


def delete_catalogs_before(folder: Path, oldest: Catalog) -> None:
    """Delete the catalogs that are older than `oldest`, and what writers that died left of one. Raises `OSError`."""
    for path in (folder / FOLDER).glob("*.tmp"):
        path.unlink(missing_ok=True)
    for name in list_catalogs(folder):
        if _order(name) < _order(oldest.name):
            path = folder / FOLDER / name
            path.unlink(missing_ok=True)
            path.with_suffix(".requests").unlink(missing_ok=True)


def check_catalog(catalog: Catalog, config: FaissConfig) -> None:
    """Raise `ConfigError` where the store was made with another metric or dimension than `config` asks for."""
    if catalog.metric != config.metric:
        raise ConfigError(
            f"store {config.path}: metric: got {config.metric!r}, but it was made with {catalog.metric!r}; "
            f"open it with metric={catalog.metric} or use another folder"
        )
    check_dim(catalog.dim, config)


def check_dim(dim: int | None, config: FaissConfig) -> None:
    """Raise `ConfigError` where `config` asks for another dimension than the store's."""
    if dim is not None and config.dim not in (None, dim):
        raise ConfigError(
            f"store {config.path}: dim: got {config.dim}, but its vectors have {dim}; leave dim out or use another "
            "folder"
        )


def _order(name: str) -> tuple[int, int]:
    match = _NAME.fullmatch(name)
    assert match is not None
    return int(match[1]), int(match[2])


def _check_version(path: Path, body: dict[str, Any]) -> None:
    if (body["format"], body["version"]) != (FORMAT, VERSION):
        raise ConfigError(
            f"catalog {path} has format {body['format']!r} version {body['version']!r}; this version reads {FORMAT!r} "
            f"{VERSION}: open the store with the version that wrote it"
        )


def _write_file(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _entry_json(entry: SegmentEntry) -> dict[str, Any]:
    alive = (
        None if entry.alive is None else base64.b64encode(zlib.compress(np.packbits(entry.alive).tobytes(), 1)).decode()
    )
    return {"name": entry.name, "num_rows": entry.num_rows, "alive": alive}


def _catalog(body: dict[str, Any], requests: bytes) -> Catalog:
    return Catalog(
        epoch=body["epoch"],
        number=body["number"],
        seq=body["seq"],
        replay_after=body["replay_after"],
        dim=body["dim"],
        metric=body["metric"],
        segments=tuple(_entry(values) for values in body["segments"]),
        requests=tuple(unpack_requests(requests)),
    )


def _entry(values: dict[str, Any]) -> SegmentEntry:
    num_rows, alive = values["num_rows"], values["alive"]
    if alive is None:
        return SegmentEntry(values["name"], num_rows, None)
    try:
        packed = zlib.decompress(base64.b64decode(alive, validate=True))
    except binascii.Error as error:
        raise ValueError(f"alive rows of {values['name']}: {error}") from None
    mask = np.unpackbits(np.frombuffer(packed, np.uint8), count=num_rows).astype(bool)
    return SegmentEntry(values["name"], num_rows, mask)
