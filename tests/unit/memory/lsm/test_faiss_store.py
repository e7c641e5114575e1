"""FaissStore: the same as a dictionary and brute force, over any history of writes, seals, merges and reopenings."""

import errno
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hsokv_ray.errors import ConfigError, DataError, StoreError
from hsokv_ray.memory.stores import field, open_store
from hsokv_ray.memory.stores.config import FaissConfig
from hsokv_ray.memory.stores.facets import compile_filter
from hsokv_ray.memory.stores.lsm import maintenance
from hsokv_ray.memory.stores.lsm.store import FaissStore
from hsokv_ray.memory.stores.lsm.view import Version
from hsokv_ray.memory.stores.types import Rows

DIM = 6


@pytest.fixture(autouse=True)
def merges_at_once(monkeypatch) -> None:
    """Let merging wait for nothing, so that it happens during short tests."""
    monkeypatch.setattr(maintenance, "QUIET_S", 0.0)


def config(folder: Path, **options) -> FaissConfig:
    return FaissConfig(path=str(folder), **{"metric": "l2", "seal_rows": 16, **options})


def rows(*ids: str, value: float = 1.0, dim: int = DIM) -> Rows:
    return Rows(list(ids), np.full((len(ids), dim), value, np.float32), [b"{}"] * len(ids))


def nearest(oracle: dict, query: np.ndarray, top_k: int, year: int | None) -> list[float]:
    """Scores of the right answer, by brute force."""
    found = [-float(((vector - query) ** 2).sum()) for vector, y in oracle.values() if year is None or y >= year]
    return sorted(found, reverse=True)[:top_k]


