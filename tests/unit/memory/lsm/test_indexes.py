"""Indexes against brute force: exact scores, right ids, enough hits, on every kind, metric and filter."""

from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.errors import StoreError
from hsokv_ray.memory.stores.lsm import indexes
from hsokv_ray.memory.stores.lsm.exact import search_exact
from hsokv_ray.memory.stores.lsm.indexes import (
    IVF_ROWS,
    ROWS_PER_LIST,
    Kind,
    OpenIndex,
    build_index,
    choose_kind,
    choose_nlist,
    save_index,
)
from hsokv_ray.memory.stores.lsm.threads import calibrate_exact_search
from hsokv_ray.memory.stores.types import Metric

KINDS: tuple[Kind, ...] = ("flat", "ivf_sq8", "rabitq", "ivfpq", "hnsw")
METRICS: tuple[Metric, ...] = ("cosine", "dot", "l2")


def vectors_of(num_rows: int, dim: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    topics = 3 * rng.standard_normal((max(1, num_rows // 50), dim), np.float32)
    return topics[rng.integers(len(topics), size=num_rows)] + rng.standard_normal((num_rows, dim), np.float32)


def all_scores(queries: np.ndarray, vectors: np.ndarray, metric: Metric) -> np.ndarray:
    queries, vectors = queries.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        return -((queries[:, None] - vectors[None]) ** 2).sum(-1)
    return queries @ vectors.T


def opened(vectors: np.ndarray, kind: Kind, metric: Metric, path: Path) -> OpenIndex:
    save_index(build_index(vectors, kind, metric), path)
    return OpenIndex.from_file(path)


@settings(max_examples=200)
@given(data=st.data())
def test_exact_search_is_brute_force_under_every_mask_and_batch_size(data: st.DataObject) -> None:
    num_rows, dim = data.draw(st.integers(0, 60)), data.draw(st.integers(1, 9))
    num_queries, top_k = data.draw(st.sampled_from([0, 1, 2, 3, 4, 9, 40])), data.draw(st.sampled_from([1, 3, 70]))
    metric: Metric = data.draw(st.sampled_from(METRICS))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    vectors = rng.standard_normal((num_rows, dim)).astype(np.float32)
    queries = rng.standard_normal((num_queries, dim)).astype(np.float32)
    mask = rng.random(num_rows) < data.draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    allowed = data.draw(st.sampled_from([None, mask]))
    scores, positions = search_exact(queries, vectors, metric, top_k, allowed)

    k = min(top_k, num_rows)
    assert scores.shape == positions.shape == (num_queries, k)
    reference = all_scores(queries, vectors, metric)
    usable = np.ones(num_rows, bool) if allowed is None else allowed
    best = -np.sort(-np.where(usable, reference, -np.inf), axis=1)[:, :k]
    np.testing.assert_allclose(scores, best, rtol=1e-5, atol=1e-5)
    hit = positions >= 0
    assert (hit == np.isfinite(best)).all()
    for row in range(num_queries):
        found = positions[row][hit[row]]
        assert len(set(found)) == len(found)
        assert usable[found].all()
        np.testing.assert_allclose(scores[row][hit[row]], reference[row, found], rtol=1e-5, atol=1e-5)


def test_small_l2_distances_between_long_vectors_keep_their_digits() -> None:
    calibrate_exact_search(64)  # 40 queries are then a matrix product
    vectors = 1000 + np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32)
    queries = vectors[:40] + np.float32(0.25)
    scores, positions = search_exact(queries, vectors, "l2", 3)
    expected = all_scores(queries, vectors, "l2")
    np.testing.assert_allclose(scores, np.take_along_axis(expected, positions, 1), rtol=1e-4)


def test_a_batch_finds_what_is_left_where_everything_near_is_not_allowed() -> None:
    vectors = np.random.default_rng(0).standard_normal((400, 8)).astype(np.float32)
    queries = np.ones((9, 8), np.float32)
    order = np.argsort(-(vectors @ queries[0]))
    allowed = np.ones(400, bool)
    allowed[order[:150]] = False
    _, positions = search_exact(queries, vectors, "dot", 3, allowed)
    assert positions.tolist() == [order[150:153].tolist()] * 9


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_exact_and_hits_complete_whatever_the_filter(tmp_path: Path, kind: Kind, metric: Metric) -> None:
    vectors = vectors_of(6000, 24)
    index = opened(vectors, kind, metric, tmp_path / "index")
    assert (index.kind, index.num_rows, index.dim) == (kind, 6000, 24)
    rng = np.random.default_rng(1)
    queries = vectors[rng.choice(6000, 9)] + rng.standard_normal((9, 24)).astype(np.float32) / 4
    reference = all_scores(queries, vectors, metric)
    recalls = []
    for share in (None, 0.0, 0.0005, 0.05, 0.5, 0.8, 0.99, 1.0):
        allowed = None if share is None else rng.random(6000) < share
        usable = np.ones(6000, bool) if allowed is None else allowed
        for queries_asked, top_k in ((1, 1), (1, 10), (9, 10), (9, 300), (2, 7000)):
            scores, positions = index.search(queries[:queries_asked], top_k, allowed)
            k = min(top_k, 6000)
            assert scores.shape == positions.shape == (queries_asked, k)
            assert ((positions >= 0).sum(1) == min(k, usable.sum())).all(), (share, queries_asked, top_k)
            for row in range(queries_asked):
                found = positions[row][positions[row] >= 0]
                assert len(set(found)) == len(found)
                assert usable[found].all()
                got = scores[row][positions[row] >= 0]
                np.testing.assert_allclose(got, reference[row, found], rtol=1e-4, atol=1e-4)
                assert (np.diff(got) <= 0).all()
                best = np.argsort(-np.where(usable, reference[row], -np.inf), kind="stable")[: len(found)]
                recalls.append(len(set(best) & set(found)) / max(1, len(found)) if len(found) else 1.0)
            assert np.isneginf(scores[positions < 0]).all()
    assert np.mean(recalls) >= 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_from_memory_a_file_and_a_second_build_are_the_same(tmp_path: Path, kind: Kind) -> None:
    vectors = vectors_of(5500, 16)
    faiss.omp_set_num_threads(1)  # HNSW on several threads depends on which one comes first
    index = opened(vectors, kind, "cosine", tmp_path / "a")
    save_index(build_index(vectors, kind, "cosine"), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    from_memory = OpenIndex.from_buffer((tmp_path / "a").read_bytes())
    for left, right in zip(index.search(vectors[:5], 10), from_memory.search(vectors[:5], 10), strict=True):
        assert np.array_equal(left, right)
    assert np.array_equal(from_memory.vectors(np.array([5, 0])), vectors[[5, 0]])


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 30, 67, 70])
def test_every_kind_finds_a_vector_by_itself_on_every_dim(tmp_path: Path, dim: int) -> None:
    vectors = vectors_of(IVF_ROWS, dim)
    for kind in KINDS:
        index = opened(vectors, choose_kind(kind, IVF_ROWS, dim), "l2", tmp_path / kind)
        scores, positions = index.search(vectors[:3], 2)
        np.testing.assert_allclose(scores[:, 0], 0, atol=1e-5)
        assert (positions >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_all_the_same_are_all_found(tmp_path: Path, kind: Kind) -> None:
    index = opened(np.ones((IVF_ROWS, 8), np.float32), kind, "l2", tmp_path / "index")
    scores, positions = index.search(np.ones((2, 8), np.float32), 500)
    assert (scores == 0).all()
    assert all(len(set(row)) == 500 and min(row) >= 0 for row in positions.tolist())


@given(st.integers(0, 10**7), st.sampled_from(["auto", *KINDS]))
def test_lists_always_have_39_rows_to_train_on(num_rows: int, asked) -> None:
    kind = choose_kind(asked, num_rows, 384)
    if kind in indexes.CANDIDATES:
        assert num_rows >= ROWS_PER_LIST * choose_nlist(num_rows)
        assert choose_nlist(num_rows) >= 100
    assert asked == "auto" or kind in (asked, "flat")


def test_coarse_codes_are_not_used_for_few_dimensions() -> None:
    assert [choose_kind(asked, 10**5, 32) for asked in ("rabitq", "ivfpq", "hnsw")] == ["ivf_sq8", "ivf_sq8", "hnsw"]


def test_auto_is_exact_while_small_and_indexed_when_large() -> None:
    assert [choose_kind("auto", n, 384) for n in (0, 1, 19_999, 20_000, 10**6)] == ["flat"] * 3 + ["ivf_sq8"] * 2
    assert [choose_kind("hnsw", n, 384) for n in (0, 100, 5000)] == ["flat", "flat", "hnsw"]
    assert [choose_kind("rabitq", n, 384) for n in (0, 1000, 5000)] == ["flat", "flat", "rabitq"]


def test_what_is_no_index_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"not an index at all")
    with pytest.raises(StoreError, match="is not a FAISS index or is damaged"):
        OpenIndex.from_file(tmp_path / "text")
    with pytest.raises(StoreError, match="is not a FAISS index or is damaged"):
        OpenIndex.from_file(tmp_path / "missing")
    with pytest.raises(StoreError, match="is not a FAISS index or is damaged"):
        OpenIndex.from_buffer(b"nothing")
    faiss.write_index(faiss.IndexIDMap(faiss.IndexFlatL2(4)), str(tmp_path / "foreign"))
    with pytest.raises(StoreError, match="was not written by hsokv_ray"):
        OpenIndex.from_file(tmp_path / "foreign")


def test_an_index_without_room_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing/index: cannot be written"):
        save_index(build_index(vectors_of(5, 4), "flat", "dot"), tmp_path / "missing" / "index")
