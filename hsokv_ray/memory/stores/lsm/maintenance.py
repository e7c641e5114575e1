"""Maintenance: full parts become segments, segments become fewer, files that nothing needs go. Queries never wait.

    maintenance = Maintenance(opened, config, lock, publish, grace_s=60)
    maintenance.wake()              # a part is full
    maintenance.admit()             # before a write: waits while too much is unsealed, raises what went wrong
    maintenance.optimize()          # all of it, now

Two threads: one seals, so that writers never wait for the other, which merges. Segments of about the same size are
merged `FAN_IN` at a time, so n rows lie in about FAN_IN * log(n) segments and each row is rewritten log(n) times.
Whatever is rewritten loses its dead rows. While parts fill up all the time merging waits, within limits. Deletes and
overwrites that come meanwhile are applied to the new segment before it takes the place of the old ones. A full disk is
tried again later and stops nobody but the writer who would need the room.
"""

import itertools
import math
import os
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsokv_ray.errors import StoreError
from hsokv_ray.manifest import flush_folder
from hsokv_ray.memory.stores.config import FaissConfig
from hsokv_ray.memory.stores.lsm.background import TICK_S, Background
from hsokv_ray.memory.stores.lsm.catalog import delete_catalogs_before, write_catalog
from hsokv_ray.memory.stores.lsm.fence import check_epoch
from hsokv_ray.memory.stores.lsm.indexes import AUTO_ROWS, Kind, choose_kind
from hsokv_ray.memory.stores.lsm.log import delete_before, disk_error, list_logs
from hsokv_ray.memory.stores.lsm.recovery import LOG, SEGMENTS, Opened, next_catalog
from hsokv_ray.memory.stores.lsm.rewrite import merge
from hsokv_ray.memory.stores.lsm.segment import Segment, write_segment
from hsokv_ray.memory.stores.lsm.table import PartState, Source
from hsokv_ray.memory.stores.lsm.threads import num_cpus, use_threads
from hsokv_ray.memory.stores.types import Rows

FAN_IN = 4
"""Segments of one size class that are merged into one."""
SEAL_ROWS = 65_536
"""Frozen rows sealed at once, at most."""
MAX_DEAD = 0.3
"""Share of dead rows from which a segment is rewritten."""
MAX_SEGMENT_BYTES = 4 * 2**30
"""Vectors of one segment; merging holds them in RAM."""
MAX_FROZEN_BYTES = 2**30
"""Vectors that wait to be sealed; writers wait beyond."""
MAX_LOG_FILES = 4
"""From which on the growing part is sealed before it is full."""
MERGE_WAIT_S = 10.0
"""How long closing waits for a merge."""
QUIET_S = 1.0
"""Merging waits until no part became full for so long: building an index takes far longer than writing its rows."""
MANY_SEGMENTS = 32
"""From which on it waits no more."""
_REPOINT_ROWS = 8192
_NAME = re.compile(r"\d{6,}-\d{6,}")


@dataclass(frozen=True, slots=True)
class _Work:
    """Parts that are to become one segment."""

    keys: list[int]
    kind: Kind | None
    """None: by size, as configured."""


