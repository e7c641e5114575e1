"""The FAISS store as work grows: 10 thousand, 100 thousand, 1 million generated vectors of 384 dimensions.

    python benchmarks/memory_scale.py             about 15 minutes and 8 GB of disk; --quick stops at 20 thousand

Per size: writing (batches of 1000 by four callers, fsync), the time from opening the folder after SIGKILL to the first
answer, bringing the index up to date, bytes, queries per second, p99, recall.
"""

import argparse
import multiprocessing
import os
import signal
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from harness import Target, write_result
from memory_data import clustered, exact_neighbours, recall

from hsokv_ray.memory.stores import FaissConfig
from hsokv_ray.memory.stores.lsm.store import FaissStore

DIM = 384
TOP_K = 10
CALLERS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    sizes = [2_000, 20_000] if args.quick else [10_000, 100_000, 1_000_000]
    vectors, queries = clustered(sizes[-1], 1000, DIM, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(Path(folder) / str(size), vectors[:size], queries) for size in sizes]
    largest = rows[-1]
    targets = [
        Target(
            name="vectors/s written, best size", value=max(r["written_per_s"] for r in rows), bound=1e5, kind="at least"
        ),
        Target(name=f"{sizes[-1]} vectors recovered, s", value=largest["recovery_s"], bound=10, kind="at most"),
        *(
            Target(name=f"recall@10, {r['vectors']}", value=r["recall_at_10"], bound=0.95, kind="at least")
            for r in rows
        ),
    ]
    write_result("memory_scale", tables={f"FAISS store, {DIM} dimensions": rows}, targets=targets, quick=args.quick)


def measure(folder: Path, vectors: np.ndarray, queries: np.ndarray) -> dict[str, Any]:
    written_s = write_and_die(folder, vectors)
    start = time.perf_counter()
    store = FaissStore(FaissConfig(path=str(folder), num_threads=1))
    store.query(queries[:1])
    recovery_s = time.perf_counter() - start
    assert store.count() == len(vectors)
    start = time.perf_counter()
    store.optimize()
    optimize_s = time.perf_counter() - start
    latencies_ms = [timed_ms(store, query) for query in np.concatenate([queries[:100], queries])][100:]
    batch_s = statistics.median(timed_ms(store, queries[i : i + 32]) for i in range(0, 960, 32)) / 1e3
    nearest = exact_neighbours(vectors, queries, TOP_K)
    found = [[int(hit.id.removeprefix("row ")) for hit in hits] for hits in store.query(queries, TOP_K)]
    size = store.stats().disk_bytes or 0
    kinds = {segment["kind"] for segment in store.stats().details["segments"]}
    store.close()
    return {
        "vectors": len(vectors),
        "index": ", ".join(sorted(kinds)) or "growing",
        "written_per_s": len(vectors) / written_s,
        "optimize_s": optimize_s,
        "disk_bytes_per_vector": size / len(vectors),
        "queries_per_s": 1e3 / statistics.median(latencies_ms),
        "queries_per_s_batch_32": 32 / batch_s,
        "p50_ms": statistics.median(latencies_ms),
        "p99_ms": float(np.percentile(latencies_ms, 99)),
        "recall_at_10": recall(found, nearest),
        "recovery_s": recovery_s,
    }


def write_and_die(folder: Path, vectors: np.ndarray) -> float:
    """Write `vectors` in another process, which is killed right after; return the seconds that writing took."""
    context = multiprocessing.get_context("spawn")
    matrix = folder.with_suffix(".npy")
    np.save(matrix, vectors)
    ours, theirs = context.Pipe()
    process = context.Process(target=_write, args=(theirs, folder, matrix))
    process.start()
    seconds = ours.recv()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    matrix.unlink()
    return seconds


def _write(pipe: Connection, folder: Path, matrix: Path) -> None:
    vectors = np.load(matrix, mmap_mode="r")
    store = FaissStore(FaissConfig(path=str(folder), num_threads=1))
    batches = range(0, len(vectors), 1000)

    def write(first: int) -> None:
        part = vectors[first : first + 1000]
        store.upsert([f"row {i}" for i in range(first, first + len(part))], part)

    start = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(write, batches))
    pipe.send(time.perf_counter() - start)
    signal.pause()


def timed_ms(store: FaissStore, queries: np.ndarray) -> float:
    start = time.perf_counter()
    store.query(queries, TOP_K)
    return (time.perf_counter() - start) * 1e3


if __name__ == "__main__":
    main()
