"""What FAISS does that would make a store wrong, slow or dead, and that ours is not subject to it.

The first half of each test shows FAISS's own behaviour: where such a half fails, FAISS has changed and the way around
it may go.
"""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import faiss
import numpy as np
import pytest

from hsokv_ray.memory.stores.lsm.exact import search_exact
from hsokv_ray.memory.stores.lsm.growing import Growing
from hsokv_ray.memory.stores.lsm.indexes import Kind, OpenIndex, build_index, save_index
from hsokv_ray.memory.stores.lsm.segment import Segment, write_segment
from hsokv_ray.memory.stores.lsm.threads import calibrate_exact_search, num_cpus, use_threads
from hsokv_ray.memory.stores.lsm.view import Version, View
from hsokv_ray.memory.stores.types import Rows

KINDS: tuple[Kind, ...] = ("flat", "ivf_sq8", "rabitq", "ivfpq", "hnsw")


def rows_of(vectors: np.ndarray) -> Rows:
    return Rows([f"id-{i:05d}" for i in range(len(vectors))], vectors, [b"{}"] * len(vectors))


def run_python(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | variables)


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((6000, 32), np.float32)


def scores_with_threshold(queries: np.ndarray, vectors: np.ndarray, threshold: int) -> np.ndarray:
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = threshold
    try:
        return faiss.knn(queries, vectors, 10, metric=faiss.METRIC_INNER_PRODUCT)[0]
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


def test_faiss_multiplies_matrices_from_queries_times_dim_at_the_threshold_on() -> None:
    # the two ways add in another order, so that their last bits tell which one ran
    vectors = np.random.default_rng(0).standard_normal((3000, 384), np.float32)
    queries = vectors[:32] + 1
    one_by_one, matrices = (scores_with_threshold(queries, vectors, t) for t in (2**31 - 1, 1))
    assert not np.array_equal(one_by_one, matrices)
    assert np.array_equal(scores_with_threshold(queries, vectors, 32 * 384), matrices)
    assert np.array_equal(scores_with_threshold(queries, vectors, 32 * 384 + 1), one_by_one)


def test_the_wheels_blas_threshold_sends_a_batch_of_256_one_by_one() -> None:
    shown = run_python("import faiss; print(faiss.cvar.distance_compute_blas_threshold)")
    assert int(shown.stdout) > 256 * 384


def test_after_calibration_batches_are_multiplied_and_single_queries_are_not() -> None:
    # small vectors first: FAISS's one threshold then is far too low for single queries of 384
    calibrate_exact_search(8)
    calibrate_exact_search(384)
    assert faiss.cvar.distance_compute_blas_threshold <= 8 * 8
    vectors = np.random.default_rng(0).standard_normal((3000, 384), np.float32)
    for num_queries, threshold in ((1, 2**31 - 1), (8, 1), (256, 1)):
        queries = vectors[:num_queries] + 1
        scores, _ = search_exact(queries, vectors, "dot", 10)
        assert np.array_equal(scores, scores_with_threshold(queries, vectors, threshold)), num_queries


def test_calibration_leaves_the_number_of_threads_as_it_is() -> None:
    faiss.omp_set_num_threads(3)
    calibrate_exact_search(100)
    assert faiss.omp_get_max_threads() == 3
    faiss.omp_set_num_threads(1)


def test_faiss_returns_wrong_ids_after_removal_from_an_id_map_around_ivf() -> None:
    code = """
import faiss, numpy as np
vectors = np.random.default_rng(0).standard_normal((2000, 32), np.float32)
index = faiss.IndexIDMap(faiss.index_factory(32, "IVF16,Flat"))
index.train(vectors)
index.add_with_ids(vectors, np.arange(2000) + 10_000)
faiss.extract_index_ivf(index).nprobe = 16
before = index.search(vectors[500:510], 1)[1][:, 0]
index.remove_ids(np.arange(100) + 10_000)
after = index.search(vectors[500:510], 1)[1][:, 0]
print((before == np.arange(500, 510) + 10_000).sum(), (after == np.arange(500, 510) + 10_000).sum())
"""
    assert run_python(code).stdout.split() == ["10", "0"]


@pytest.mark.parametrize("kind", KINDS)
def test_our_ids_stay_right_when_rows_are_deleted(tmp_path: Path, vectors: np.ndarray, kind: Kind) -> None:
    write_segment(tmp_path / "s", rows_of(vectors), kind=kind, metric="l2")
    alive = np.ones(len(vectors), bool)
    alive[:100] = alive[500] = False
    view = View(Version(0, 0), "l2", 32, ((Segment.open(tmp_path / "s"), alive),))
    found = view.search(vectors[450:550], 1).hits()
    expected = [f"id-{i:05d}" for i in range(450, 550)]
    assert [hit.id for [hit] in found[:50] + found[51:]] == expected[:50] + expected[51:]
    assert found[50][0].id != "id-00500"
    ids = {hit.id for hits in view.search(vectors[:100], 10).hits() for hit in hits}
    assert ids.isdisjoint(f"id-{i:05d}" for i in range(100))


