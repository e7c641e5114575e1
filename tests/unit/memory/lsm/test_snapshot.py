"""Snapshots: what is restored is what was there, whatever is written meanwhile; damage is found."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from hsokv_ray.errors import DataError, StoreError
from hsokv_ray.memory.stores.config import FaissConfig
from hsokv_ray.memory.stores.lsm.snapshot import _digest, restore_snapshot
from hsokv_ray.memory.stores.lsm.store import FaissStore
from hsokv_ray.memory.stores.types import Rows

DIM = 4


def config(folder: Path) -> FaissConfig:
    return FaissConfig(path=str(folder), metric="l2", seal_rows=16)


def rows(start: int, stop: int, value: float = 0.0) -> Rows:
    vectors = np.full((stop - start, DIM), value, np.float32)
    vectors[:, 0] = range(start, stop)
    return Rows([f"{n}" for n in range(start, stop)], vectors, [b'{"n":%d}' % n for n in range(start, stop)])


@pytest.fixture
def store(tmp_path):
    """A store with sealed, growing, overwritten and deleted rows."""
    with FaissStore(config(tmp_path / "store")) as store:
        store.write_rows(rows(0, 50))
        store.optimize()
        store.write_rows(rows(40, 60, 1.0), request_id="overwrite")
        store.delete_ids([f"{n}" for n in range(5)], request_id="delete")
        yield store


def contents(store: FaissStore) -> dict:
    return {record.id: (record.vector.tolist(), record.metadata) for record in store.records()}


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_what_is_restored_is_what_was_there(tmp_path, store, form) -> None:
    before, version = contents(store), store.version
    uri = form.format(tmp_path / "snapshots" / "monday")
    assert store.snapshot(uri) == uri
    store.write_rows(rows(100, 200))
    store.delete(filter={})
    restore_snapshot(uri, tmp_path / "restored")
    with FaissStore(config(tmp_path / "restored")) as restored:
        restored.check_integrity()
        assert contents(restored) == before
        assert restored.version.seq == version.seq
        assert restored.version > version
        assert restored.delete_ids(["7"], request_id="delete")[1] == 5  # answered, not repeated
        restored.write_rows(rows(300, 340))
        restored.optimize()
    with FaissStore(config(tmp_path / "restored")) as restored:
        assert len(contents(restored)) == len(before) + 40


def test_an_empty_store_is_restored_empty(tmp_path) -> None:
    with FaissStore(config(tmp_path / "store")) as store:
        store.snapshot(str(tmp_path / "snapshot"))
    restore_snapshot(str(tmp_path / "snapshot"), tmp_path / "restored")
    with FaissStore(config(tmp_path / "restored")) as restored:
        assert (restored.count(), restored.dim) == (0, None)


def test_writes_merges_and_queries_go_on_during_snapshots(tmp_path, store) -> None:
    done = threading.Event()

    def write() -> None:
        value = 0.0
        while not done.is_set():
            value += 1
            store.write_rows(rows(0, 60, value))
            store.query(np.zeros(DIM), 5)

    writer = threading.Thread(target=write)
    writer.start()
    for i in range(8):
        store.snapshot(str(tmp_path / f"snapshot-{i}"))
    done.set()
    writer.join()
    for i in range(8):
        restore_snapshot(str(tmp_path / f"snapshot-{i}"), tmp_path / f"restored-{i}")
        with FaissStore(config(tmp_path / f"restored-{i}")) as restored:
            restored.check_integrity()
            found = contents(restored)
            assert len({vector[1] for vector, _ in found.values()}) == 1 or len(found) == 55  # one write's values
    assert all(count == 0 for count in store._maintenance._pins.values())


def test_a_place_that_is_not_empty_is_left_alone(tmp_path, store) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        store.snapshot(str(tmp_path / "full"))
    store.snapshot(str(tmp_path / "snapshot"))
    with pytest.raises(DataError, match="not empty"):
        store.snapshot(str(tmp_path / "snapshot"))
    with pytest.raises(DataError, match="not empty"):
        restore_snapshot(str(tmp_path / "snapshot"), tmp_path / "full")
    with pytest.raises(DataError, match="pyarrow.fs URI"):
        store.snapshot("gopher://somewhere/else")


def test_every_damaged_or_missing_file_of_a_snapshot_is_found(tmp_path, store) -> None:
    store.snapshot(str(tmp_path / "snapshot"))
    files = [path for path in (tmp_path / "snapshot").rglob("*") if path.is_file()]
    assert len(files) >= 4 + 4 + 2 + 1
    for number, path in enumerate(files):
        whole = path.read_bytes()
        damages = {"flipped": bytes([*whole[:-1], whole[-1] ^ 1]) if whole else b"x", "cut": whole[: len(whole) // 2]}
        for how, data in damages.items():
            if data == whole:
                continue
            path.write_bytes(data)
            with pytest.raises(StoreError, match="damaged|cannot be used"):
                restore_snapshot(str(tmp_path / "snapshot"), tmp_path / f"restored-{number}-{how}")
        path.unlink()
        with pytest.raises(StoreError, match="never finished|No such file"):
            restore_snapshot(str(tmp_path / "snapshot"), tmp_path / f"restored-{number}-missing")
        path.write_bytes(whole)


def test_a_restore_that_did_not_finish_is_not_opened(tmp_path, store) -> None:
    store.snapshot(str(tmp_path / "snapshot"))
    segment = next((tmp_path / "snapshot" / "segments").rglob("index.faiss"))
    segment.write_bytes(b"damage")
    with pytest.raises(StoreError, match="damaged"):
        restore_snapshot(str(tmp_path / "snapshot"), tmp_path / "restored")
    with pytest.raises(StoreError, match="no catalog"):
        FaissStore(config(tmp_path / "restored"))


def test_a_snapshot_is_not_opened_as_a_store(tmp_path, store) -> None:
    store.snapshot(str(tmp_path / "snapshot"))
    with pytest.raises(StoreError, match="is a snapshot, which is not written to"):
        FaissStore(config(tmp_path / "snapshot"))
    restore_snapshot(str(tmp_path / "snapshot"), tmp_path / "restored")


def test_a_file_name_that_leads_out_of_the_folder_is_refused(tmp_path, store) -> None:
    store.snapshot(str(tmp_path / "snapshot"))
    path = tmp_path / "snapshot" / "snapshot.json"
    body = json.loads(path.read_text())["snapshot"]
    body["files"]["../outside"] = {"num_bytes": 0, "sha256": "0"}
    path.write_text(json.dumps({"sha256": _digest(body), "snapshot": body}))
    with pytest.raises(StoreError, match="leads out of the folder"):
        restore_snapshot(str(tmp_path / "snapshot"), tmp_path / "restored")
    assert not (tmp_path / "outside").exists()


def test_a_segment_damaged_on_disk_is_found_while_it_is_copied(tmp_path, store) -> None:
    store.optimize()
    [path] = (tmp_path / "store" / "segments").rglob("rows.arrow")
    with path.open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"x")
    with pytest.raises(StoreError, match=r"rows\.arrow is damaged"):
        store.snapshot(str(tmp_path / "snapshot"))
