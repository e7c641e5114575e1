"""FaissStore: vectors in a folder, exact while new and indexed once sealed, nothing lost that was acknowledged.

    with FaissStore(FaissConfig(path="memory/notes")) as store:
        store.upsert(["a"], [[1.0, 2.0]])
        store.query([1.0, 2.0])

The order of a write: encode, append to the log, wait for the disk, check that nobody took the store over, change the
table, publish a view, acknowledge. A query runs on the view there is and waits for nobody. Three threads: the caller's,
one that carries writes out (commit.py), one that seals and merges (maintenance.py).
"""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hsokv_ray.errors import DataError, StoreError
from hsokv_ray.memory.stores.base import VectorStore
from hsokv_ray.memory.stores.config import FaissConfig
from hsokv_ray.memory.stores.facets import Predicate
from hsokv_ray.memory.stores.lsm.commit import Committer, Operation
from hsokv_ray.memory.stores.lsm.fence import check_epoch
from hsokv_ray.memory.stores.lsm.maintenance import Maintenance, disk_bytes
from hsokv_ray.memory.stores.lsm.records import encode_delete, encode_upsert
from hsokv_ray.memory.stores.lsm.recovery import Opened, freeze_when_full, open_folder
from hsokv_ray.memory.stores.lsm.requests import Outcome
from hsokv_ray.memory.stores.lsm.snapshot import restore_snapshot, write_snapshot
from hsokv_ray.memory.stores.lsm.threads import calibrate_exact_search
from hsokv_ray.memory.stores.lsm.view import Version, View
from hsokv_ray.memory.stores.types import Hit, Page, Record, Rows, StoreStats

SYNC_EVERY_S = 0.5
"""How often a store with durability async puts its log on disk, at least."""
_MAX_REQUEST_ID = 1024