class StoreMachine(RuleBasedStateMachine):
    """Any order of calls on a store against a dictionary."""

    @initialize(seed=st.integers(0, 2**20))
    def begin(self, seed: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.rng = np.random.default_rng(seed)
        self.oracle: dict[str, tuple[np.ndarray, int]] = {}
        self.store = FaissStore(config(Path(self.folder.name) / "store"))

    @rule(keys=st.lists(st.integers(0, 60), min_size=1, max_size=30, unique=True))
    def upsert(self, keys: list[int]) -> None:
        vectors = self.rng.normal(size=(len(keys), DIM)).astype(np.float32)
        years = self.rng.integers(1990, 2000, len(keys)).tolist()
        self.store.upsert([f"{k}" for k in keys], vectors, [{"year": year} for year in years])
        self.oracle |= {f"{k}": (vector, year) for k, vector, year in zip(keys, vectors, years, strict=True)}

    @rule(keys=st.lists(st.integers(0, 60), min_size=1, max_size=30))
    def delete(self, keys: list[int]) -> None:
        there = {f"{k}" for k in keys} & self.oracle.keys()
        assert self.store.delete([f"{k}" for k in keys]) == len(there)
        for id in there:
            del self.oracle[id]

    @rule(year=st.integers(1989, 2001))
    def delete_where(self, year: int) -> None:
        gone = [id for id, (_, y) in self.oracle.items() if y == year]
        assert self.store.delete(filter=field("year") == year) == len(gone)
        for id in gone:
            del self.oracle[id]

    @rule(top_k=st.integers(1, 80), year=st.none() | st.integers(1990, 2000))
    def query(self, top_k: int, year: int | None) -> None:
        if self.store.dim is None:
            return
        query = self.rng.normal(size=DIM).astype(np.float32)
        [hits] = self.store.query(query, top_k, None if year is None else field("year") >= year)
        assert len({hit.id for hit in hits}) == len(hits)
        np.testing.assert_allclose([hit.score for hit in hits], nearest(self.oracle, query, top_k, year), atol=1e-4)
        for hit in hits:
            assert hit.metadata["year"] == self.oracle[hit.id][1]

    @rule()
    def optimize(self) -> None:
        self.store.optimize()
        assert len(self.store.stats().details["segments"]) == bool(self.oracle)

    @rule(die=st.booleans())
    def reopen(self, die: bool) -> None:
        if die:  # as a process that stops without a word: no last entry in the log, nothing sealed
            self.store._log.abandon()
        self.store.close()
        self.store = FaissStore(config(Path(self.folder.name) / "store"))

    @precondition(lambda self: hasattr(self, "store"))
    @invariant()
    def is_the_same(self) -> None:
        self.store.check_integrity()
        assert self.store.count() == len(self.oracle)
        found = self.store.get([f"{k}" for k in range(61)])
        for k, record in enumerate(found):
            expected = self.oracle.get(f"{k}")
            assert (record is None) == (expected is None)
            if record is not None and expected is not None:
                assert np.array_equal(record.vector, expected[0])

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()


StoreMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
test_any_history_equals_a_dictionary = StoreMachine.TestCase


def test_a_view_stays_as_it_was(tmp_path) -> None:
    with FaissStore(config(tmp_path)) as store:
        store.write_rows(rows("a", "b"))
        before = store.view()
        store.write_rows(rows("a", value=9.0))
        store.delete(["b"])
        store.optimize()
        assert [record.vector[0] for record in before.get(["a", "b"]) if record] == [1, 1]
        assert (before.count(None), store.count()) == (2, 1)


def test_versions_grow_over_writes_and_reopenings(tmp_path) -> None:
    with FaissStore(config(tmp_path)) as store:
        first = store.version
        second = store.write_rows(rows("a"))
        third, count = store.delete_ids(["a", "a", "b"])
        assert (first, second, third, count) == (Version(1, 0), Version(1, 1), Version(1, 2), 1)
    with FaissStore(config(tmp_path)) as store:
        assert store.version == Version(2, 2)


def test_waiting_for_a_newer_version_ends_with_the_write_or_the_time(tmp_path) -> None:
    with FaissStore(config(tmp_path)) as store:
        before = store.version
        assert store.wait_newer(before, 0.01).version == before
        seen = []
        reader = threading.Thread(target=lambda: seen.append(store.wait_newer(before, 60).version))
        reader.start()
        store.write_rows(rows("a"))
        reader.join()
        assert seen == [Version(1, 1)]
        assert store.wait_newer(before, 60).version == Version(1, 1)


@pytest.mark.parametrize("seal", [False, True])
def test_a_request_that_comes_again_is_answered_and_not_repeated(tmp_path, seal) -> None:
    with FaissStore(config(tmp_path)) as store:
        first = store.write_rows(rows("a", "b", "c"), request_id="one")
        gone = store.delete_ids(["a", "x"], request_id="two")
        where = store.delete_where(compile_filter(field("none") == None), request_id="three")  # noqa: E711
        assert (gone[1], where[1]) == (1, 2)
        store.write_rows(rows("d"))
        if seal:
            store.optimize()
    for _ in range(2):
        with FaissStore(config(tmp_path)) as store:
            assert store.write_rows(rows("a", "b", "c"), request_id="one") == first
            assert store.delete_ids(["d"], request_id="two") == gone
            assert store.delete_where(compile_filter(field("none") == None), request_id="three") == where  # noqa: E711
            assert [record.id for record in store.records()] == ["d"]
    with FaissStore(config(tmp_path)) as store, pytest.raises(DataError, match="request id: got 0 characters"):
        store.write_rows(rows("e"), request_id="")


def test_concurrent_writers_of_one_request_write_once(tmp_path) -> None:
    with FaissStore(config(tmp_path)) as store:
        versions = []
        writers = [
            threading.Thread(target=lambda: versions.append(store.delete_ids(["a"], request_id="r"))) for _ in range(16)
        ]
        store.write_rows(rows("a"))
        for each in writers:
            each.start()
        for each in writers:
            each.join()
        assert versions == [(Version(1, 2), 1)] * 16
        assert store.version == Version(1, 2)


def test_many_threads_write_and_every_acknowledged_row_is_there(tmp_path) -> None:
    with FaissStore(config(tmp_path)) as store:

        def write(thread: int) -> None:
            for i in range(40):
                store.write_rows(rows(f"{thread}-{i}", "shared", value=float(i)))
                assert store.get([f"{thread}-{i}"])[0] is not None

        threads = [threading.Thread(target=write, args=(i,)) for i in range(6)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        store.check_integrity()
        assert store.count() == 6 * 40 + 1


def test_a_second_opener_is_refused_and_a_takeover_fences_the_first(tmp_path) -> None:
    zombie = FaissStore(config(tmp_path))
    zombie.write_rows(rows("a"))
    with pytest.raises(StoreError, match=f"already open by process {os.getpid()}"):
        FaissStore(config(tmp_path))
    owner = FaissStore(config(tmp_path), takeover=True)
    for _ in range(2):
        with pytest.raises(StoreError, match="fenced"):
            zombie.write_rows(rows("zombie"))
    assert zombie.query(np.ones(DIM), 1)[0][0].id == "a"  # it still reads
    owner.write_rows(rows("b"))
    with pytest.raises(StoreError, match="fenced"):
        zombie.optimize()
    zombie.close()
    owner.close()
    with FaissStore(config(tmp_path)) as store:
        assert sorted(record.id for record in store.records()) == ["a", "b"]


def test_the_first_write_fixes_the_dimension(tmp_path) -> None:
    with FaissStore(config(tmp_path)) as store:
        assert store.query([1.0, 2.0]) == [[]]
        store.upsert(["a"], [[1.0, 2.0, 3.0]])
        with pytest.raises(DataError, match="got 2 dimensions; this store has 3"):
            store.write_rows(rows("b", dim=2))
        store.delete(["a"])
        store.optimize()
    with FaissStore(config(tmp_path)) as store:
        assert store.dim == 3
    with pytest.raises(ConfigError, match="dim: got 4"):
        FaissStore(config(tmp_path, dim=4))
    with pytest.raises(ConfigError, match="metric: got 'dot'"):
        FaissStore(config(tmp_path, metric="dot"))


def test_a_dimension_that_only_the_log_knows_is_checked_too(tmp_path) -> None:
    with FaissStore(config(tmp_path)) as store:
        store.upsert(["a"], [[1.0, 2.0, 3.0]])
    with pytest.raises(ConfigError, match="dim: got 4, but its vectors have 3"):
        FaissStore(config(tmp_path, dim=4))


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path) -> None:
    import faiss

    index = faiss.IndexFlatL2(DIM)
    index.add(np.ones((3, DIM), np.float32))  # type: ignore[call-arg]
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    with pytest.raises(StoreError, match=r"holds 'index\.faiss' and no catalog: it was not written by this library"):
        FaissStore(config(tmp_path))
    assert os.listdir(tmp_path) == ["index.faiss"]
    with pytest.raises(StoreError, match="not a folder"):
        FaissStore(config(tmp_path / "index.faiss"))


def sealed(folder: Path) -> Path:
    """A store with one segment; returns the segment's folder."""
    with FaissStore(config(folder)) as store:
        store.upsert([f"{i}" for i in range(40)], np.random.default_rng(0).normal(size=(40, DIM)))
        store.optimize()
    [segment] = (folder / "segments").iterdir()
    return segment


@pytest.mark.parametrize("name", ["index.faiss", "rows.arrow", "postings.arrow", "manifest.json"])
def test_a_flipped_bit_in_a_segment_is_found_at_opening(tmp_path, name) -> None:
    path = sealed(tmp_path) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(StoreError, match="segment|manifest"):
        FaissStore(config(tmp_path))


@pytest.mark.parametrize("missing", ["manifest.json", "index.faiss"])
def test_a_segment_without_its_files_is_refused(tmp_path, missing) -> None:
    (sealed(tmp_path) / missing).unlink()
    with pytest.raises(StoreError, match=missing):
        FaissStore(config(tmp_path))


@pytest.mark.parametrize("gone", ["manifests", "epochs", "log"])
def test_a_store_that_lacks_a_folders_files_is_refused(tmp_path, gone) -> None:
    for _ in range(2):
        with FaissStore(config(tmp_path)) as store:
            store.write_rows(rows("a"))
            store.write_rows(rows("b"))
    FaissStore(config(tmp_path)).close()  # its catalog knows of the writes
    for path in (tmp_path / gone).iterdir():
        path.unlink()
    with pytest.raises(StoreError, match="no catalog|files were removed|is missing or cut"):
        FaissStore(config(tmp_path))


def test_a_log_that_lost_its_oldest_file_is_refused(tmp_path) -> None:
    for name in "ab":
        with FaissStore(config(tmp_path)) as store:
            store.write_rows(rows(name))
    (tmp_path / "log" / "000001-000000.log").unlink()
    with pytest.raises(StoreError, match="the writes 1 to 1 are missing"):
        FaissStore(config(tmp_path))


def test_a_flipped_bit_in_the_log_is_found_at_opening(tmp_path) -> None:
    with FaissStore(config(tmp_path)) as store:
        store.write_rows(rows("a"))
        store._log.abandon()  # as a process that dies
    path = tmp_path / "log" / "000001-000000.log"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"000001-000000\.log is damaged at byte 36"):
        FaissStore(config(tmp_path))


