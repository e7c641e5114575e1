"""How many threads FAISS uses, and from which batch size on exact search multiplies matrices.

    use_threads(0)                 # this thread's searches may use every CPU that this process may use
    calibrate_exact_search(384)    # once per process and size of vectors; later calls return at once

OpenMP keeps the number of threads per calling thread: a new thread starts with the default, whatever was set elsewhere,
so `use_threads` is called by the thread that searches, before it searches.

FAISS compares one by one where num_queries * dim < faiss.cvar.distance_compute_blas_threshold and multiplies matrices
otherwise. The wheel's 128000 is 10 to 20 times too slow for batches over more vectors than fit in the cache
(facebookresearch/faiss pull request 5022).
"""

import os
import threading
import time

import faiss
import numpy as np

_lock = threading.Lock()
_matrices_from: dict[int, int] = {}
"""The number of queries from which matrices win, by the size class of the vectors."""
_NEVER = 2**31 - 1
_FEW, _MANY = 4, 32
"""Queries that are timed."""
_EARLIEST, _LATEST = 2, 8
"""Queries from which matrices may be chosen; the timing decides within."""
_MOST_ROWS = 4096
_ROWS_BYTES = 4 * 2**20
"""Size of the vectors that calibration compares with: it takes some milliseconds."""


def use_threads(n: int) -> None:
    """Let FAISS use `n` threads when this thread calls it; 0 means every CPU this process may use."""
    faiss.omp_set_num_threads(n or num_cpus())


def num_cpus() -> int:
    """Return how many CPUs this process may use, at most what OMP_NUM_THREADS allows."""
    return _NUM_CPUS


def calibrate_exact_search(dim: int) -> None:
    """Time both ways of exact search on vectors of about `dim`, once; FAISS then takes matrices for batches.

    Sets faiss.cvar.distance_compute_blas_threshold, one number for the whole process, as low as any size of vectors
    wants it; `compares_one_by_one` says when a search should not follow it.
    """
    size = _size_class(dim)
    if size in _matrices_from:
        return
    with _lock:
        if size not in _matrices_from:
            _matrices_from[size] = _measure(size)
            lowest = min(num_queries * (size // 2 + 1) for size, num_queries in _matrices_from.items())
            faiss.cvar.distance_compute_blas_threshold = lowest


def compares_one_by_one(num_queries: int, dim: int) -> bool:
    """Return whether so few queries are faster without a matrix product though FAISS's threshold would take one."""
    few = num_queries < _matrices_from.get(_size_class(dim), _FEW)
    return few and num_queries * dim >= faiss.cvar.distance_compute_blas_threshold


def _size_class(dim: int) -> int:
    return 1 << max(3, (dim - 1).bit_length())


def _measure(dim: int) -> int:
    """Return the number of queries from which multiplying matrices is faster."""
    num_rows = min(_MOST_ROWS, max(256, _ROWS_BYTES // (4 * dim)))
    vectors = np.random.default_rng(0).standard_normal((num_rows, dim), np.float32)
    before, threads = faiss.cvar.distance_compute_blas_threshold, faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        few, many = ([_fastest(vectors[:n], vectors, threshold) for threshold in (_NEVER, 1)] for n in (_FEW, _MANY))
    finally:
        faiss.cvar.distance_compute_blas_threshold = before
        faiss.omp_set_num_threads(threads)
    return _crossing(few, many)


def _crossing(few_s: list[float], many_s: list[float]) -> int:
    """Return how many queries it takes until matrices win, from the seconds of [one by one, as matrices].

    One by one costs the same per query; a matrix product costs something at once and less per query.
    """
    each_s = many_s[0] / _MANY
    each_matrix_s = (many_s[1] - few_s[1]) / (_MANY - _FEW)
    if each_matrix_s >= each_s:
        return _LATEST  # the machine was busy with something else: matrices do win over vectors beyond the cache
    at_once_s = few_s[1] - _FEW * each_matrix_s
    return int(np.clip(np.ceil(at_once_s / (each_s - each_matrix_s)), _EARLIEST, _LATEST))


def _fastest(queries: np.ndarray, vectors: np.ndarray, threshold: int) -> float:
    faiss.cvar.distance_compute_blas_threshold = threshold
    times_s = []
    for _ in range(3):
        start = time.perf_counter()
        faiss.knn(queries, vectors, 10, metric=faiss.METRIC_INNER_PRODUCT)
        times_s.append(time.perf_counter() - start)
    return min(times_s)


def _count_cpus() -> int:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, faiss.omp_get_max_threads()))


_NUM_CPUS = _count_cpus()
