"""Recovery: a folder becomes an open store, whatever happened to its last owner.

    opened = open_folder(FaissConfig(path="memory/notes"))
    opened.table, opened.log, opened.epoch

The lock first, then a new epoch, which fences whoever wrote before, then the newest catalog, its segments with every
checksum, and the log from there on. Where the catalog or one of its segments is damaged, the catalog before it and a
longer stretch of the log say the same. A folder that this library did not write is refused and left as it is.
"""

from dataclasses import dataclass, field
from pathlib import Path

from hsokv_ray.errors import StoreError
from hsokv_ray.manifest import flush_folder
from hsokv_ray.memory.stores.config import FaissConfig
from hsokv_ray.memory.stores.lsm.catalog import (
    FOLDER,
    Catalog,
    SegmentEntry,
    check_catalog,
    check_dim,
    list_catalogs,
    load_catalogs,
    write_catalog,
)
from hsokv_ray.memory.stores.lsm.fence import EPOCHS, LOCK, FolderLock, claim_epoch, lock_folder
from hsokv_ray.memory.stores.lsm.log import LogWriter, Tail, disk_error, flush_logs, list_logs, read_log, read_writes
from hsokv_ray.memory.stores.lsm.requests import Requests
from hsokv_ray.memory.stores.lsm.segment import Segment
from hsokv_ray.memory.stores.lsm.table import Table

LOG, SEGMENTS, SNAPSHOT = "log", "segments", "snapshot.json"
_OURS = {LOCK, EPOCHS, FOLDER, LOG, SEGMENTS}
_ATTEMPTS = 3
"""A writer that is being replaced may still move from one catalog to the next while this one reads."""


@dataclass(slots=True)
class Opened:
    """An open store."""

    folder: Path
    lock: FolderLock
    epoch: int
    table: Table
    log: LogWriter
    catalogs: list[Catalog]
    """The two that stay, newest first; one at first."""
    notes: list[str] = field(default_factory=list)
    """What recovery had to pass over, one line each."""


def open_folder(config: FaissConfig, *, takeover: bool = False) -> Opened:
    """Open or make the store of `config`.

    Raises:
        ConfigError: it was made with another metric or dimension.
        StoreError: it is damaged, not ours, or open elsewhere.
    """
    folder = Path(config.path)
    check_folder(folder)
    try:
        if not folder.exists():
            folder.mkdir(parents=True, exist_ok=True)
            flush_folder(folder.parent)
        lock = lock_folder(folder, takeover=takeover)
    except OSError as error:
        raise disk_error(f"folder {folder}", error) from error
    try:
        return _open_locked(config, folder, lock)
    except BaseException:
        lock.release()
        raise


def check_folder(folder: Path) -> None:
    """Raise `StoreError` where `folder` holds something that is not a store of ours."""
    try:
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise StoreError(f"{folder} is not a folder that can be read ({error}); use another path") from None
    if SNAPSHOT in names:
        raise StoreError(f"{folder} is a snapshot, which is not written to; restore it to another folder first")
    if list_catalogs(folder):
        return
    if foreign := sorted(names - _OURS):
        raise StoreError(
            f"{folder} holds {foreign[0]!r} and no catalog: it was not written by this library; use an empty folder"
        )
    if _has_data(folder):
        raise StoreError(f"{folder} holds data but no catalog: it was never finished or is damaged; restore a snapshot")


def freeze_when_full(table: Table, seal_rows: int) -> bool:
    """Freeze the growing part at `seal_rows`; return whether it was."""
    if table.growing is None or table.growing.num_rows < seal_rows:
        return False
    table.freeze()
    return True


def next_catalog(table: Table, epoch: int, number: int) -> Catalog:
    """Return the catalog of what is in `table` now."""
    entries = []
    for state in table.segments:
        assert state.segment is not None
        entries.append(SegmentEntry(state.segment.name, state.num_rows, state.alive()))
    return Catalog(
        epoch=epoch,
        number=number,
        seq=table.seq,
        replay_after=table.caught_up(),
        dim=table.dim,
        metric=table.metric,
        segments=tuple(entries),
        requests=tuple(table.requests.items()),
    )


