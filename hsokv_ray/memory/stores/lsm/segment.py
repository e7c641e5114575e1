"""A segment: rows sorted by id in a folder that is written once, with an index, ids, metadata and postings.

write_segment(folder, rows, kind="ivf_sq8", metric="cosine")
segment = Segment.open(folder, verify=False)          # mapped: a millisecond, whatever its size
scores, positions = segment.search(queries, 10, None)
segment.ids(positions[0])
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hsokv_ray.errors import CheckpointError, StoreError
from hsokv_ray.manifest import Manifest, read_manifest, verify_manifest, write_manifest
from hsokv_ray.memory.stores.facets import Facets, Predicate, facets
from hsokv_ray.memory.stores.lsm.allowed import Allowed
from hsokv_ray.memory.stores.lsm.indexes import Kind, OpenIndex, build_index, save_index
from hsokv_ray.memory.stores.lsm.postings import Postings, PostingsBuilder
from hsokv_ray.memory.stores.lsm.strings import StringColumn
from hsokv_ray.memory.stores.types import Metric, Rows

FORMAT = "hsokv_ray segment 1"
INDEX, ROWS, POSTINGS = "index.faiss", "rows.arrow", "postings.arrow"
_SCHEMA = pa.schema({"id": pa.large_string(), "metadata": pa.large_binary()})
_CACHED_MASKS = 8
_CACHED_TEXTS = 65_536
"""Distinct metadata texts whose facets are remembered while postings are made."""


def write_segment(folder: Path, rows: Rows, *, kind: Kind, metric: Metric) -> None:
    """Write `rows` (distinct ids, any order) to `folder`, which is made; complete once its manifest is there.

    Raises `OSError`: no room.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = _sorted_by_id(rows)
    save_index(build_index(rows.vectors, kind, metric), folder / INDEX)
    _write_rows(folder / ROWS, rows)
    _index_metadata(rows.metadata).write(folder / POSTINGS)
    num_rows, dim = rows.vectors.shape
    extra = {"format": FORMAT, "dim": dim, "metric": metric, "kind": kind, "num_rows": num_rows}
    write_manifest(folder, extra=extra)


