"""The shared memory against raw FAISS: readers in process, the way through an actor, writes, publication.

    python benchmarks/memory_shared.py            about 6 minutes; --quick proves only that it works

Raw FAISS is the same index file, read into memory whole, searched with the same parameters and one thread.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # read when FAISS and NumPy are imported

# ruff: noqa: E402, I001
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
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import psutil
import ray
from harness import Target, interleave, write_result
from memory_data import clustered

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
ENGINE = "the shard's engine, in process"
WARM = "warm"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    num_rows = 20_000 if args.quick else 200_000
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
            writes = ingest({ENGINE: alone, "through the actor": local}, vectors, repeats=5)
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
    best: dict[str, float] = {}
    for row in writes:
        best[row["path"]] = max(row["vectors_per_s"], best.get(row["path"], 0.0))
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


def ingest(paths: dict[str, VectorStore], vectors: np.ndarray, *, repeats: int) -> list[dict[str, Any]]:
    """Write batches of 1000 by one caller and by four, in turns; medians of the repeats."""
    rates: dict[tuple[str, int], list[float]] = {}
    parts = np.array_split(vectors, repeats * 2)
    for turn, (callers, part) in enumerate(zip(itertools.cycle((1, 4)), parts, strict=False)):
        for path, store in paths.items():
            rates.setdefault((path, callers), []).append(write_rate(store, part, callers, f"turn {turn}"))
    return [
        {
            "path": path,
            "callers": callers,
            "vectors_per_s": statistics.median(each),
            "worst": min(each),
            "best": max(each),
        }
        for (path, callers), each in rates.items()
    ]


def write_rate(store: VectorStore, vectors: np.ndarray, callers: int, prefix: str) -> float:
    """Return vectors per second of one pass over `vectors`."""

    def write(first: int) -> None:
        part = vectors[first : first + 1000]
        store.upsert([f"{prefix} {i}" for i in range(first, first + len(part))], part)

    start = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(write, range(0, len(vectors), 1000)))
    return len(vectors) / (time.perf_counter() - start)


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
    """Memory of an index with one reading process and with eight, the shard's writer counted in both.

    The proportional share (PSS) that every process has of the mapped index files, which adds up to what is in memory
    once, plus the private memory that attaching and searching adds to each reader.
    """
    context = multiprocessing.get_context("spawn")
    address = ray.get_runtime_context().gcs_address
    with connect(NAME) as client:
        writer = client.info().pid
    cost = {}
    for number in (1, READERS):
        pipes = [context.Pipe() for _ in range(number)]
        processes = [context.Process(target=_reader_process, args=(end, address, queries)) for _, end in pipes]
        for process in processes:
            process.start()
        ids = [process.pid for process in processes]
        _all_ready(pipes)
        private = sum(map(_private_bytes, ids))
        for pipe, _ in pipes:
            pipe.send("search")
        _all_ready(pipes)
        private = sum(map(_private_bytes, ids)) - private
        cost[number] = {"mapped": sum(map(_index_bytes, [writer, *ids])), "private": private}
        for pipe, _ in pipes:
            pipe.send("end")
        for process in processes:
            process.join()
    totals = {number: each["mapped"] + each["private"] for number, each in cost.items()}
    return {
        "one_reader_bytes": totals[1],
        "eight_readers_bytes": totals[READERS],
        "of_which_private": cost[READERS]["private"],
        "ratio": totals[READERS] / totals[1],
        "raw_vector_bytes": num_rows * DIM * 4,
    }


def _all_ready(pipes: list[Any]) -> None:
    for pipe, _ in pipes:
        pipe.recv()


def _private_bytes(pid: int) -> int:
    """Anonymous memory: what a process has of its own, files that only it happens to map left out."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))


def _index_bytes(pid: int) -> int:
    maps = psutil.Process(pid).memory_maps(grouped=True)
    return sum(each.pss for each in maps if "/main/shard-" in each.path and "/segments/" in each.path)


def _reader_process(pipe: Connection, address: str, queries: np.ndarray) -> None:
    ray.init(address=address, namespace="hsokv", logging_level="ERROR", log_to_driver=False)
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
