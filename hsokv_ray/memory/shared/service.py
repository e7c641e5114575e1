"""One shard of a shared memory as a plain class: collections on disk, tenants, bounded queues. Its actor is a shell."""

import shutil
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hsokv_ray.errors import StoreError
from hsokv_ray.memory.shared.budget import ByteBudget
from hsokv_ray.memory.shared.config import MemoryConfig, read_folder
from hsokv_ray.memory.shared.messages import NOTHING, PackedHits, ReaderState, Reply, Update
from hsokv_ray.memory.shared.tenants import Tenants
from hsokv_ray.memory.shared.updates import is_current, update_for
from hsokv_ray.memory.stores.facets import Predicate
from hsokv_ray.memory.stores.lsm.segment import Segment
from hsokv_ray.memory.stores.lsm.store import FaissStore
from hsokv_ray.memory.stores.lsm.view import Version, View
from hsokv_ray.memory.stores.types import Page, Record, Rows

_PROBLEMS = ("failure", "background_error")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose collection a call is about."""

    collection: str
    key: str | None = field(default=None, repr=False)


class ShardService:
    """The collections of shard `shard` of the memory in `root`.

    Every method may be called from several threads. Reads run on an immutable view and never wait for writers.
    """

    def __init__(self, root: str, shard: int) -> None:
        self.config: MemoryConfig = read_folder(root)
        self.shard = shard
        self.tenants = Tenants(root, require_key=self.config.require_key)
        self._stores: dict[Path, FaissStore] = {}
        self._opening = threading.Lock()
        self._queue = ByteBudget(self.config.queue_bytes, "the shard")

    def upsert(self, caller: Caller, rows: Rows, request_id: str) -> Version:
        """Write `rows` durably; a request id seen before writes nothing and gets the first answer."""
        store = self._store(caller, create=True)
        assert store is not None
        with self._queue.room(rows.vectors.nbytes + sum(map(len, rows.metadata))):
            return store.write_rows(rows, request_id=request_id)

    def delete(self, caller: Caller, ids: list[str], request_id: str) -> tuple[Version, int]:
        """Delete `ids`; return the version and how many there were."""
        store = self._store(caller)
        if store is None:
            return NOTHING, 0
        with self._queue.room(sum(map(len, ids))):
            return store.delete_ids(ids, request_id=request_id)

    def delete_where(self, caller: Caller, predicate: Predicate, request_id: str) -> tuple[Version, int]:
        """Delete what satisfies `predicate`; return the version and how many there were."""
        store = self._store(caller)
        return store.delete_where(predicate, request_id=request_id) if store else (NOTHING, 0)

    def search(self, caller: Caller, queries: np.ndarray, top_k: int, predicate: Predicate | None) -> Reply:
        """Return the nearest rows of float32 `queries` [n, d] in this shard."""
        view = self.view(caller)
        if view is None or view.dim is None:
            return Reply(PackedHits.of([[] for _ in queries]), view.version if view else NOTHING)
        with self._queue.room(queries.nbytes):
            return Reply(PackedHits.of_matches(view.search(queries, top_k, predicate)), view.version)

    def get(self, caller: Caller, ids: list[str]) -> tuple[list[Record | None], Version]:
        """Return the records of `ids`, None where there is none."""
        view = self.view(caller)
        with self._queue.room(sum(map(len, ids))):
            return (view.get(ids), view.version) if view else ([None] * len(ids), NOTHING)

    def count(self, caller: Caller, predicate: Predicate | None) -> tuple[int, Version]:
        """Return how many rows of this shard satisfy `predicate`."""
        view = self.view(caller)
        return (view.count(predicate), view.version) if view else (0, NOTHING)

    def scroll(self, caller: Caller, predicate: Predicate | None, page_size: int, cursor: str | None) -> Page:
        """Return a page of this shard's rows."""
        view = self.view(caller)
        return view.scroll(predicate, page_size, cursor) if view else Page([], None)

    def view(self, caller: Caller) -> View | None:
        """Return the current view; None where the collection does not exist."""
        store = self._store(caller)
        return store.view() if store else None

    def version(self, caller: Caller) -> Version:
        """Return the version that a read now would come from."""
        store = self._store(caller)
        return store.version if store else NOTHING

    def update(self, caller: Caller, state: ReaderState, timeout_s: float) -> Update | None:
        """Wait for something newer than `state`, at most `timeout_s`; None where there was nothing."""
        store = self._store(caller)
        if store is None:
            return None
        view = store.wait_newer(state.version, timeout_s) if state.version else store.view()
        return None if is_current(state, view) else update_for(view, state)

    def exists(self, caller: Caller) -> tuple[bool, int | None]:
        """Return whether the collection has a part in this shard, and its dimension where it has one."""
        view = self.view(caller)
        return view is not None, view.dim if view else None

    def segment_files(self, caller: Caller, name: str) -> dict[str, np.ndarray]:
        """Return the bytes of a sealed segment's files, for readers on nodes that do not see them."""
        view = self.view(caller)
        for part, _ in view.parts if view else ():
            if isinstance(part, Segment) and part.name == name:
                return {path.name: np.fromfile(path, np.uint8) for path in sorted(part.folder.iterdir())}
        raise StoreError(f"segment {name} is no longer part of this shard; ask for an update first")

    def collections(self, key: str | None) -> list[str]:
        """Return the names of the caller's collections."""
        return self.tenants.collections(self.tenants.resolve(key))

    def drop(self, caller: Caller) -> bool:
        """Delete the collection's part in this shard with everything in it; return whether it was there."""
        folder = self._folder(caller)
        with self._opening:
            if store := self._stores.pop(folder, None):
                store.close()
            if not folder.is_dir():
                return False
            shutil.rmtree(folder)
            with suppress(OSError):  # another shard's part is still there, or that shard was faster
                folder.parent.rmdir()
            return True

    def optimize(self, caller: Caller) -> None:
        """Seal and merge everything now."""
        if store := self._store(caller):
            store.optimize()

    def snapshot(self, caller: Caller, uri: str) -> str | None:
        """Write a snapshot of the collection's part to `uri`; None where there is none."""
        store = self._store(caller)
        return store.snapshot(f"{uri.rstrip('/')}/shard-{self.shard:04d}") if store else None

    def status(self) -> dict[str, Any]:
        """Return what this shard holds, summed over the collections that are open, and its queue."""
        with self._opening:  # none is closed meanwhile
            stats = [store.stats() for store in self._stores.values()]
        return {
            "open_collections": len(stats),
            "vectors": sum(each.count for each in stats),
            "disk_bytes": sum(each.disk_bytes or 0 for each in stats),
            "log_bytes": sum(each.details.get("log_bytes", 0) for each in stats),
            "queue_bytes": self._queue.num_bytes,
            "refused": self._queue.refused,
            "problems": [str(each.details[key]) for each in stats for key in _PROBLEMS if each.details[key]],
        }

    def close(self) -> None:
        """Flush and close every collection."""
        with self._opening:
            while self._stores:
                self._stores.popitem()[1].close()

    def _folder(self, caller: Caller) -> Path:
        tenant = self.tenants.resolve(caller.key)
        return self.tenants.folder(tenant, caller.collection) / f"shard-{self.shard:04d}"

    def _store(self, caller: Caller, *, create: bool = False) -> FaissStore | None:
        folder = self._folder(caller)
        store = self._stores.get(folder)
        if store is not None:
            return store
        with self._opening:
            if folder not in self._stores and (create or folder.is_dir()):
                self._stores[folder] = FaissStore(self.config.store_config(folder), takeover=True)
            return self._stores.get(folder)