def test_a_damaged_catalog_is_replaced_by_the_one_before_and_the_log(tmp_path) -> None:
    with FaissStore(config(tmp_path)) as store:
        for i in range(50):
            store.write_rows(rows(f"{i}", value=float(i)))
        store.optimize()
        store.write_rows(rows("last"))
    newest = sorted((tmp_path / "manifests").glob("*.json"))[-1]
    newest.write_bytes(newest.read_bytes()[:-20])
    with FaissStore(config(tmp_path)) as store:
        store.check_integrity()
        assert store.count() == 51
        assert newest.name in store.stats().details["recovery"][0]


FULL = """
import sys, resource
import numpy as np
from pathlib import Path
from hsokv_ray.errors import StoreError
from hsokv_ray.memory.stores.lsm.store import FaissStore
from hsokv_ray.memory.stores.config import FaissConfig

store = FaissStore(FaissConfig(path=sys.argv[1], metric="l2", seal_rows=64))
vectors = np.random.default_rng(0).normal(size=(100, 64)).astype("f")
written, refused = [], []
def write(name):
    try:
        store.upsert([f"{name}-{i}" for i in range(100)], vectors)
    except StoreError as error:
        assert str(error).startswith("no room for"), error
        refused.append(name)
    else:
        written.append(name)
for i in range(200):
    write(i)
    assert store.count() == 100 * len(written)
    assert store.query(vectors[:3], 1)[0][0].score == 0
    if len(refused) == 3:
        break
assert len(refused) == 3, (written, refused)
store.check_integrity()
make_room()
last = len(written)
for i in range(1000, 1003):
    write(i)
assert len(written) == last + 3, (written, refused)
store.optimize()
store.check_integrity()
store.close()
store = FaissStore(FaissConfig(path=sys.argv[1], metric="l2", seal_rows=64))
store.check_integrity()
assert store.count() == 100 * len(written)
assert not [name for name in refused if store.get([f"{name}-0"])[0]]
store.close()
print("right")
"""


