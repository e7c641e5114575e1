"""Recall@10 of every kind at its default effort, on real and on generated vectors."""

from dataclasses import dataclass
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


def opened(rows: np.ndarray, kind: Kind, path: Path) -> OpenIndex:
    save_index(build_index(rows, kind, "cosine"), path)
    return OpenIndex.from_file(path)


def recall_at_10(index: OpenIndex, queries: np.ndarray, rows: np.ndarray, allowed: np.ndarray | None = None) -> float:
    _, found = index.search(queries, 10, allowed)
    _, truth = search_exact(queries, rows, "cosine", 10, allowed)
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), truth.tolist(), strict=True)]))


def split(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return held-out queries and the rows to search."""
    return np.ascontiguousarray(vectors[:NUM_QUERIES]), np.ascontiguousarray(vectors[NUM_QUERIES:])


@dataclass
class Sentences:
    """38,363 real sentence vectors in random order: 1000 held-out queries and the rows to search."""

    queries: np.ndarray
    rows: np.ndarray
    is_book: np.ndarray
    """bool [num_queries + num_rows]; the others are from Wikipedia."""


@pytest.fixture(scope="module")
def sentences(real_data: Path) -> Sentences:
    with np.load(real_data / "sentence_vectors" / "minilm_sentences.npz") as file:
        vectors = unit(file["vectors"].astype(np.float32))
        is_book = np.repeat(file["doc_source"] == "book", np.diff(file["doc_offset"]))
    order = np.random.default_rng(0).permutation(len(vectors))
    return Sentences(*split(vectors[order]), is_book[order])


@pytest.fixture(scope="module", params=APPROXIMATE)
def sentence_index(
    request: pytest.FixtureRequest, sentences: Sentences, tmp_path_factory: pytest.TempPathFactory
) -> OpenIndex:
    assert choose_kind(request.param, len(sentences.rows), 384) == request.param
    return opened(sentences.rows, request.param, tmp_path_factory.mktemp("real") / request.param)


@pytest.mark.real_data
def test_every_kind_reaches_its_recall_on_real_sentences(sentences: Sentences, sentence_index: OpenIndex) -> None:
    assert recall_at_10(sentence_index, sentences.queries, sentences.rows) >= 0.95


@pytest.mark.real_data
@pytest.mark.parametrize("share", [0.02, 0.2, 0.6, 0.97])
def test_recall_holds_under_filters_on_real_sentences(
    sentences: Sentences, sentence_index: OpenIndex, share: float
) -> None:
    allowed = np.random.default_rng(1).random(len(sentences.rows)) < share
    assert recall_at_10(sentence_index, sentences.queries[:200], sentences.rows, allowed) >= 0.95


@pytest.mark.real_data
@pytest.mark.parametrize("batch", [1, 50])
@pytest.mark.parametrize("wanted", ["books", "Wikipedia"])
def test_recall_holds_where_the_filter_leaves_another_subject_than_the_query_has(
    sentences: Sentences, sentence_index: OpenIndex, wanted: str, batch: int
) -> None:
    asked_book, allowed = np.split(sentences.is_book if wanted == "books" else ~sentences.is_book, [NUM_QUERIES])
    queries = sentences.queries[~asked_book][:100]
    pieces = [queries[i : i + batch] for i in range(0, len(queries), batch)]
    assert np.mean([recall_at_10(sentence_index, piece, sentences.rows, allowed) for piece in pieces]) >= 0.95


def test_what_auto_chooses_reaches_its_recall_on_100_000_generated_vectors(tmp_path: Path) -> None:
    queries, rows = split(sentence_like(101_000))
    index = opened(rows, choose_kind("auto", len(rows), 384), tmp_path / "index")
    assert index.kind == "ivf_sq8"
    assert recall_at_10(index, queries, rows) >= 0.95


@pytest.mark.parametrize("kind", ["rabitq", "ivfpq"])
def test_coarse_codes_reach_their_recall_where_few_directions_vary_most(tmp_path: Path, kind: Kind) -> None:
    queries, rows = split(sentence_like(11_000))
    assert recall_at_10(opened(rows, kind, tmp_path / "index"), queries, rows) >= 0.95