class FaissStore(VectorStore):
    """A vector store in a folder. One process at a time writes; the class's methods may be called from any thread."""

    driver = "faiss"

    def __init__(self, config: FaissConfig, *, takeover: bool = False, grace_s: float = 60.0) -> None:
        """Open the store of `config`; it is made if missing.

        Args:
            takeover: open it though another process may hold it; that one can write no more.
            grace_s: how long files that nothing needs any more stay for other processes that are about to open them.

        Raises:
            ConfigError: it was made with another metric or dimension.
            StoreError: it is damaged, not ours, or open elsewhere.
        """
        super().__init__(config.metric)
        self.config = config
        opened = open_folder(config, takeover=takeover)
        self._opened: Opened = opened
        self._log, self._table = opened.log, opened.table
        self._failure: StoreError | None = None
        self._changed = threading.Condition()
        """Guards the table; notified when there is a new view."""
        self._view = self._table.view(opened.epoch)
        if self._table.dim is not None:
            calibrate_exact_search(self._table.dim)
        self._committer = Committer(self._carry_out, tick=self._tick, tick_s=SYNC_EVERY_S)
        self._maintenance = Maintenance(opened, config, self._changed, self._publish, grace_s=grace_s)

    @property
    def dim(self) -> int | None:
        return self._table.dim

    @property
    def version(self) -> Version:
        """The last write that queries see."""
        return self._view.version

    def view(self) -> View:
        """Return what is there now; it does not change any more. Waits for nobody."""
        self._check_open()
        return self._view

    def wait_newer(self, version: Version, timeout_s: float) -> View:
        """Return a view newer than `version` as soon as there is one; after `timeout_s` whatever there is."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._view.version <= version and not self._closed:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
        return self.view()

    def write_rows(self, rows: Rows, *, request_id: str | None = None) -> Version:
        """Write a checked batch; durable when it returns, and in every view of the returned version or later.

        Args:
            request_id: names the write; one that was carried out before is answered and not repeated.

        Raises:
            DataError: another dimension than the store's.
            StoreError: no room, or another process took the store over; nothing of it counts.
        """
        return _version(self._write(rows.ids, rows, request_id))

    def delete_ids(self, ids: Sequence[str], *, request_id: str | None = None) -> tuple[Version, int]:
        """Delete some ids; return the version and how many there were. Otherwise as `write_rows`."""
        outcome = self._write(list(dict.fromkeys(ids)), None, request_id)
        return _version(outcome), outcome.count

    def delete_where(self, predicate: Predicate, *, request_id: str | None = None) -> tuple[Version, int]:
        """Delete what passes `predicate` when its turn comes; return the version and how many there were."""
        _check_request_id(request_id)
        outcome = self._submit(Operation([], predicate=predicate, request_id=request_id))
        return _version(outcome), outcome.count

    def snapshot(self, uri: str) -> str:
        """Write everything that is there now to an empty place; return `uri`. Writes and queries go on.

        Args:
            uri: a folder, or any URI that pyarrow.fs knows, such as s3://bucket/notes-monday.

        Raises `DataError`: the place is not empty; `StoreError`: it cannot be written.
        """
        self._check_open()
        return write_snapshot(self._maintenance, uri)

    restore_snapshot = staticmethod(restore_snapshot)

    def check_integrity(self) -> None:
        """Assert that ids, masks, parts and the view say the same. Looks at every row."""
        with self._changed:
            self._table.check_integrity()
            assert self._view.version.seq == self._table.seq == self._log.seq
            assert self._view.count(None) == len(self._table.ids)

    def _upsert(self, rows: Rows) -> None:
        self.write_rows(rows)

    def _search(self, queries: np.ndarray, top_k: int, predicate: Predicate | None) -> list[list[Hit]]:
        return self._view.search(queries, top_k, predicate).hits()

    def _get(self, ids: list[str]) -> list[Record | None]:
        return self._view.get(ids)

    def _delete(self, ids: list[str]) -> int:
        return self.delete_ids(ids)[1]

    def _delete_where(self, predicate: Predicate) -> int:
        return self.delete_where(predicate)[1]

    def _count(self, predicate: Predicate | None) -> int:
        return self._view.count(predicate)

    def _scroll(self, predicate: Predicate | None, page_size: int, cursor: str | None) -> Page:
        return self._view.scroll(predicate, page_size, cursor)

    def _stats(self) -> StoreStats:
        with self._changed:
            details = self._maintenance.describe()
            count = len(self._table.ids)
        details["failure"] = None if self._failure is None else str(self._failure)
        return StoreStats(
            driver=self.driver,
            count=count,
            dim=self.dim,
            metric=self.metric,
            index=", ".join(sorted({each["kind"] for each in details["segments"]})) or "flat",
            disk_bytes=disk_bytes(Path(self.config.path)),
            details=details,
        )

    def _optimize(self) -> None:
        self._maintenance.optimize()

    def _close(self) -> None:
        with self._changed:
            self._changed.notify_all()
        try:
            self._committer.close()
            self._maintenance.close()
            if self._failure is None:
                self._log.close()
        finally:
            self._log.abandon()
            self._opened.lock.release()

    def _write(self, ids: list[str], rows: Rows | None, request_id: str | None) -> Outcome:
        _check_request_id(request_id)
        encoded = encode_delete(ids, request_id) if rows is None else encode_upsert(rows, request_id)
        return self._submit(Operation(ids, rows, request_id=request_id, encoded=encoded))

    def _submit(self, operation: Operation) -> Outcome:
        self._check_open()
        self._maintenance.admit()
        return self._committer.submit(operation)

    # From here on: only the committer's thread.

    def _carry_out(self, group: list[Operation]) -> None:
        """Carry out writes in their order. A delete by filter sees those before it, so these are applied first."""
        run: list[Operation] = []
        for operation in group:
            if operation.predicate is not None:
                self._commit(run)
                operation.ids = self._view.ids_where(operation.predicate)
                operation.encoded = encode_delete(operation.ids, operation.request_id)
                run = []
            run.append(operation)
        self._commit(run)

    def _commit(self, run: list[Operation]) -> None:
        fresh = self._accept(run)
        if fresh and not self._try_commit(fresh) and len(fresh) > 1 and self._failure is None:
            for operation in fresh:  # no room for all of them may be room for some
                operation.error = None
                self._try_commit([operation])
        self._answer_repeats(run)

    def _accept(self, run: list[Operation]) -> list[Operation]:
        """Return the operations that are to be carried out; the others have an outcome or an error, or wait."""
        fresh, named, dim = [], set(), self._table.dim
        for operation in run:
            operation.outcome = self._table.requests.get(operation.request_id)
            if operation.outcome is not None or operation.request_id in named:
                continue
            if operation.rows is not None and len(operation.rows):
                given = operation.rows.vectors.shape[1]
                if given != (dim := dim or given):
                    operation.error = DataError(f"vectors: got {given} dimensions; this store has {dim}")
                    continue
            if operation.request_id is not None:
                named.add(operation.request_id)
            fresh.append(operation)
        return fresh

    def _answer_repeats(self, run: list[Operation]) -> None:
        """Answer what came twice within one run."""
        for operation in run:
            if operation.outcome is None and operation.error is None:
                operation.outcome = self._table.requests.get(operation.request_id)
                if operation.outcome is None:
                    operation.error = StoreError(f"request {operation.request_id!r} failed beside this one; try again")

    def _try_commit(self, run: list[Operation]) -> bool:
        """Carry out all of `run` or none; return whether it was."""
        try:
            if self._failure is not None:
                raise StoreError(str(self._failure))
            self._log_writes(run)
            self._apply(run)
        except StoreError as error:
            for operation in run:
                operation.error = error
            return False
        return True

    def _log_writes(self, run: list[Operation]) -> None:
        entries = [operation.encoded for operation in run if operation.encoded is not None]
        assert len(entries) == len(run)
        self._log.write(entries, sync=self.config.durability == "fsync")
        try:
            check_epoch(self._opened.folder, self._opened.epoch)
        except StoreError as error:
            self._failure = error
            raise

    def _apply(self, run: list[Operation]) -> None:
        self._failure = StoreError(f"{self.config.path}: a write stopped halfway; open the store again")
        froze = False
        with self._changed:
            for operation in run:
                if self._table.dim is None and operation.rows is not None and len(operation.rows):
                    calibrate_exact_search(operation.rows.vectors.shape[1])
                operation.outcome = self._table.apply(
                    operation.ids, operation.rows, operation.request_id, self._opened.epoch
                )
                froze |= freeze_when_full(self._table, self.config.seal_rows)
            self._publish()
        self._failure = None
        if froze:
            self._maintenance.wake()

    def _tick(self) -> None:
        if self.config.durability == "async" and self._failure is None:
            try:
                self._log.sync()
            except StoreError as error:
                self._failure = error

    def _publish(self) -> None:
        """Show the table as it is. The caller holds the lock."""
        self._view = self._table.view(self._opened.epoch)
        self._changed.notify_all()


def _version(outcome: Outcome) -> Version:
    return Version(outcome.epoch, outcome.seq)


def _check_request_id(request_id: str | None) -> None:
    if request_id is not None and not 0 < len(request_id) <= _MAX_REQUEST_ID:
        raise DataError(f"request id: got {len(request_id)} characters; 1 to {_MAX_REQUEST_ID} are allowed")
