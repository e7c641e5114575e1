"""Recall of Qdrant's engine and LanceDB with their indexes, at default settings, on real sentence vectors."""

from pathlib import Path

import numpy as np
import pytest

from hsokv_ray.memory.stores import LanceConfig, QdrantConfig, VectorStore, open_store

NUM_QUERIES = 300
TOP_K = 10
NUM_ROWS = 20_000
"""A part of the 38,363: enough for every engine to build its index, in seconds."""


@pytest.fixture(scope="module")
def sentences(real_data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows and held-out queries, float32 [n, 384] at unit length, in random order."""
    with np.load(real_data / "sentence_vectors" / "minilm_sentences.npz") as file:
        vectors = file["vectors"].astype(np.float32)
    vectors = vectors[np.random.default_rng(0).permutation(len(vectors))]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[NUM_QUERIES : NUM_QUERIES + NUM_ROWS], vectors[:NUM_QUERIES]


@pytest.fixture(scope="module", params=["qdrant", "lancedb"])
def indexed(request: pytest.FixtureRequest, sentences: tuple, tmp_path_factory: pytest.TempPathFactory):
    """A store with an index over the rows; row i is in the classes i % 10 and i % 100."""
    folder = str(tmp_path_factory.mktemp("recall"))
    # LanceDB's default builds from 50,000 rows on; how it searches afterwards is its default
    config = QdrantConfig(path=folder) if request.param == "qdrant" else LanceConfig(uri=folder, index_rows=10_000)
    rows, _ = sentences
    with open_store(config) as store:
        for start in range(0, len(rows), 5000):
            numbers = range(start, min(start + 5000, len(rows)))
            metadata = [{"i": i, "tenth": i % 10, "hundredth": i % 100} for i in numbers]
            store.upsert([str(i) for i in numbers], rows[start : start + 5000], metadata)
        store.optimize()
        yield store


def recall(store: VectorStore, rows: np.ndarray, queries: np.ndarray, passes: np.ndarray, filter: dict | None) -> float:
    """The share of the exact nearest ten that a query finds, by score: equal scores are equally near."""
    scores = np.where(passes, queries @ rows.T, -np.inf)
    tenth = np.sort(scores, axis=1)[:, -TOP_K]
    found = 0
    for i, hits in enumerate(store.query(queries, TOP_K, filter)):
        assert len(hits) == TOP_K
        ids = [int(hit.id) for hit in hits]
        assert [hit.score for hit in hits] == pytest.approx(scores[i, ids].tolist(), abs=1e-5)
        found += int((scores[i, ids] >= tenth[i] - 1e-6).sum())
    return found / (len(queries) * TOP_K)


@pytest.mark.real_data
def test_recall_at_10_is_at_least_95_percent(indexed: VectorStore, sentences: tuple) -> None:
    rows, queries = sentences
    assert indexed.stats().index in ("HNSW", "IVF_FLAT")
    assert recall(indexed, rows, queries, np.full(len(rows), True), None) >= 0.95


@pytest.mark.real_data
@pytest.mark.parametrize(("key", "num_classes"), [("tenth", 10), ("hundredth", 100)])
def test_recall_within_a_filter_is_at_least_95_percent(
    indexed: VectorStore, sentences: tuple, key: str, num_classes: int
) -> None:
    rows, queries = sentences
    passes = np.arange(len(rows)) % num_classes == 3
    assert recall(indexed, rows, queries[:100], passes, {key: 3}) >= 0.95
    assert recall(indexed, rows, queries[:100], ~passes, {"$not": {key: 3}}) >= 0.95
    assert recall(indexed, rows, queries[:100], np.arange(len(rows)) >= 9000, {"i": {"$gte": 9000}}) >= 0.95


@pytest.mark.real_data
def test_rows_written_after_the_index_are_found(indexed: VectorStore, sentences: tuple) -> None:
    far = -sentences[1][:50]  # sentences repeat, their opposites do not occur
    new = [f"new-{i}" for i in range(50)]
    indexed.upsert(new, far)
    try:
        assert all(hits[0].id in new and hits[0].score > 0.9999 for hits in indexed.query(far, 1))
    finally:
        indexed.delete(new)
    assert not {hits[0].id for hits in indexed.query(far, 1)} & set(new)
