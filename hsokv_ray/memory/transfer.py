"""Records from files into stores and between stores, in batches that may be interrupted anywhere.

    load_rows(store, open_rows("notes.jsonl"), state=state, meter=meter)
    copy_records(source, target, state=state, meter=meter)

A batch is durable in the store before the progress file says so. A row that is written twice is there once: by its id.
"""

from dataclasses import asdict, replace
from typing import Literal

import numpy as np

from hsokv_ray.errors import DataError, StoreError
from hsokv_ray.memory.records import ENCODER, Encode, fingerprint_of
from hsokv_ray.memory.row_files import BadRow, Placed, Position, Row, RowFile
from hsokv_ray.memory.stores.base import VectorStore
from hsokv_ray.memory.stores.checks import check_rows
from hsokv_ray.memory.stores.types import Page
from hsokv_ray.memory.transfer_state import Progress, TransferState
from hsokv_ray.meter import Meter

OnBadRow = Literal["error", "skip"]
_SAID_BAD_ROWS = 10


def load_rows(
    store: VectorStore,
    source: RowFile,
    *,
    state: TransferState,
    meter: Meter,
    encoder: Encode | None = None,
    batch_size: int = 1000,
    on_bad_row: OnBadRow = "error",
) -> Progress:
    """Write the rows of `source` to `store`, from where an earlier call was broken off; return what is done.

    Args:
        encoder: makes the vectors of the rows' texts; None where rows bring vectors.
        on_bad_row: error stops at the first bad row, after what stands before it was written; skip counts it.

    Raises:
        DataError: a bad row, named by file and line.
        StoreError: the store cannot take a batch.
    """
    return _Loader(store, source, state, meter, encoder, on_bad_row).run(batch_size)


class _Loader:
    def __init__(
        self,
        store: VectorStore,
        source: RowFile,
        state: TransferState,
        meter: Meter,
        encoder: Encode | None,
        on_bad_row: OnBadRow,
    ) -> None:
        self._store, self._source, self._state, self._meter = store, source, state, meter
        self._encoder, self._skips = encoder, on_bad_row == "skip"
        self._done = resume(state, store, meter, Progress(asdict(Position()), 0))

    def run(self, batch_size: int) -> Progress:
        start, batch = Position(**self._done.cursor), []
        for placed in self._source.rows(start):
            batch.append(placed)
            if len(batch) == batch_size:
                self._write(batch)
                batch = []
        if batch:
            self._write(batch)
        self._state.finish()
        return self._done

    def _write(self, batch: list[Placed]) -> None:
        reasons = self._reasons(batch)
        bad = [i for i, reason in enumerate(reasons) if reason]
        if bad and not self._skips:
            first = bad[0]
            if first:
                self._store_batch(batch[:first], reasons[:first])
            raise DataError(f"{batch[first].place}: {reasons[first]}; mend it, or give --on-bad-row skip")
        for i in bad[: max(_SAID_BAD_ROWS - self._done.skipped, 0)]:
            self._meter.say(f"skipped {batch[i].place}: {reasons[i]}")
        self._store_batch(batch, reasons)

    def _store_batch(self, batch: list[Placed], reasons: list[str]) -> None:
        good = [each.row for each, why in zip(batch, reasons, strict=True) if not why and isinstance(each.row, Row)]
        self._upsert(good)
        self._done = replace(
            self._done,
            cursor=asdict(batch[-1].after),
            rows=self._done.rows + len(good),
            skipped=self._done.skipped + len(batch) - len(good),
            last_id=good[-1].id if good else self._done.last_id,
        )
        self._state.save(self._done)
        self._meter.update(batch[-1].after.offset)

    def _reasons(self, batch: list[Placed]) -> list[str]:
        """Return why each row cannot be written; "" where it can."""
        reasons = [_why_unfit(each.row, embed=self._encoder is not None) for each in batch]
        rows = [each.row for each, why in zip(batch, reasons, strict=True) if not why and isinstance(each.row, Row)]
        try:
            self._check(rows, self._store.dim)
        except (DataError, ValueError):  # which of them is it?
            dim = self._store.dim
            for i, each in enumerate(batch):
                if not reasons[i] and isinstance(each.row, Row):
                    try:
                        dim = self._check([each.row], dim)
                    except DataError as error:
                        reasons[i] = str(error)
        return reasons

    def _check(self, rows: list[Row], dim: int | None) -> int | None:
        """Return the dimensions of the vectors. Raises `DataError`, or `ValueError` for vectors of unequal lengths."""
        given = [row.vector for row in rows] if self._encoder is None else np.ones((len(rows), dim or 1))
        ids, metadata = [row.id for row in rows], [row.metadata for row in rows]
        checked = check_rows(ids, given, metadata, metric=self._store.metric, dim=dim)
        return dim if dim or self._encoder is not None else checked.vectors.shape[1]

    def _upsert(self, rows: list[Row]) -> None:
        if not rows:
            return
        metadata = [row.metadata for row in rows]
        if self._encoder is None:
            vectors = np.stack([np.asarray(row.vector, np.float32) for row in rows])
        else:
            vectors = self._encoder([row.text for row in rows])
            mark = fingerprint_of(self._encoder)
            metadata = [each | {ENCODER: mark} for each in metadata] if mark else metadata
        self._store.upsert([row.id for row in rows], vectors, metadata)


