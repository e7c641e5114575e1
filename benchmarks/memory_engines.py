"""The engines behind one interface, on the same vectors: FAISS in five forms, Qdrant's engine, LanceDB, raw FAISS.

    HSOKV_DATA_DIR=... python benchmarks/memory_engines.py      real sentence vectors; without it, generated ones

Queries per second are wall time of one caller with one thread; engines take turns. Recall@10 is against brute force.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from harness import Target, Timing, interleave, write_result
from memory_data import clustered, exact_neighbours, recall, sentences

from hsokv_ray.memory.stores import VectorStore, field, open_store

TOP_K = 10
STORES = {
    "FAISS flat": "faiss:{folder}/flat?index=flat&num_threads=1",
    "FAISS IVF-SQ8 (auto)": "faiss:{folder}/auto?index=auto&num_threads=1",
    "FAISS RaBitQ": "faiss:{folder}/rabitq?index=rabitq&num_threads=1",
    "FAISS IVF-PQ": "faiss:{folder}/ivfpq?index=ivfpq&num_threads=1",
    "FAISS HNSW": "faiss:{folder}/hnsw?index=hnsw&num_threads=1",
    "Qdrant engine": "qdrant:{folder}/qdrant",
    "LanceDB": "lancedb:{folder}/lance?index_rows=20000",
}
BATCHES = (1, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    real = sentences(1000, seed=0)
    rows, queries = real if real is not None else clustered(38_363, 1000, 384, seed=0)
    if args.quick:
        rows, queries = rows[:3000], queries[:100]
    what = "real sentence vectors" if real is not None else "generated vectors"
    with tempfile.TemporaryDirectory() as folder:
        tables, targets = measure(folder, rows, queries, what, repeats=3 if args.quick else 7)
    write_result("memory_engines", tables=tables, targets=targets, quick=args.quick)


def measure(
    folder: str, rows: np.ndarray, queries: np.ndarray, what: str, *, repeats: int
) -> tuple[dict[str, list[dict[str, Any]]], list[Target]]:
    nearest = exact_neighbours(rows, queries, TOP_K)
    stores, facts = {}, {}
    for name, uri in STORES.items():
        stores[name], facts[name] = build(uri.format(folder=folder), rows)
    searches: dict[str, Callable[[np.ndarray], Any]] = {
        name: lambda part, store=store: store.query(part, TOP_K) for name, store in stores.items()
    }
    searches |= raw_searches(rows)
    filtered = {
        name: (lambda part, store=store: store.query(part, TOP_K, field("tenth") == 3))
        for name, store in stores.items()
    }
    times = {batch: time_all(searches, queries, batch, repeats) for batch in BATCHES}
    filtered_times = time_all(filtered, queries, 1, repeats)
    table, targets = [], []
    for name in searches:
        row: dict[str, Any] = {"engine": name}
        for batch in BATCHES:
            row[f"queries_per_s_{batch}"] = per_second(times[batch][name], batch)
        if name in stores:
            found = [[int(hit.id) for hit in hits] for hits in stores[name].query(queries, TOP_K)]
            share = recall(found, nearest)
            row |= {"filtered_10_percent": per_second(filtered_times[name], 1), "recall_at_10": share} | facts[name]
            targets.append(Target(name=f"{name}: recall@10", value=share, bound=0.95, kind="at least"))
        else:
            share = recall(searches[name](queries)[1].tolist(), nearest)
            row |= {"filtered_10_percent": "", "recall_at_10": share, "build_s": "", "bytes_per_vector": ""}
        table.append(row)
    for store in stores.values():
        store.close()
    return {f"{len(rows)} {what}, {rows.shape[1]} dimensions, cosine, top 10": table}, targets


def build(uri: str, rows: np.ndarray) -> tuple[VectorStore, dict[str, Any]]:
    """Fill a new store in batches of 1000 and bring its index up to date."""
    store = open_store(uri)
    start = time.perf_counter()
    for first in range(0, len(rows), 1000):
        part = range(first, min(first + 1000, len(rows)))
        store.upsert([str(i) for i in part], rows[first : first + 1000], [{"tenth": i % 10} for i in part])
    store.optimize()
    seconds = time.perf_counter() - start
    size = store.stats().disk_bytes
    if size is None:
        size = sum(
            path.stat().st_size for path in Path(uri.partition(":")[2].partition("?")[0]).rglob("*") if path.is_file()
        )
    return store, {"build_s": seconds, "bytes_per_vector": size / len(rows)}


def raw_searches(rows: np.ndarray) -> dict[str, Callable[[np.ndarray], Any]]:
    """FAISS in this process, without ids, metadata or durability: the limit. Flat on both of its paths."""
    dim = rows.shape[1]
    flat = faiss.IndexFlatIP(dim)
    flat.add(rows)
    index = faiss.index_factory(
        dim, "IVF256,SQ8,RFlat" if len(rows) >= 39 * 256 else "IVF32,SQ8,RFlat", faiss.METRIC_INNER_PRODUCT
    )
    index.train(rows)
    index.add(rows)
    parameters = faiss.IndexRefineSearchParameters(k_factor=4, base_index_params=faiss.SearchParametersIVF(nprobe=16))

    def flat_with(threshold: int) -> Callable[[np.ndarray], Any]:
        def search(part: np.ndarray) -> Any:
            old = faiss.cvar.distance_compute_blas_threshold
            faiss.cvar.distance_compute_blas_threshold = threshold
            try:
                return flat.search(part, TOP_K)
            finally:
                faiss.cvar.distance_compute_blas_threshold = old

        return search

    return {
        "raw FAISS flat, as shipped": flat_with(128_000),
        "raw FAISS flat, BLAS always": flat_with(0),
        "raw FAISS IVF-SQ8 refined": lambda part: index.search(part, TOP_K, params=parameters),
    }


def time_all(
    searches: dict[str, Callable[[np.ndarray], Any]], queries: np.ndarray, batch: int, repeats: int
) -> dict[str, Timing]:
    parts = [queries[i : i + batch] for i in range(0, min(len(queries), 16 * batch), batch)]
    variants = {name: (lambda search=search: [search(part) for part in parts]) for name, search in searches.items()}
    return {
        name: _per_call(timing, len(parts))
        for name, timing in interleave(variants, repeats=repeats, clock="wall").items()
    }


def per_second(timing: Timing, batch: int) -> float:
    return batch / timing.median_s


def _per_call(timing: Timing, calls: int) -> Timing:
    return Timing(
        timing.median_s / calls, timing.lower_quartile_s / calls, timing.upper_quartile_s / calls, timing.repeats
    )


if __name__ == "__main__":
    main()