def run_until_full(folder: Path, before: str, make_room: str) -> None:
    code = f"{before}\ndef make_room():\n    {make_room}\n{FULL}"
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


def test_on_a_full_disk_reads_go_on_and_writes_do_when_there_is_room(tmp_path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here; the test with a limit on file sizes runs instead")
    try:
        (disk / "filler").write_bytes(bytes(4 * 2**20))
        run_until_full(disk / "store", f"import os; filler = {str(disk / 'filler')!r}", "os.unlink(filler)")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_beyond_a_limit_on_file_sizes_writes_are_refused_whole(tmp_path) -> None:
    before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))"
    infinite = "resource.RLIM_INFINITY"
    run_until_full(tmp_path, before, f"resource.setrlimit(resource.RLIMIT_FSIZE, ({infinite}, {infinite}))")


def test_without_a_sync_after_each_write_the_log_still_holds_it(tmp_path) -> None:
    with FaissStore(config(tmp_path, durability="async")) as store:
        for i in range(50):
            store.write_rows(rows(f"{i}"))
        store.optimize()
        store.write_rows(rows("last"))
    with FaissStore(config(tmp_path)) as store:
        assert store.count() == 51


def test_closing_ends_the_threads_and_gives_the_folder_free(tmp_path) -> None:
    before = set(threading.enumerate())
    store = open_store(config(tmp_path))
    assert len(set(threading.enumerate()) - before) == 3
    store.upsert(["a"], np.ones((1, DIM)))
    store.close()
    store.close()
    assert set(threading.enumerate()) <= before
    with pytest.raises(StoreError, match="closed"):
        store.query(np.ones(DIM))
    open_store(config(tmp_path)).close()
    with pytest.raises(OSError) as caught:
        os.fstat(store._log._descriptor or -1)  # type: ignore[attr-defined]
    assert caught.value.errno == errno.EBADF