def copy_records(
    source: VectorStore, target: VectorStore, *, state: TransferState, meter: Meter, batch_size: int = 1000
) -> Progress:
    """Write every record of `source` to `target`, from where an earlier call was broken off; return what is done.

    Raises:
        StoreError: a store fails, or the counts do not fit afterwards.
    """
    done = resume(state, target, meter, Progress(None, 0, began_empty=target.count() == 0))
    while True:
        page = _page(source, done, batch_size)
        if page is None:
            meter.say("the source does not know the place where this was broken off: beginning again")
            done = replace(done, cursor=None, rows=0)
            continue
        if page.records:
            ids = [record.id for record in page.records]
            vectors = np.stack([record.vector for record in page.records])
            target.upsert(ids, vectors, [record.metadata for record in page.records])
            done = replace(done, rows=done.rows + len(ids), last_id=ids[-1])
        if page.cursor is None:
            break
        done = replace(done, cursor=page.cursor)
        state.save(done)
        meter.update(done.rows)
    _check_counts(source, target, done)
    state.finish()
    return done


def differing_records(source: VectorStore, target: VectorStore, *, meter: Meter, batch_size: int = 1000) -> list[str]:
    """Return the ids of `source` whose record in `target` is missing or differs, at most 1e-5 per number allowed."""
    bad: list[str] = []
    seen, cursor = 0, None
    while True:
        page = source.scroll(page_size=batch_size, cursor=cursor)
        twins = target.get([record.id for record in page.records])
        for record, twin in zip(page.records, twins, strict=True):
            if twin is None or twin.metadata != record.metadata or not _are_close(twin.vector, record.vector):
                bad.append(record.id)
        seen += len(page.records)
        meter.update(seen)
        if (cursor := page.cursor) is None:
            return bad


def _are_close(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-5, atol=1e-5)


def resume(state: TransferState, target: VectorStore, meter: Meter, start: Progress) -> Progress:
    """Return the progress to go on from: that of `state` where it fits what `target` holds, else `start`."""
    done, why_not = state.load()
    if done is not None and done.last_id and target.get([done.last_id]) == [None]:
        done, why_not = None, f"the target does not hold {done.last_id!r}, which was written last"
    if why_not:
        meter.say(f"beginning again: {why_not}")
    if done is None:
        return start
    skipped = f", {done.skipped:,} skipped" if done.skipped else ""
    meter.say(f"going on after {done.rows:,} rows{skipped}")
    return done


def _page(source: VectorStore, done: Progress, batch_size: int) -> Page | None:
    try:
        return source.scroll(page_size=batch_size, cursor=done.cursor)
    except DataError:
        if done.cursor is None:
            raise
        return None


def _check_counts(source: VectorStore, target: VectorStore, done: Progress) -> None:
    here, there = source.count(), target.count()
    if there < here or (done.began_empty and there != here):
        raise StoreError(
            f"the source holds {here:,} records and the target {there:,}; if neither is being written to, "
            "run the same line again"
        )


def _why_unfit(row: Row | BadRow, *, embed: bool) -> str:
    if isinstance(row, BadRow):
        return row.reason
    if embed:
        if row.vector is not None:
            return "has a vector already; leave --embed out"
        return "" if isinstance(row.text, str) else "no text, which --embed needs"
    if row.vector is None:
        return "no vector; give --embed to make one from the text"
    if not isinstance(row.vector, list | np.ndarray) or np.ndim(row.vector) != 1:
        return f"the vector is {str(row.vector)[:40]}; a list of numbers is needed"
    return ""
