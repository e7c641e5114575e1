"""The shared memory against raw FAISS: readers in process, the way through an actor, writes, publication.

    python benchmarks/memory_shared.py            about 6 minutes; --quick proves only that it works

Raw FAISS is the same index file, read into memory whole, searched with the same parameters and one thread.
"""

import argparse
import itertools
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import faiss
import numpy as np
import psutil
import ray
from harness import Target, interleave, write_result
from memory_data import clustered
from threadpoolctl import threadpool_limits

from hsokv_ray.memory.shared import MemoryClient, MemoryConfig, connect, start_memory, stop_memory
from hsokv_ray.memory.stores import FaissConfig, VectorStore
from hsokv_ray.memory.stores.lsm.indexes import OpenIndex
from hsokv_ray.memory.stores.lsm.segment import Segment
from hsokv_ray.memory.stores.lsm.store import FaissStore
from hsokv_ray.memory.stores.lsm.view import View

DIM = 384
NAME = "benchmark"
CALLERS = 64
READERS = 8
WARM = "warm"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    num_rows = 20_000 if args.quick else 200_000
    faiss.omp_set_num_threads(1)
    threadpool_limits(1)  # a second BLAS thread spins for a while after each call and slows whoever has the core next
    with tempfile.TemporaryDirectory() as folder:
        ray.init(num_cpus=2, namespace="hsokv", object_store_memory=2**30, logging_level="ERROR", log_to_driver=False)
        start_memory(MemoryConfig(name=NAME, root=folder, index="ivf_sq8"))
        try:
            tables, targets = measure(num_rows, quick=args.quick)
        finally:
            stop_memory(NAME)
            ray.shutdown()
    write_result("memory_shared", tables=tables, targets=targets, quick=args.quick)


