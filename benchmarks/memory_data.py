"""Vectors for the memory benchmarks: generated ones of any number, and the real sentence vectors where they are."""

from pathlib import Path

import numpy as np

from hsokv_ray import env


def clustered(num_rows: int, num_queries: int, dim: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return unit vectors as sentence encoders spread them: rows [n, d] and queries [m, d], float32.

    A low-dimensional mixture (centres of 64 latent dimensions, three levels of spread) plus noise; queries are drawn
    like rows and are not among them.
    """
    rng = np.random.default_rng(seed)
    total = num_rows + num_queries
    centres = rng.normal(size=(max(total // 200, 8), 64)).astype(np.float32)
    latent = centres[rng.integers(len(centres), size=total)]
    latent = latent + rng.normal(size=latent.shape).astype(np.float32) * rng.choice([0.3, 0.6, 1.0], size=(total, 1))
    basis = rng.normal(size=(64, dim)).astype(np.float32) / 8
    vectors = np.empty((total, dim), np.float32)
    for start in range(0, total, 50_000):
        part = latent[start : start + 50_000].astype(np.float32) @ basis
        part += 0.25 * rng.normal(size=part.shape).astype(np.float32)
        vectors[start : start + 50_000] = part / np.linalg.norm(part, axis=1, keepdims=True)
    order = rng.permutation(total)
    return vectors[order[:num_rows]], vectors[order[num_rows:]]


def sentences(num_queries: int, *, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the real sentence vectors as rows and held-out queries, or None where HSOKV_DATA_DIR is not set."""
    folder = env.data_dir()
    if folder is None:
        return None
    path: Path = folder / "sentence_vectors" / "minilm_sentences.npz"
    vectors = np.load(path)["vectors"].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = np.random.default_rng(seed).permutation(len(vectors))
    return vectors[order[num_queries:]], vectors[order[:num_queries]]


def recall(found: list[list[int]], nearest: np.ndarray) -> float:
    """Return the share of the nearest positions [m, k] that were found, row by row."""
    hits = [len(set(a) & set(b)) for a, b in zip(found, nearest.tolist(), strict=True)]
    return sum(hits) / nearest.size


def exact_neighbours(rows: np.ndarray, queries: np.ndarray, top_k: int) -> np.ndarray:
    """Return the positions [m, k] of the nearest rows by inner product, by brute force."""
    best = []
    for start in range(0, len(queries), 64):
        scores = queries[start : start + 64] @ rows.T
        part = np.argpartition(-scores, top_k, axis=1)[:, :top_k]
        best.append(np.take_along_axis(part, np.argsort(-np.take_along_axis(scores, part, 1), axis=1), 1))
    return np.concatenate(best)
