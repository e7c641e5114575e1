"""Sealing and merging: queries stay right meanwhile, segments stay few, room is given back."""

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.errors import StoreError
from hsokv_ray.memory.stores.config import FaissConfig
from hsokv_ray.memory.stores.lsm import maintenance
from hsokv_ray.memory.stores.lsm.background import Background
from hsokv_ray.memory.stores.lsm.rewrite import merge
from hsokv_ray.memory.stores.lsm.segment import Segment, write_segment
from hsokv_ray.memory.stores.lsm.store import FaissStore
from hsokv_ray.memory.stores.lsm.table import Table
from hsokv_ray.memory.stores.types import Rows

DIM = 5


@pytest.fixture(autouse=True)
def merges_at_once(monkeypatch) -> None:
    """Let merging wait for nothing, so that it happens during short tests."""
    monkeypatch.setattr(maintenance, "QUIET_S", 0.0)


def config(folder: Path, **options) -> FaissConfig:
    return FaissConfig(path=str(folder), **{"metric": "l2", "seal_rows": 16, **options})


def numbered(numbers, value: float = 0.0) -> Rows:
    """Rows whose vectors begin with their number."""
    vectors = np.full((len(numbers), DIM), value, np.float32)
    vectors[:, 0] = numbers
    return Rows([f"{n}" for n in numbers], vectors, [b'{"n":%d}' % n for n in numbers])