def measure(num_rows: int, *, quick: bool) -> tuple[dict[str, list[dict[str, Any]]], list[Target]]:
    vectors, queries = clustered(num_rows, 2048, DIM, seed=0)
    with connect(NAME) as local, connect(NAME, reads="remote") as remote:
        with tempfile.TemporaryDirectory() as folder, FaissStore(FaissConfig(path=folder)) as alone:
            writes = ingest(alone, vectors[: num_rows // 2], "the shard's engine, called in process")
        writes += ingest(local, vectors, "through the actor")
        local.optimize()
        reading, reading_targets = readers(local, queries, repeats=5 if quick else 15)
        remote_rows, remote_targets = through_actor(local, remote, queries, seconds=2 if quick else 8)
        visible = publication(local, samples=50 if quick else 300)
    with connect(NAME, WARM) as warm:
        warm.upsert([str(i) for i in range(6000)], vectors[:6000])
        warm.optimize()
    memory = memory_of_readers(queries, num_rows)
    tables = {
        f"Writes to one shard, {DIM} dimensions, fsync": writes,
        f"Readers in process, {num_rows} vectors, IVF-SQ8 with exact re-scoring": reading,
        f"Through the actor, {CALLERS} concurrent callers of one query each; and batches": remote_rows,
        "From acknowledged to visible in another reader": [visible],
        f"Memory of {READERS} reading processes": [memory],
    }
    best = {
        path: max(row["vectors_per_s"] for row in writes if row["path"] == path) for path in {r["path"] for r in writes}
    }
    targets = [
        *reading_targets,
        *remote_targets,
        *(
            Target(name=f"vectors/s written, {path}", value=best[path], bound=1e5, kind="at least")
            for path in sorted(best)
        ),
        Target(name="published to visible p99, ms", value=visible["p99_ms"], bound=100, kind="at most"),
        Target(name=f"memory of {READERS} readers / one", value=memory["ratio"], bound=1.1, kind="at most"),
    ]
    return tables, targets


def ingest(client: VectorStore, vectors: np.ndarray, path: str) -> list[dict[str, Any]]:
    """Write everything in batches of 1000, by one caller and by four."""
    half = len(vectors) // 2
    batches = [(start, min(start + 1000, len(vectors))) for start in range(0, len(vectors), 1000)]
    rows = []
    for callers, part in ((1, [b for b in batches if b[1] <= half]), (4, [b for b in batches if b[1] > half])):
        start = time.perf_counter()
        with ThreadPoolExecutor(callers) as pool:
            list(pool.map(lambda b: client.upsert([f"row {i}" for i in range(*b)], vectors[b[0] : b[1]]), part))
        seconds = time.perf_counter() - start
        rows.append(
            {"path": path, "callers": callers, "batch": 1000, "vectors_per_s": sum(b - a for a, b in part) / seconds}
        )
    return rows


def raw_search(view: View) -> Callable[[np.ndarray], Any]:
    """Return FAISS's own search over the view's only segment, its index read into memory whole."""
    [(segment, _)] = view.parts
    assert isinstance(segment, Segment)
    index = faiss.read_index(str(segment.folder / "index.faiss"))
    parameters = OpenIndex.from_file(segment.folder / "index.faiss")._default_parameters(10)
    return lambda queries: index.search(queries, 10, params=parameters)


def readers(client: MemoryClient, queries: np.ndarray, *, repeats: int) -> tuple[list[dict[str, Any]], list[Target]]:
    """Compare `View.search` and `client.query` with raw FAISS, one query and 32 at a time."""
    client.query(queries[:1])
    view = client.view()
    raw = raw_search(view)
    rows, targets = [], []
    for batch in (1, 32):
        parts = [queries[i : i + batch] for i in range(0, 512, batch)]
        variants: dict[str, Callable[[], Any]] = {
            "raw": lambda parts=parts: [raw(part) for part in parts],
            "view": lambda parts=parts: [view.search(part, 10) for part in parts],
            "query": lambda parts=parts: [client.query(part, top_k=10) for part in parts],
        }
        timings = interleave(variants, repeats=repeats, clock="wall")
        for name, timing in timings.items():
            rate = timings["raw"].median_s / timing.median_s
            per_call_ms = timing.median_s / len(parts) * 1e3
            rows.append({"batch": batch, "path": name, "ms_per_call": per_call_ms, "rate_of_raw": rate})
        rate = timings["raw"].median_s / timings["view"].median_s
        targets.append(Target(name=f"reader's queries/s / raw, batch {batch}", value=rate, bound=0.95, kind="at least"))
        targets.append(Target(name=f"reader's latency / raw, batch {batch}", value=1 / rate, bound=1.1, kind="at most"))
    return rows, targets


def through_actor(
    local: MemoryClient, remote: MemoryClient, queries: np.ndarray, *, seconds: float
) -> tuple[list[dict[str, Any]], list[Target]]:
    """Queries per second of concurrent callers through the actor, with raw FAISS before, between and after."""
    raw = raw_search(local.view())
    one = [queries[i : i + 1] for i in range(len(queries))]
    raws, remotes = [], []
    for _ in range(3):
        raws.append(rate_of(lambda i: raw(one[i % len(one)]), callers=1, seconds=seconds / 2))
        remotes.append(rate_of(lambda i: remote.query(one[i % len(one)]), callers=CALLERS, seconds=seconds))
    raw_rate, remote_rate = statistics.median(raws), statistics.median(remotes)
    alone = rate_of(lambda i: remote.query(one[i % len(one)]), callers=1, seconds=seconds / 2)
    rows = [
        {"path": "raw, one caller", "batch": 1, "per_s": raw_rate, "of_raw": 1.0},
        {"path": "actor, one caller", "batch": 1, "per_s": alone, "of_raw": alone / raw_rate},
        {
            "path": f"actor, {CALLERS} callers joined",
            "batch": 1,
            "per_s": remote_rate,
            "of_raw": remote_rate / raw_rate,
        },
    ]
    targets = [
        Target(
            name=f"remote queries/s of {CALLERS} callers / raw",
            value=remote_rate / raw_rate,
            bound=0.9,
            kind="at least",
        )
    ]
    for batch in (32, 256):
        parts = [queries[i : i + batch] for i in range(0, 2048, batch)]
        turn = itertools.cycle(parts)
        timings = interleave(
            {
                "raw": lambda turn=turn: raw(next(turn)),
                "actor": lambda turn=turn: remote.query(next(turn), top_k=10),
            },
            repeats=40,
            clock="wall",
        )
        ratio = timings["actor"].median_s / timings["raw"].median_s
        rows.append({"path": "actor", "batch": batch, "per_s": batch / timings["actor"].median_s, "of_raw": 1 / ratio})
        targets.append(Target(name=f"remote latency / raw, batch {batch}", value=ratio, bound=1.2, kind="at most"))
    return rows, targets


def rate_of(call: Callable[[int], Any], *, callers: int, seconds: float) -> float:
    """Return calls per second of `callers` threads over `seconds`."""
    counts = [0] * callers
    end = time.perf_counter() + seconds

    def work(number: int) -> None:
        while time.perf_counter() < end:
            call(counts[number] * callers + number)
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(i,)) for i in range(callers)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def publication(writer: MemoryClient, *, samples: int) -> dict[str, Any]:
    """Milliseconds from an acknowledged write of one client until another client's reader shows it."""
    rng = np.random.default_rng(1)
    delays = []
    with connect(NAME, consistency="eventual") as reader:
        reader.count()
        for i in range(samples):
            writer.upsert([f"published {i}"], rng.normal(size=(1, DIM)))
            acknowledged = time.perf_counter()
            written = writer.versions[0]
            while reader.view().version < written:
                time.sleep(0.0002)
            delays.append((time.perf_counter() - acknowledged) * 1e3)
    p50, p99 = np.percentile(delays, [50, 99])
    return {"samples": samples, "p50_ms": float(p50), "p99_ms": float(p99), "max_ms": max(delays)}


def memory_of_readers(queries: np.ndarray, num_rows: int) -> dict[str, Any]:
    """Proportional set size that attaching and searching adds, for one process and for eight at once."""
    context = multiprocessing.get_context("spawn")
    address = ray.get_runtime_context().gcs_address
    added = {}
    for number in (1, READERS):
        pipes = [context.Pipe() for _ in range(number)]
        processes = [context.Process(target=_reader_process, args=(end, address, queries)) for _, end in pipes]
        for process in processes:
            process.start()
        before = _pss_when_ready(pipes, processes)
        for pipe, _ in pipes:
            pipe.send("search")
        after = _pss_when_ready(pipes, processes)
        for pipe, _ in pipes:
            pipe.send("end")
        for process in processes:
            process.join()
        added[number] = after - before
    index_bytes = num_rows * DIM * 5
    return {
        "one_bytes": added[1],
        "eight_bytes": added[READERS],
        "ratio": added[READERS] / added[1],
        "index_bytes": index_bytes,
        "private_copies_would_be": READERS * index_bytes / added[1],
    }


def _pss_when_ready(pipes: list[Any], processes: list[Any]) -> int:
    """Wait until every process says that it is ready, then add up their proportional set sizes."""
    for pipe, _ in pipes:
        pipe.recv()
    return sum(psutil.Process(process.pid).memory_full_info().pss for process in processes)


def _reader_process(pipe: Connection, address: str, queries: np.ndarray) -> None:
    ray.init(address=address, namespace="hsokv", logging_level="ERROR", log_to_driver=False)
    faiss.omp_set_num_threads(1)
    threadpool_limits(1)
    batches = [queries[start : start + 32] for start in range(0, len(queries), 32)]
    with connect(NAME, WARM, reads="local") as warm:  # code and buffers are there before the index is
        for batch in batches:
            warm.query(batch)
    with connect(NAME, reads="local") as client:
        pipe.send("ready")
        pipe.recv()
        for batch in batches:
            client.query(batch)
        pipe.send("ready")
        pipe.recv()


if __name__ == "__main__":
    main()