class Segment:
    """A folder of `write_segment`, mapped. Immutable; several threads may read it."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.name: str = folder.name
        self.num_rows: int = manifest.extra["num_rows"]
        self.dim: int = manifest.extra["dim"]
        self.kind: Kind = manifest.extra["kind"]
        self.metric: Metric = manifest.extra["metric"]
        self.num_bytes: int = sum(entry.num_bytes for entry in manifest.files.values())
        """On disk."""
        self._index: OpenIndex = OpenIndex.from_file(folder / INDEX)
        batch = _read_rows(folder / ROWS)
        self._ids, self._metadata = StringColumn(batch.column("id")), StringColumn(batch.column("metadata"))
        self._postings = Postings.open(folder / POSTINGS)
        self._masks: OrderedDict[Predicate, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> "Segment":
        """Map the segment in `folder`.

        Args:
            verify: compare every file's checksum, which reads all of them; sizes are compared in any case.

        Raises:
            StoreError: not written by this library, of another format, or damaged.
        """
        folder = Path(folder)
        manifest = _manifest(folder, verify)
        segment = cls(folder, manifest)
        index = segment._index
        found = (index.num_rows, index.dim, index.kind, len(segment._ids), len(segment._metadata))
        if found != (segment.num_rows, segment.dim, segment.kind, segment.num_rows, segment.num_rows):
            raise StoreError(f"{folder}: its files do not belong together; restore the store from a snapshot")
        return segment

    def ids(self, positions: Iterable[int]) -> list[str]:
        """Return the ids at `positions`."""
        return self._ids.texts(positions)

    def all_ids(self) -> list[str]:
        """Return every id, ascending."""
        return self._ids.all_texts()

    def metadata(self, positions: Iterable[int]) -> list[bytes]:
        """Return the JSON texts at `positions`."""
        return self._metadata.values(positions)

    def vectors(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the vectors at `positions`, float32 [m, d], as a copy."""
        return self._index.vectors(np.asarray(positions, np.int64))

    def find(self, ids: Iterable[str]) -> np.ndarray:
        """Return the position of each id, int64 [m]; -1 where it is not here."""
        return self._ids.find_all(ids)

    def search(
        self, queries: np.ndarray, top_k: int, allowed: Allowed | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores float32 [n, k] and positions int64 [n, k]; see `OpenIndex.search`."""
        return self._index.search(queries, top_k, allowed)

    def mask(self, predicate: Predicate) -> np.ndarray:
        """Return which rows satisfy `predicate`, bool [num_rows], read-only; the last few are remembered."""
        with self._lock:
            if predicate in self._masks:
                self._masks.move_to_end(predicate)
                return self._masks[predicate]
        mask = self._postings.mask(predicate, self.num_rows)
        mask.flags.writeable = False
        with self._lock:
            self._masks[predicate] = mask
            if len(self._masks) > _CACHED_MASKS:
                self._masks.popitem(last=False)
        return mask

    def after(self, cursor: str | None, limit: int, allowed: Allowed | None) -> np.ndarray:
        """Return the first `limit` allowed positions whose id is above `cursor`, in id order."""
        start = 0 if cursor is None else self._ids.bisect(cursor + "\0")
        if allowed is None:
            return np.arange(start, min(start + limit, self.num_rows))
        return first_true(allowed.mask, start, limit)

    def close(self) -> None:
        """Let go of the files; they are unmapped when no search uses them any more."""
        self._masks.clear()
        del self._index, self._ids, self._metadata, self._postings


def first_true(mask: np.ndarray, start: int, limit: int) -> np.ndarray:
    """Return the first `limit` positions from `start` on where `mask` is true."""
    found: list[np.ndarray] = []
    size = 2 * limit
    while limit > 0 and start < len(mask):
        here = np.flatnonzero(mask[start : start + size])[:limit] + start
        found.append(here)
        limit -= len(here)
        start += size
        size *= 2
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def facets_of(text: bytes) -> Facets:
    """Return the facets of a JSON text."""
    return facets(json.loads(text))


def _sorted_by_id(rows: Rows) -> Rows:
    order = sorted(range(len(rows)), key=rows.ids.__getitem__)
    if order == list(range(len(rows))):
        return rows
    return Rows([rows.ids[i] for i in order], rows.vectors[order], [rows.metadata[i] for i in order])


def _write_rows(path: Path, rows: Rows) -> None:
    batch = pa.RecordBatch.from_arrays(
        [pa.array(rows.ids, pa.large_string()), pa.array(rows.metadata, pa.large_binary())], schema=_SCHEMA
    )
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
        writer.write_batch(batch)


def _read_rows(path: Path) -> pa.RecordBatch:
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(f"{path}: cannot be read ({error}); restore the store from a snapshot") from None
    if batch.schema != _SCHEMA:
        raise StoreError(f"{path}: has other columns than id and metadata; restore the store from a snapshot")
    return batch


def _index_metadata(texts: list[bytes]) -> PostingsBuilder:
    builder = PostingsBuilder()
    known: dict[bytes, Facets] = {}
    for position, text in enumerate(texts):
        found = known.get(text)
        if found is None:
            found = facets_of(text)
            if len(known) < _CACHED_TEXTS:
                known[text] = found
        builder.add(position, found)
    return builder


def _manifest(folder: Path, verify: bool) -> Manifest:
    try:
        manifest = verify_manifest(folder) if verify else read_manifest(folder)
    except CheckpointError as error:
        reason = str(error).removesuffix("; use another checkpoint")
        raise StoreError(f"segment not opened: {reason}; restore the store from a snapshot") from None
    written: Any = manifest.extra.get("format")
    if written != FORMAT:
        raise StoreError(f"{folder}: format {written!r} was not written by this hsokv_ray, which reads {FORMAT!r}")
    for name in (INDEX, ROWS, POSTINGS):
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        expected = manifest.files[name].num_bytes if name in manifest.files else None
        if size is None or size != expected:
            raise StoreError(f"{path}: {size} bytes where {expected} were written; restore the store from a snapshot")
    return manifest