@given(st.data())
@settings(max_examples=40)
def test_writes_during_a_rewrite_are_in_the_new_segment(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("segments")
    table, oracle = Table("l2", dim=None), {}
    numbers = st.lists(st.integers(0, 20), unique=True, min_size=1, max_size=12)

    def write(value: float) -> None:
        for _ in range(data.draw(st.integers(0, 3))):
            chosen = data.draw(numbers)
            if data.draw(st.booleans()):
                table.apply([f"{n}" for n in chosen], numbered(chosen, value), None, 1)
                oracle.update((f"{n}", value) for n in chosen)
            else:
                there = [f"{n}" for n in chosen if f"{n}" in oracle]
                assert table.apply([f"{n}" for n in chosen], None, None, 1).count == len(there)
                for id in there:
                    del oracle[id]

    for round in range(3):
        write(round + 0.0)
        table.freeze()
        write(round + 0.25)
        sources = table.begin_rewrite([state.key for state in [*table.frozen, *table.segments]])
        write(round + 0.5)
        merged = merge(sources, DIM)
        segment = None
        if len(merged.rows):
            write_segment(folder / f"{round}", merged.rows, kind="flat", metric="l2")
            segment = Segment.open(folder / f"{round}")
        table.finish_rewrite(sources, segment, merged.moved)
        write(round + 0.75)
        for start in range(0, len(merged.rows), 3):
            table.repoint(merged.rows.ids[start : start + 3])
            write(round + 0.875)
        table.forget_moves()
        table.check_integrity()
    found = {record.id: float(record.vector[1]) for record in table.view(1).get([f"{n}" for n in range(21)]) if record}
    assert found == oracle


def test_queries_are_right_while_parts_are_sealed_and_merged(tmp_path) -> None:
    """A writer moves every row up by one, again and again; each view must show all rows, each at one of two places."""
    with FaissStore(config(tmp_path)) as store:
        num_rows, done, wrong = 100, threading.Event(), []
        store.write_rows(numbered(range(num_rows)))

        def read() -> None:
            while not done.is_set():
                view = store.view()
                matches = view.search(np.zeros((1, DIM), np.float32), 2 * num_rows, None).hits()[0]
                ids = sorted(int(hit.id) for hit in matches)
                values = {record.vector[1] for record in view.get([f"{n}" for n in range(num_rows)]) if record}
                if ids != list(range(num_rows)) or view.count(None) != num_rows or len(values) > 2:
                    wrong.append((len(ids), values))

        readers = [threading.Thread(target=read) for _ in range(2)]
        for each in readers:
            each.start()
        for round in range(1, 25):
            for start in range(0, num_rows, 25):
                store.write_rows(numbered(range(start, start + 25), float(round)))
            if round % 10 == 0:
                store.optimize()
        done.set()
        for each in readers:
            each.join()
        assert not wrong
        store.check_integrity()


def test_segments_stay_few_and_hold_no_more_dead_rows_than_allowed(tmp_path) -> None:
    with FaissStore(config(tmp_path)) as store:
        for start in range(0, 2000, 20):
            store.write_rows(numbered(range(start, start + 20)))
        store.delete([f"{n}" for n in range(0, 2000, 2)])
        keeper = store._maintenance
        while keeper._next_seal() is not None or keeper._next_merge() is not None:
            keeper._seal_all()
            keeper._merge_all()
        segments = store.stats().details["segments"]
        assert len(segments) <= 3 * 5  # FAN_IN - 1 in each of the tiers up to 4^4 * 16 rows
        assert all(each["alive"] >= 0.7 * each["rows"] for each in segments)
        store.check_integrity()
        assert store.count() == 1000


def test_merging_waits_while_parts_fill_up_but_not_for_ever(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(maintenance, "QUIET_S", 1e9)
    with FaissStore(config(tmp_path)) as store:
        for start in range(0, 16 * maintenance.MANY_SEGMENTS, 16):
            store.write_rows(numbered(range(start, start + 16)))
            store._maintenance._seal_all()
            num_segments = len(store.stats().details["segments"])
            store._maintenance._merge_all()
            if num_segments < maintenance.MANY_SEGMENTS:
                assert len(store.stats().details["segments"]) == num_segments
        assert len(store.stats().details["segments"]) < maintenance.MANY_SEGMENTS
        store.check_integrity()


def test_optimize_leaves_one_segment_of_the_configured_kind_and_no_old_file(tmp_path) -> None:
    with FaissStore(config(tmp_path, index="hnsw", seal_rows=400)) as store:
        store.upsert([f"{n}" for n in range(2000)], np.random.default_rng(0).normal(size=(2000, DIM)))
        store.delete([f"{n}" for n in range(0, 2000, 3)])
        view = store.view()
        store.optimize()
        [segment] = store.stats().details["segments"]
        assert (segment["kind"], segment["rows"], segment["alive"]) == ("hnsw", 1333, 1333)
        assert [path.name for path in (tmp_path / "segments").iterdir()] == [segment["name"]]
        assert len(list((tmp_path / "manifests").glob("*.json"))) == 2
        assert view.count(None) == 1333  # what it shows is mapped still
        assert len(view.get([f"{n}" for n in range(2000)])) == 2000
        store.delete(filter={})
        store.optimize()
        assert list((tmp_path / "segments").iterdir()) == []
    with FaissStore(config(tmp_path)) as store:
        assert (store.count(), store.dim) == (0, DIM)


def test_files_that_others_may_be_opening_stay_for_the_time_of_grace(tmp_path) -> None:
    store = FaissStore(config(tmp_path), grace_s=1e9)
    for start in range(0, 64, 16):
        store.write_rows(numbered(range(start, start + 16)))
        store._maintenance._seal_all()
    names = {path.name for path in (tmp_path / "segments").iterdir()}
    store._maintenance._merge_all()
    store._maintenance._merge_all()
    assert names <= {path.name for path in (tmp_path / "segments").iterdir()}
    store._maintenance._grace_s = 0
    for start in range(0, 64, 16):  # overwrites: every segment so far is rewritten, and two catalogs later not needed
        store.write_rows(numbered(range(start, start + 16)))
        store._maintenance._seal_all()
        store._maintenance._merge_all()
    with store._maintenance._merging:
        assert not names & {path.name for path in (tmp_path / "segments").iterdir()}
    store.close()


def test_what_a_writer_that_died_left_behind_goes(tmp_path) -> None:
    FaissStore(config(tmp_path)).close()
    left = tmp_path / "segments" / "000001-000077"
    left.mkdir()
    (left / "index.faiss").write_bytes(b"half")
    (tmp_path / "manifests" / "000001-000009.json.tmp").write_bytes(b"{")
    (tmp_path / "segments" / "notes").mkdir()  # not ours
    with FaissStore(config(tmp_path), grace_s=0) as store:
        store.write_rows(numbered([1]))
        store.optimize()
    assert not left.exists()
    assert (tmp_path / "segments" / "notes").exists()
    assert not list((tmp_path / "manifests").glob("*.tmp"))


def test_a_long_log_of_deletes_is_cut(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(maintenance, "MAX_LOG_FILES", 2)
    with FaissStore(config(tmp_path)) as store:
        store._log._rotate_bytes = 500
        store.write_rows(numbered(range(5)))
        for _ in range(200):
            store.delete(["nothing"])
            if len(list((tmp_path / "log").iterdir())) > 20:
                store._maintenance._merge_all()
                store._maintenance._seal_all()
        assert len(list((tmp_path / "log").iterdir())) < 50
        store.check_integrity()
    with FaissStore(config(tmp_path)) as store:
        assert store.count() == 5


def test_a_failure_in_the_background_is_raised_by_the_next_write_and_reads_go_on(tmp_path) -> None:
    with FaissStore(config(tmp_path)) as store:
        store.write_rows(numbered(range(8)))
        (tmp_path / "epochs" / "000009").touch()  # as another writer's claim
        with store._changed:
            store._table.freeze()
        with pytest.raises(StoreError, match="fenced"):
            store._maintenance._seal_all()
        store._maintenance._fail(StoreError("fenced by a test"))
        with pytest.raises(StoreError, match="fenced by a test"):
            store.write_rows(numbered([9]))
        assert store.count() == 8


def test_writers_wait_while_too_much_is_unsealed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(maintenance, "MAX_FROZEN_BYTES", 2000)
    with FaissStore(config(tmp_path)) as store:
        most = 0
        for start in range(0, 1000, 20):
            store.write_rows(numbered(range(start, start + 20)))
            most = max(most, sum(state.num_rows for state in list(store._table.frozen)))
        assert store.count() == 1000
        assert most * DIM * 4 <= 2000 + 20 * DIM * 4


def test_a_background_thread_tries_a_disk_again_and_tells_other_errors() -> None:
    told: list[StoreError] = []
    outcomes: list[Exception | None] = [OSError("full"), ValueError("a bug"), None]
    reached = threading.Event()

    def work() -> None:
        outcome = outcomes.pop(0) if outcomes else None
        if not outcomes:
            reached.set()
        if outcome is not None:
            raise outcome

    background = Background("test", work, failed=told.append)
    assert not background._try()
    assert background.trouble == "the disk refused: full"
    assert told == []
    assert not background._try()
    assert "ValueError('a bug')" in str(told[0])
    assert background._try()
    assert background.trouble is None
    background.start()
    background.wake()
    assert reached.wait(60)
    background.close()