def test_faiss_cannot_delete_from_hnsw(vectors: np.ndarray) -> None:
    index = faiss.IndexHNSWFlat(32, 16)
    index.add(vectors[:100])
    with pytest.raises(RuntimeError, match="remove_ids not implemented"):
        index.remove_ids(np.arange(5))


def test_faiss_accepts_an_id_twice_and_a_view_shows_the_last_one(vectors: np.ndarray) -> None:
    index = faiss.IndexIDMap2(faiss.IndexFlatL2(32))
    index.add_with_ids(vectors[:1], np.array([7]))
    index.add_with_ids(vectors[:1], np.array([7]))
    assert index.search(vectors[:1], 2)[1].tolist() == [[7, 7]]

    growing = Growing(32, "l2", 0)
    growing.append(Rows(["a"], vectors[:1], [b"{}"]))
    growing.append(Rows(["a"], vectors[1:2], [b"{}"]))
    assert growing.view().find(["a"]).tolist() == [1]
    view = View(Version(0, 0), "l2", 32, ((growing.view(), np.array([False, True])),))
    [hits] = view.search(vectors[:1], 5).hits()
    assert [hit.id for hit in hits] == ["a"]
    assert hits[0].score == pytest.approx(-float(((vectors[0] - vectors[1]) ** 2).sum()), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_faiss_ends_the_process_when_a_mapped_index_is_written_to(
    tmp_path: Path, vectors: np.ndarray, kind: Kind
) -> None:
    save_index(build_index(vectors, kind, "dot"), tmp_path / "index")
    code = """
import faiss, numpy as np, sys
index = faiss.read_index(sys.argv[1], faiss.IO_FLAG_MMAP_IFC)
try:
    index.add(np.ones((1, 32), np.float32))
except RuntimeError:
    sys.exit(3)
"""
    ended = run_python(code, str(tmp_path / "index"))
    assert ended.returncode in (-signal.SIGABRT, -signal.SIGSEGV), ended


@pytest.mark.parametrize("kind", KINDS)
def test_an_open_index_has_no_way_to_be_written_to(tmp_path: Path, vectors: np.ndarray, kind: Kind) -> None:
    save_index(build_index(vectors, kind, "dot"), tmp_path / "index")
    index = OpenIndex.from_file(tmp_path / "index")
    public = {name for name in dir(index) if not name.startswith("_")}
    assert public == {"dim", "from_buffer", "from_file", "kind", "metric", "num_rows", "search", "vectors"}
    with pytest.raises(ValueError, match="read-only"):
        index._matrix[0] = 0
    copy = index.vectors(np.array([3]))
    copy[:] = 0  # a copy is the caller's own
    assert np.array_equal(index.vectors(np.array([3])), vectors[3:4])


def test_faiss_keeps_the_number_of_threads_per_calling_thread() -> None:
    code = """
import faiss, threading
faiss.omp_set_num_threads(1)
thread = threading.Thread(target=lambda: print(faiss.omp_get_max_threads()))
thread.start(); thread.join()
"""
    assert run_python(code, OMP_NUM_THREADS="3").stdout.strip() == "3"


def in_new_thread(call) -> int:
    seen = []
    thread = threading.Thread(target=lambda: (call(), seen.append(faiss.omp_get_max_threads())))
    thread.start()
    thread.join()
    return seen[0]


def test_each_thread_that_searches_gets_its_views_number_of_threads(vectors: np.ndarray) -> None:
    assert in_new_thread(lambda: use_threads(5)) == 5
    assert in_new_thread(lambda: use_threads(0)) == num_cpus()
    growing = Growing(32, "l2", 0)
    growing.append(rows_of(vectors))
    view = View(Version(0, 0), "l2", 32, ((growing.view(), None),), num_threads=4)
    assert in_new_thread(lambda: view.search(vectors[:8], 3)) == 4
    assert in_new_thread(lambda: view.search(vectors[:1], 3)) == 1, "one query over few rows is not worth a second one"


def test_faiss_refuses_a_filter_on_flat_fast_scan_and_ours_filters_every_kind(
    tmp_path: Path, vectors: np.ndarray
) -> None:
    fast_scan = faiss.index_factory(32, "PQ8x4fs")
    fast_scan.train(vectors)
    fast_scan.add(vectors)
    with pytest.raises(RuntimeError):
        fast_scan.search(vectors[:1], 3, params=faiss.SearchParameters(sel=faiss.IDSelectorRange(0, 5)))
    for kind in KINDS:
        save_index(build_index(vectors, kind, "dot"), tmp_path / kind)
        _, positions = OpenIndex.from_file(tmp_path / kind).search(vectors[:2], 9, np.arange(len(vectors)) < 5)
        assert [sorted(row) for row in positions.tolist()] == [[-1, -1, -1, -1, 0, 1, 2, 3, 4]] * 2