class Maintenance:
    """The threads that seal, merge and clean up."""

    def __init__(
        self,
        opened: Opened,
        config: FaissConfig,
        changed: threading.Condition,
        publish: Callable[[], None],
        *,
        grace_s: float,
    ) -> None:
        """`changed` guards `opened.table`; `publish` shows it to queries and is called with it held."""
        self.opened, self.config, self.changed, self._publish = opened, config, changed, publish
        self._segments_folder = opened.folder / SEGMENTS
        self._grace_s = grace_s
        self._numbers = itertools.count()
        self._pins: Counter[str] = Counter()
        self._unneeded: dict[str, float] = {}
        self._last_full_s = -math.inf
        self._failure: StoreError | None = None
        self._is_open = True
        self._sealing, self._merging = threading.RLock(), threading.RLock()
        """Held by whoever seals, and by whoever merges; merging first by who does both."""
        self._swapping = threading.RLock()
        """Held while a segment takes the place of others and while a catalog is written."""
        self._sealer = Background("hsokv-seal", self._seal_all, failed=self._fail)
        self._merger = Background("hsokv-merge", self._merge_all, failed=self._fail)
        self._sealer.start()
        self._merger.start()
        if opened.table.frozen:
            self.wake()

    def wake(self) -> None:
        """A part is full."""
        self._last_full_s = time.monotonic()
        self._sealer.wake()

    def admit(self) -> None:
        """Let a write go ahead; waits while too much is unsealed. Raises `StoreError`: what failed meanwhile."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        table = self.opened.table
        with self.changed:
            while self._is_open and _num_bytes(table.frozen) > MAX_FROZEN_BYTES:
                if self._sealer.trouble is not None:
                    raise StoreError(f"no room for more rows that are not sealed: {self._sealer.trouble}")
                self.changed.wait(TICK_S)

    def optimize(self) -> None:
        """Seal everything, merge it into one segment (of `MAX_SEGMENT_BYTES` at most), free what is not needed."""
        with self._merging:
            try:
                self._seal_everything()
                for work in self._whole_merges():
                    self._rewrite(work)
                for _ in range(2):  # the catalog before the newest one needs no old segment either then
                    self._checkpoint()
                self._delete_unneeded(0)
            except OSError as error:
                raise disk_error(f"a segment of {self.opened.folder}", error) from error

    def close(self) -> None:
        """End the threads; a merge that takes long is left to end by itself, without effect."""
        with self.changed:
            self._is_open = False
        self._merger.stop()
        self._sealer.close()
        self._merger.close(MERGE_WAIT_S)

    def describe(self) -> dict[str, Any]:
        """Return numbers about the store, as JSON. The caller holds the lock."""
        table = self.opened.table
        return {
            "epoch": self.opened.epoch,
            "seq": table.seq,
            "sealed_seq": table.sealed_seq,
            "segments": [_describe(state) for state in table.segments],
            "frozen_rows": sum(state.num_rows for state in table.frozen),
            "growing_rows": 0 if table.growing is None else table.growing.num_rows,
            "log_bytes": disk_bytes(self.opened.folder / LOG),
            "requests": len(table.requests),
            "background_error": self._sealer.trouble or self._merger.trouble,
            "recovery": list(self.opened.notes),
        }

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Within it no segment that is in use at its beginning is deleted."""
        with self.changed:
            names = list(self._names_in_use())
            self._pins.update(names)
        try:
            yield
        finally:
            with self.changed:
                self._pins.subtract(names)

    def write_rows(self, rows: Rows, kind: Kind) -> Path:
        """Write a segment of its own name, pinned; return its folder. Raises `OSError`; nothing is left then."""
        folder = self._segments_folder / f"{self.opened.epoch:06d}-{next(self._numbers):06d}"
        with self.changed:
            self._pins[folder.name] += 1
        try:
            write_segment(folder, rows, kind=kind, metric=self.config.metric)
            flush_folder(self._segments_folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            self.unpin(folder.name)
            raise
        return folder

    def unpin(self, name: str) -> None:
        """Take back the pin of a segment that `write_rows` wrote."""
        with self.changed:
            self._pins.subtract([name])

    def _fail(self, error: StoreError) -> None:
        """Keep what went wrong for the next write."""
        self._failure = error
        with self.changed:
            self.changed.notify_all()

    def _seal_all(self) -> None:
        """Seal what is full; the sealing thread's work."""
        while self._sealer.is_open:
            with self._sealing:
                if (work := self._next_seal()) is None:
                    return
                self._rewrite(work)
                self._checkpoint()
            self._merger.wake()

    def _seal_everything(self) -> None:
        with self._sealing:
            with self.changed:
                self.opened.table.freeze()
            while (work := self._next_seal()) is not None:
                self._rewrite(work)

    def _merge_all(self) -> None:
        """Merge and clean up; the merging thread's work. It leaves half of the CPUs to queries and writes."""
        use_threads(max(1, num_cpus() // 2))
        while self._merger.is_open and not self._is_busy():
            with self._merging:
                if (work := self._next_merge()) is None:
                    break
                self._rewrite(work)
                self._checkpoint()
        if self._merger.is_open:
            with self._merging:
                self.opened.lock.take()
                self._shorten_log()
                self._delete_unneeded(self._grace_s)

    def _is_busy(self) -> bool:
        """Return whether merging should wait, so that writers get the CPUs."""
        is_quiet = time.monotonic() - self._last_full_s >= QUIET_S
        return not is_quiet and len(self.opened.table.segments) < MANY_SEGMENTS

    def _next_seal(self) -> _Work | None:
        """Return the oldest frozen parts."""
        with self.changed:
            keys, num_rows = [], 0
            for state in self.opened.table.frozen:
                if keys and num_rows + state.num_rows > SEAL_ROWS:
                    break
                keys.append(state.key)
                num_rows += state.num_rows
        if not keys:
            return None
        return _Work(keys, "flat")  # quick, as writers may wait for it; indexes are for the merging thread to build

    def _next_merge(self) -> _Work | None:
        with self.changed:
            segments = [state for state in self.opened.table.segments if _num_bytes([state]) <= MAX_SEGMENT_BYTES]
            tiers: dict[int, list[PartState]] = {}
            for state in segments:
                if state.num_dead > MAX_DEAD * state.num_rows:
                    return _Work([state.key], None)
                tiers.setdefault(_tier(state.num_alive, self.config.seal_rows), []).append(state)
            for _, states in sorted(tiers.items()):
                if len(states) >= FAN_IN and _num_bytes(states[:FAN_IN]) <= MAX_SEGMENT_BYTES:
                    return _Work([state.key for state in states[:FAN_IN]], None)
            slow = [state for state in segments if state.num_alive >= AUTO_ROWS and self._has_other_kind(state)]
            return _Work([slow[0].key], None) if slow else None

    def _whole_merges(self) -> list[_Work]:
        """Return what makes as few segments as possible of all."""
        groups: list[list[PartState]] = [[]]
        with self.changed:
            for state in self.opened.table.segments:
                if groups[-1] and _num_bytes([*groups[-1], state]) > MAX_SEGMENT_BYTES:
                    groups.append([])
                groups[-1].append(state)
            return [
                _Work([state.key for state in group], None)
                for group in groups
                if len(group) > 1 or any(state.num_dead or self._has_other_kind(state) for state in group)
            ]

    def _has_other_kind(self, state: PartState) -> bool:
        segment = state.segment
        assert segment is not None
        return segment.kind != choose_kind(self.config.index, state.num_alive, segment.dim)

    def _rewrite(self, work: _Work) -> None:
        """Make one segment of some parts and put it in their place."""
        table = self.opened.table
        with self.changed:
            sources = table.begin_rewrite(work.keys)
            dim = table.dim
        assert dim is not None
        ids, folder, moved = self._write_merged(sources, dim, work.kind)
        try:
            segment = None if folder is None else Segment.open(folder, verify=False)
            with self._swapping:
                if self._is_open:
                    self._swap(sources, segment, moved, ids)
        finally:
            if folder is not None:
                self.unpin(folder.name)

    def _swap(self, sources: list[Source], segment: Segment | None, moved: list[Any], ids: list[str]) -> None:
        """Put `segment` in the place of `sources`, a little at a time, so that writes go on."""
        table = self.opened.table
        with self.changed:
            table.finish_rewrite(sources, segment, moved)
            self._publish()
        for start in range(0, len(ids), _REPOINT_ROWS):
            with self.changed:
                table.repoint(ids[start : start + _REPOINT_ROWS])
        with self.changed:
            table.forget_moves()

    def _write_merged(
        self, sources: Sequence[Source], dim: int, kind: Kind | None
    ) -> tuple[list[str], Path | None, list[Any]]:
        """Return the ids of the new segment, its folder (None: no row counts), and where the rows went."""
        merged = merge(sources, dim)
        num_rows = len(merged.rows)
        if not num_rows:
            return [], None, merged.moved
        folder = self.write_rows(merged.rows, kind or choose_kind(self.config.index, num_rows, dim))
        return merged.rows.ids, folder, merged.moved

    def _checkpoint(self) -> None:
        """Write a catalog of what is there and delete what it and the one before it do not need."""
        opened = self.opened
        with self._swapping:
            if not self._is_open:
                return
            check_epoch(opened.folder, opened.epoch)
            with self.changed:
                catalog = next_catalog(opened.table, opened.epoch, opened.catalogs[0].number + 1)
            if self.config.durability == "async":
                opened.log.sync()  # the masks must not know of writes that the log could lose
            write_catalog(opened.folder, catalog)
            with self.changed:
                opened.catalogs[:] = [catalog, opened.catalogs[0]]
            delete_catalogs_before(opened.folder, opened.catalogs[-1])
            delete_before(opened.folder / LOG, min(each.replay_after for each in opened.catalogs))

    def _shorten_log(self) -> None:
        """Let a long log of few rows (deletes, overwrites) not grow for ever."""
        table, log = self.opened.table, self.opened.folder / LOG
        with self.changed:
            if table.frozen or table.seq == self.opened.catalogs[0].seq or len(list_logs(log)) <= MAX_LOG_FILES:
                return
            table.freeze()
            has_rows = bool(table.frozen)
        if has_rows:
            self.wake()
        else:
            self._checkpoint()

    def _delete_unneeded(self, grace_s: float) -> None:
        """Delete segments that have not been needed for `grace_s`, also those of writers that died."""
        now = time.monotonic()
        found = {path.name for path in self._segments_folder.iterdir() if _NAME.fullmatch(path.name)}
        with self.changed:  # after the listing: what is written from here on is not in it
            needed = set(self._names_in_use())
        self._unneeded = {name: self._unneeded.get(name, now) for name in found - needed}
        late = [name for name, since in self._unneeded.items() if now - since >= grace_s]
        if late:
            check_epoch(self.opened.folder, self.opened.epoch)
        for name in late:
            shutil.rmtree(self._segments_folder / name)

    def _names_in_use(self) -> Iterator[str]:
        for catalog in self.opened.catalogs:
            yield from (entry.name for entry in catalog.segments)
        yield from (state.segment.name for state in self.opened.table.segments if state.segment is not None)
        yield from (name for name, count in self._pins.items() if count > 0)


def disk_bytes(folder: Path) -> int:
    """Return the size of every file below `folder`."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue  # deleted since it was listed
    return total


def _tier(num_rows: int, seal_rows: int) -> int:
    """Return the size class: 0 up to FAN_IN full growing parts, 1 up to FAN_IN times that, and so on."""
    return max(0, int(math.log(max(num_rows, 1) / seal_rows, FAN_IN) + 1e-9))


def _num_bytes(states: Sequence[PartState]) -> int:
    return sum(state.num_rows * state.dim * 4 for state in states)


def _describe(state: PartState) -> dict[str, Any]:
    segment = state.segment
    assert segment is not None
    return {
        "name": segment.name,
        "kind": segment.kind,
        "rows": state.num_rows,
        "alive": state.num_alive,
        "bytes": segment.num_bytes,
    }
