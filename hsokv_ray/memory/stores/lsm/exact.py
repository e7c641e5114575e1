"""Exact search: every allowed row is compared.

    scores, positions = search_exact(queries, vectors, "cosine", 10, allowed)

Scores are larger for nearer rows, whatever the metric. Three ways lead to the same result: FAISS's scan with a
selector (best for few queries), a matrix product over gathered rows (many queries, few allowed rows), and a matrix
product over all rows with some to spare (many queries, nearly all rows allowed).
"""

from typing import Any

import faiss
import numpy as np

from hsokv_ray.memory.stores.lsm.allowed import Allowed, as_allowed
from hsokv_ray.memory.stores.lsm.threads import compares_one_by_one
from hsokv_ray.memory.stores.types import Metric

_BATCH = 4
"""Queries from which one matrix product is worth gathering rows for."""
_EVERY_ROW = faiss.IDSelectorAll()
_FLOATS_AT_ONCE = 2**22
_SPARE = 16
"""Rows fetched beyond top_k where some rows are not allowed."""


def search_exact(
    queries: np.ndarray,
    vectors: np.ndarray,
    metric: Metric,
    top_k: int,
    allowed: Allowed | np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores float32 [n, k] and positions int64 [n, k] of the nearest allowed rows, nearest first.

    Args:
        queries: float32 [n, d], contiguous.
        vectors: float32 [num_rows, d], contiguous.
        top_k: k is the smaller of this and num_rows.
        allowed: rows that may be returned; where fewer than k are, -1 and -inf fill up.
    """
    num_rows = len(vectors)
    k = min(top_k, num_rows)
    allowed = as_allowed(allowed, num_rows)
    if not k or not len(queries) or (allowed is not None and not allowed.count):
        return none_found(len(queries), k)
    if allowed is None:
        return _scan(queries, vectors, metric, k, None)
    if len(queries) < _BATCH:
        return _scan(queries, vectors, metric, k, allowed)
    if allowed.count * 2 <= num_rows:
        return _gathered(queries, vectors, metric, k, allowed)
    return _with_spare(queries, vectors, metric, k, allowed)


def none_found(num_queries: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and positions [num_queries, k] that say that nothing was found."""
    return np.full((num_queries, k), -np.inf, np.float32), np.full((num_queries, k), -1, np.int64)


def to_scores(distances: np.ndarray, positions: np.ndarray, metric: Metric) -> np.ndarray:
    """Turn what FAISS returns into scores, in place: larger is nearer, -inf where there is no row."""
    if metric == "l2":
        np.negative(distances, out=distances)
    if has_gaps(positions):
        distances[positions < 0] = -np.inf
    return distances


def has_gaps(positions: np.ndarray) -> bool:
    """Return whether a row of `positions` [n, k], k at least 1, ends with -1."""
    if len(positions) == 1:
        return positions.item(-1) < 0  # ten times as fast as the general way, which shows at one query
    return bool((positions[:, -1] < 0).any())


def keep_allowed(scores: np.ndarray, positions: np.ndarray, k: int, allowed: Allowed) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `k` allowed rows of each query, in their order; -1 and -inf where there are fewer."""
    good = allowed.mask[positions] & (positions >= 0)
    order = np.argsort(~good, axis=1, kind="stable")[:, :k]
    scores, positions, good = (np.take_along_axis(a, order, 1) for a in (scores, positions, good))
    scores[~good], positions[~good] = -np.inf, -1
    return scores, positions


def _scan(
    queries: np.ndarray, vectors: np.ndarray, metric: Metric, k: int, allowed: Allowed | None
) -> tuple[np.ndarray, np.ndarray]:
    num_queries, dim = queries.shape
    scores, positions = np.empty((num_queries, k), np.float32), np.empty((num_queries, k), np.int64)
    search = faiss.knn_L2sqr if metric == "l2" else faiss.knn_inner_product
    pointer = faiss.swig_ptr
    sizes = (dim, num_queries, len(vectors), k)
    selector: tuple[Any, ...] = () if allowed is None else (allowed.selector,)
    if not selector and compares_one_by_one(num_queries, dim):
        selector = (_EVERY_ROW,)  # FAISS multiplies no matrices where there is a selector
    if metric == "l2" and selector:
        selector = (None, *selector)  # its squared lengths of the vectors, which it computes itself
    search(pointer(queries), pointer(vectors), *sizes, pointer(scores), pointer(positions), *selector)
    if metric == "l2" and not selector and num_queries > 1 and not has_gaps(positions):
        return _measured_again(queries, vectors, positions)
    return to_scores(scores, positions, metric), positions


def _measured_again(queries: np.ndarray, vectors: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return l2 scores and positions, all at least 0, from differences.

    A matrix product gives |q|^2 + |v|^2 - 2 q.v, which leaves few digits of a small distance between long vectors.
    """
    num_queries, k = positions.shape
    scores = np.empty((num_queries, k), np.float32)
    step = max(1, _FLOATS_AT_ONCE // (k * queries.shape[1]))
    for start in range(0, num_queries, step):
        differences = vectors[positions[start : start + step]] - queries[start : start + step, None]
        scores[start : start + step] = -np.einsum("nkd,nkd->nk", differences, differences)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)


def _gathered(
    queries: np.ndarray, vectors: np.ndarray, metric: Metric, k: int, allowed: Allowed
) -> tuple[np.ndarray, np.ndarray]:
    scores, positions = none_found(len(queries), k)
    found = min(k, allowed.count)
    chosen = allowed.positions
    scores[:, :found], within = _scan(queries, vectors[chosen], metric, found, None)
    positions[:, :found] = chosen[within]
    return scores, positions


def _with_spare(
    queries: np.ndarray, vectors: np.ndarray, metric: Metric, k: int, allowed: Allowed
) -> tuple[np.ndarray, np.ndarray]:
    """Search all rows for more than k and keep those allowed; queries left with too few are searched again."""
    num_rows = len(vectors)
    fetch = min(num_rows, 2 * k * num_rows // allowed.count + _SPARE)
    scores, positions = _scan(queries, vectors, metric, fetch, None)
    scores, positions = keep_allowed(scores, positions, k, allowed)
    if fetch < num_rows and has_gaps(positions):
        short = np.flatnonzero(positions[:, -1] < 0)
        scores[short], positions[short] = _scan(queries[short], vectors, metric, k, allowed)
    return scores, positions
