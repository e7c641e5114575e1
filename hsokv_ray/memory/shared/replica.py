"""Reading a shard away from its writer: the same reads as `ShardService`, from copies that follow it."""

import os
import shutil
import tempfile
import threading
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from hsokv_ray.memory.shared.links import Link, read_config
from hsokv_ray.memory.shared.messages import NOTHING, PackedHits, ReaderState, Reply, SegmentNews, Update
from hsokv_ray.memory.shared.reader import Reader
from hsokv_ray.memory.shared.service import Caller
from hsokv_ray.memory.shared.updates import Replica
from hsokv_ray.memory.stores.facets import Predicate
from hsokv_ray.memory.stores.lsm.segment import Segment
from hsokv_ray.memory.stores.lsm.view import Version, View
from hsokv_ray.memory.stores.types import Record


class ReplicaService:
    """Read-only copies of the collections of one shard, each begun when it is first asked for.

    Args:
        max_age_s: nothing acknowledged longer ago than this is missing from what is read, while the writer answers.
    """

    def __init__(self, memory: str, shard: int, *, max_age_s: float = 1.0) -> None:
        self.shard = shard
        self._link = Link(memory, shard)
        self.config = read_config(self._link.describe())
        self._max_age_s = max_age_s
        self._readers: dict[Caller, Reader] = {}
        self._lock = threading.Lock()

    def search(
        self, caller: Caller, queries: np.ndarray, top_k: int, predicate: Predicate | None, at_least: Version
    ) -> Reply:
        """Return the nearest rows of float32 `queries` [n, d], from a version that contains `at_least`."""
        view = self._view(caller, at_least)
        if view is None or view.dim is None:
            return Reply(PackedHits.of([[] for _ in queries]), NOTHING)
        return Reply(PackedHits.of_matches(view.search(queries, top_k, predicate)), view.version)

    def get(self, caller: Caller, ids: list[str], at_least: Version) -> tuple[list[Record | None], Version]:
        """Return the records of `ids`, None where there is none."""
        view = self._view(caller, at_least)
        return (view.get(ids), view.version) if view else ([None] * len(ids), NOTHING)

    def count(self, caller: Caller, predicate: Predicate | None, at_least: Version) -> tuple[int, Version]:
        """Return how many rows satisfy `predicate`."""
        view = self._view(caller, at_least)
        return (view.count(predicate), view.version) if view else (0, NOTHING)

    def status(self) -> dict[str, Any]:
        """Return what this replica holds."""
        with self._lock:
            views = [view for reader in self._readers.values() if (view := reader.newest)]
        vectors = sum(view.alive_count for view in views)
        return {
            "open_collections": len(views),
            "vectors": vectors,
            "disk_bytes": 0,
            "log_bytes": 0,
            "queue_bytes": 0,
            "refused": 0,
            "problems": [],
        }

    def close(self) -> None:
        """Stop following."""
        with self._lock:
            while self._readers:
                self._readers.popitem()[1].close()

    def _view(self, caller: Caller, at_least: Version) -> View | None:
        with self._lock:
            reader = self._readers.get(caller)
            if reader is None:
                reader = self._readers[caller] = follow(self._link, caller, num_threads=self.config.num_threads)
        return reader.view(at_least=at_least, max_age_s=self._max_age_s)


def follow(link: Link, caller: Caller, *, num_threads: int) -> Reader:
    """Return a reader of the caller's collection in the shard of `link`."""

    def fetch(state: ReaderState, timeout_s: float) -> Update | None:
        return link.call("update", caller, state, timeout_s, timeout_s=timeout_s + 30)

    def open_segment(news: SegmentNews) -> Segment:
        folder = Path(news.folder)
        return Segment.open(folder if folder.is_dir() else copy_segment(link, caller, news), verify=False)

    return Reader(fetch, Replica(open_segment, drop_copy, num_threads=num_threads))


def drop_copy(segment: Segment) -> None:
    """Delete a segment's copy on this node; the shard's own files are not touched. Who has it mapped keeps it."""
    if segment.folder.is_relative_to(_copies()):
        shutil.rmtree(segment.folder, ignore_errors=True)  # another reader of this node may be deleting it, too


def copy_segment(link: Link, caller: Caller, news: SegmentNews) -> Path:
    """Bring a segment from the writer's node to a folder of this node that its readers share."""
    place = blake2b(news.folder.encode(), digest_size=12).hexdigest()
    target = _copies() / place / news.name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".copy-") as scratch:
        copy = Path(scratch) / news.name
        copy.mkdir()
        for name, content in link.call("segment_files", caller, news.name).items():
            content.tofile(copy / name)
        Segment.open(copy, verify=True).close()
        try:
            copy.rename(target)
        except OSError:
            if not target.is_dir():  # else another reader of this node was faster
                raise
    return target


def _copies() -> Path:
    return Path(tempfile.gettempdir()) / f"hsokv-segments-{os.getuid()}"
