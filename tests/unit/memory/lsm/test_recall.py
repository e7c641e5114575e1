"""Recall@10 of every kind at its default effort, on real and on generated vectors."""

from pathlib import Path

import numpy as np
import pytest

from hsokv_ray.memory.stores.lsm.exact import search_exact
from hsokv_ray.memory.stores.lsm.indexes import Kind, OpenIndex, build_index, choose_kind, save_index
from hsokv_ray.memory.stores.lsm.threads import calibrate_exact_search, use_threads

APPROXIMATE: tuple[Kind, ...] = ("ivf_sq8", "rabitq", "ivfpq", "hnsw")
NUM_QUERIES = 1000


@pytest.fixture(autouse=True)
def _threads() -> None:
    use_threads(0)
    calibrate_exact_search(384)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def sentence_like(num_rows: int, dim: int = 384) -> np.ndarray:
    """Topics of about 100 rows each, in a space whose n-th direction varies as 1 / sqrt(n); unit length."""
    rng = np.random.default_rng(0)
    scale = (1 / np.sqrt(1 + np.arange(dim))).astype(np.float32)
    topics = rng.standard_normal((num_rows // 100, dim), np.float32)
    rows = topics[rng.integers(len(topics), size=num_rows)] + rng.standard_normal((num_rows, dim), np.float32)
    return unit(rows * scale)


def recall_at_10(vectors: np.ndarray, kind: Kind, path: Path, allowed: np.ndarray | None = None) -> float:
    """Search for the first 1000 among the others."""
    queries, rows = np.ascontiguousarray(vectors[:NUM_QUERIES]), np.ascontiguousarray(vectors[NUM_QUERIES:])
    save_index(build_index(rows, kind, "cosine"), path)
    _, found = OpenIndex.from_file(path).search(queries, 10, allowed)
    _, truth = search_exact(queries, rows, "cosine", 10, allowed)
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), truth.tolist(), strict=True)]))


@pytest.fixture(scope="module")
def sentences(real_data: Path) -> np.ndarray:
    """38,363 real sentence vectors, float32 [n, 384], shuffled so that queries come from every document."""
    with np.load(real_data / "sentence_vectors" / "minilm_sentences.npz") as file:
        vectors = unit(file["vectors"].astype(np.float32))
    return vectors[np.random.default_rng(0).permutation(len(vectors))]


@pytest.mark.real_data
@pytest.mark.parametrize("kind", APPROXIMATE)
def test_every_kind_reaches_its_recall_on_real_sentences(sentences: np.ndarray, tmp_path: Path, kind: Kind) -> None:
    assert choose_kind(kind, len(sentences), 384) == kind
    assert recall_at_10(sentences, kind, tmp_path / "index") >= 0.95


@pytest.mark.real_data
@pytest.mark.parametrize("share", [0.02, 0.2, 0.6])
def test_recall_holds_under_filters_on_real_sentences(sentences: np.ndarray, tmp_path: Path, share: float) -> None:
    allowed = np.random.default_rng(1).random(len(sentences) - NUM_QUERIES) < share
    for kind in ("ivfpq", "hnsw"):
        assert recall_at_10(sentences, kind, tmp_path / kind, allowed) >= 0.95


def test_what_auto_chooses_reaches_its_recall_on_100_000_generated_vectors(tmp_path: Path) -> None:
    assert recall_at_10(sentence_like(101_000), choose_kind("auto", 100_000, 384), tmp_path / "index") >= 0.95


@pytest.mark.parametrize("kind", ["rabitq", "ivfpq"])
def test_coarse_codes_reach_their_recall_where_few_directions_vary_most(tmp_path: Path, kind: Kind) -> None:
    assert recall_at_10(sentence_like(21_000), kind, tmp_path / "index") >= 0.95