def _open_locked(config: FaissConfig, folder: Path, lock: FolderLock) -> Opened:
    epoch = claim_epoch(folder)
    try:
        for name in (LOG, FOLDER, SEGMENTS):
            (folder / name).mkdir(exist_ok=True)
        flush_folder(folder)
    except OSError as error:
        raise disk_error(f"folder {folder}", error) from error
    table, used, notes = _recover(config, folder, epoch)
    flush_logs(folder / LOG)
    log = LogWriter(folder / LOG, epoch=epoch, seq=table.seq)
    try:
        catalog = next_catalog(table, epoch, 0)
        write_catalog(folder, catalog)
    except BaseException:
        log.abandon()
        raise
    return Opened(folder, lock, epoch, table, log, [catalog] if used is None else [catalog, used], notes)


def _recover(config: FaissConfig, folder: Path, epoch: int) -> tuple[Table, Catalog | None, list[str]]:
    """Return the table, the catalog that it began with, and notes."""
    for _ in range(_ATTEMPTS):
        names = list_catalogs(folder)
        try:
            return _read(config, folder, epoch)
        except StoreError:
            if list_catalogs(folder) == names:
                raise
    return _read(config, folder, epoch)


def _read(config: FaissConfig, folder: Path, epoch: int) -> tuple[Table, Catalog | None, list[str]]:
    loaded = load_catalogs(folder)
    notes = list(loaded.notes)
    if loaded.newest is None:
        table = _new_table(config)
        _replay(config, folder, table, 0, notes)
        return table, None, notes
    check_catalog(loaded.newest, config)
    if loaded.newest.epoch >= epoch:
        raise StoreError(
            f"{folder}: a catalog of epoch {loaded.newest.epoch} is there, but only {epoch - 1} epochs were claimed: "
            "files were removed; restore a snapshot"
        )
    errors: list[StoreError] = []
    for catalog in (loaded.newest, loaded.before):
        if catalog is not None:
            try:
                return _read_catalog(config, folder, catalog, notes), catalog, notes
            except StoreError as error:
                errors.append(error)
                notes.append(f"catalog {catalog.name} was not used: {error}")
    raise errors[0]


def _read_catalog(config: FaissConfig, folder: Path, catalog: Catalog, notes: list[str]) -> Table:
    table = _new_table(config)
    table.dim = catalog.dim
    for entry in catalog.segments:
        segment = _open_segment(folder / SEGMENTS / entry.name)
        if (segment.num_rows, segment.dim) != (entry.num_rows, catalog.dim):
            raise StoreError(
                f"{segment.folder}: {segment.num_rows} rows of {segment.dim} dimensions, where the catalog has "
                f"{entry.num_rows} of {catalog.dim}; restore a snapshot"
            )
        table.add_segment(segment, entry.alive)
    table.requests = Requests(catalog.requests)
    table.seq = table.sealed_seq = catalog.replay_after
    _replay(config, folder, table, catalog.seq, notes)
    return table


def _open_segment(folder: Path) -> Segment:
    try:
        return Segment.open(folder, verify=True)
    except OSError as error:
        raise StoreError(f"segment {folder} cannot be read ({error}); restore a snapshot") from None


def _replay(config: FaissConfig, folder: Path, table: Table, catalog_seq: int, notes: list[str]) -> None:
    """Apply the writes after `table.seq`. Those up to `catalog_seq` have their requests remembered already."""
    tail = Tail(table.seq)
    for write in read_writes(folder / LOG, after=table.seq, tail=tail):
        if write.rows is not None and len(write.rows) and table.dim is None:
            check_dim(write.rows.vectors.shape[1], config)
        new_request = None if write.seq <= catalog_seq else write.request_id
        table.apply(write.ids, write.rows, new_request, write.epoch)
        freeze_when_full(table, config.seal_rows)
    notes += tail.notes
    if tail.seq < catalog_seq:
        raise StoreError(
            f"{folder / LOG} ends at write {tail.seq}, but write {catalog_seq} was acknowledged: the newest log file "
            "is missing or cut; restore a snapshot"
        )


def _new_table(config: FaissConfig) -> Table:
    return Table(config.metric, dim=config.dim, num_threads=config.num_threads)


def _has_data(folder: Path) -> bool:
    if (folder / SEGMENTS).is_dir() and any((folder / SEGMENTS).iterdir()):
        return True
    if not (folder / LOG).is_dir():
        return False
    return any(len(read_log(folder / LOG / str(name)).entries) > 1 for name in list_logs(folder / LOG))
