#!/usr/bin/env python
"""Text to packed tokens: the Ray Data pipeline against its own tokenizer, other tokenizers, and the stock readers.

    python benchmarks/data_pipeline.py [--quick] [--megabytes 48]

The text is the books below HSOKV_DATA_DIR, else the sources of the running Python, repeated to the wanted size and
stored as Parquet and as tar shards. CPU time is that of this process and of every Ray process it started, so what the
pipeline costs anywhere is counted. Every variant gives blocks to the process that asks, as a training worker would get
them; variants run in turns and ratios are between medians of one run.
"""

import argparse
import gzip
import io
import logging
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from harness import Target, write_result
from tokenizers import Tokenizer

from hsokv_ray import env
from hsokv_ray.data import (
    BlockStream,
    DataConfig,
    PartReader,
    ReadCounts,
    ShardPlan,
    TextTokenizer,
    cached_tokenizer,
    read_in_process,
    read_pretokenized,
    resolve_plan,
    resolve_pretokenized,
    sample_texts,
    tokenize_plan,
    train_tokenizer,
    write_token_set,
)
from hsokv_ray.data.packing import join_documents
from hsokv_ray.training.ray_data import read_with_ray

SEQ_LEN, NUM_CPUS, NUM_SHARDS, VOCAB_SIZE, DOCUMENT_CHARS = 1024, 2, 8, 8192, 4000
RAW, STOCK, MAPPED, BATCH_ENCODE = "raw tokenizer", "stock read_webdataset", "memory-mapped shards", "tokenizers batch"


@dataclass(frozen=True)
class Usage:
    """What one run of a variant took; CPU over all processes."""

    tokens: int
    wall_s: float
    cpu_s: float


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small text and one repeat")
    parser.add_argument("--megabytes", type=int, default=48, help="text, in MB")
    args = parser.parse_args()
    megabytes, repeats = (8, 1) if args.quick else (args.megabytes, 3)
    ray.init(
        address="local", num_cpus=NUM_CPUS, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents = source_documents(megabytes * 1_000_000)
        store(documents, folder)
        tokenizer = train_tokenizer(documents[:2000], VOCAB_SIZE)
        tokenizer.save(folder / "tokenizer")
        usages = measure(variants(documents, folder, tokenizer), repeats=repeats)
        padding = padding_rows(folder, tokenizer)
    ray.shutdown()
    rows = [row(name, runs, to=usages[RAW]) for name, runs in usages.items()]
    write_result(
        "data_pipeline",
        tables={"throughput": rows, "padding": padding},
        targets=targets(usages, padding),
        quick=args.quick,
    )


def source_documents(num_bytes: int) -> list[str]:
    """Return documents of about 4,000 characters, repeated until they hold `num_bytes`."""
    folder = env.data_dir()
    books = sorted((folder / "books").glob("*.txt.gz")) if folder else []
    texts = [gzip.decompress(path.read_bytes()).decode() for path in books]
    if not texts:
        plan = resolve_plan(DataConfig(), seed=0)
        texts = list(sample_texts(plan, split="all", max_bytes=num_bytes, counts=ReadCounts()))
    pieces = [text[i : i + DOCUMENT_CHARS] for text in texts for i in range(0, len(text), DOCUMENT_CHARS)]
    repeats = -(-num_bytes // sum(len(piece.encode()) for piece in pieces))
    return [f"{turn}\n{piece}" for turn in range(repeats) for piece in pieces][: num_bytes // DOCUMENT_CHARS]


def store(documents: list[str], folder: Path) -> None:
    """Write the documents as Parquet and as tar shards."""
    for kind in ("parquet", "tar"):
        (folder / kind).mkdir()
    for shard in range(NUM_SHARDS):
        mine = documents[shard::NUM_SHARDS]
        pq.write_table(pa.table({"text": mine}), folder / "parquet" / f"{shard:03d}.parquet", row_group_size=500)
        with tarfile.open(folder / "tar" / f"{shard:03d}.tar", "w") as tar:
            for i, text in enumerate(mine):
                data = text.encode()
                member = tarfile.TarInfo(f"{i:06d}.txt")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def variants(documents: list[str], folder: Path, tokenizer: TextTokenizer) -> dict[str, Callable[[], int]]:
    """Return what is measured; each call returns the tokens it gave."""
    path = str(folder / "tokenizer")
    plans = {kind: plan_of(f"{folder}/{kind}/*.{kind}") for kind in ("parquet", "tar")}
    whole = tokenize_plan(plans["parquet"], tokenizer=tokenizer, counts=ReadCounts())
    tokens = write_token_set(folder / "tokens", whole, tokenizer=tokenizer, source="benchmark")
    token_plan = resolve_pretokenized(DataConfig(source=str(tokens.folder), val_split=0), seed=0)
    plain = Tokenizer.from_file(f"{path}/tokenizer.json")
    sample = documents[: len(documents) // 4]
    found: dict[str, Callable[[], int]] = {
        RAW: lambda: len(join_documents(tokenizer.encode_documents(documents), tokenizer=tokenizer)),
        BATCH_ENCODE: lambda: sum(len(e.ids) + 1 for e in plain.encode_batch(sample, add_special_tokens=False)),
        MAPPED: lambda: drain(token_plan, read_pretokenized(token_plan, split="all"), passes=10),
        STOCK: lambda: stock_tokens(sorted(map(str, (folder / "tar").glob("*.tar"))), path),
    }
    for kind, plan in plans.items():
        found[f"in process, {kind}"] = lambda plan=plan: drain(
            plan, read_in_process(plan, tokenizer=tokenizer, split="all")
        )
        found[f"Ray Data, {kind}"] = lambda plan=plan: drain(
            plan, read_with_ray(plan, tokenizer_path=path, split="all", num_cpus=NUM_CPUS)
        )
    return found


def plan_of(source: str) -> ShardPlan:
    return resolve_plan(DataConfig(source=source, val_split=0), seed=0)


def drain(plan: ShardPlan, reader: PartReader, *, passes: int = 1) -> int:
    """Take every block as a training worker would; return the tokens."""
    stream = BlockStream(plan, reader, seq_len=SEQ_LEN, epochs=passes)
    while not stream.is_finished:
        stream.take(8)
    stream.close()
    return stream.num_tokens


def stock_tokens(paths: list[str], tokenizer_path: str) -> int:
    """The documented way: read_webdataset, map_batches that encodes and packs each batch, iter_batches."""

    def pack(batch: Any) -> dict[str, np.ndarray]:
        tokenizer = cached_tokenizer(tokenizer_path)
        texts = [text if isinstance(text, str) else text.decode() for text in batch["txt"]]
        tokens = join_documents(tokenizer.encode_documents(texts), tokenizer=tokenizer)
        rows = -(-len(tokens) // SEQ_LEN)
        padded = np.zeros(rows * SEQ_LEN, dtype=tokens.dtype)
        padded[: len(tokens)] = tokens
        num_tokens = np.minimum(len(tokens) - np.arange(rows) * SEQ_LEN, SEQ_LEN)
        return {"tokens": padded.reshape(rows, SEQ_LEN), "num_tokens": num_tokens}

    dataset = ray.data.read_webdataset(paths).map_batches(pack, batch_size=256)
    dataset.context.enable_progress_bars = False
    batches: Any = dataset.iter_batches(batch_size=8, batch_format="numpy")
    return sum(int(batch["num_tokens"].sum()) for batch in batches)


def measure(found: dict[str, Callable[[], int]], *, repeats: int) -> dict[str, list[Usage]]:
    """Run the variants in turns; the first turn warms up the Ray workers and does not count."""
    usages: dict[str, list[Usage]] = {name: [] for name in found}
    for turn in range(repeats + 1):
        for name, run in found.items():
            cpu, wall = cpu_seconds(), time.perf_counter()
            tokens = run()
            usage = Usage(tokens, time.perf_counter() - wall, cpu_seconds() - cpu)
            if turn:
                usages[name].append(usage)
    return usages


def cpu_seconds() -> float:
    """CPU time of this process and its descendants: Ray's own processes and the workers that run tasks."""
    own = psutil.Process()
    total = 0.0
    for process in [own, *own.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def row(name: str, runs: list[Usage], *, to: list[Usage]) -> dict[str, Any]:
    return {
        "variant": name,
        "Mtokens per core-second": per_core_second(runs) / 1e6,
        "Mtokens per second": per_second(runs) / 1e6,
        "of raw, per core-second": per_core_second(runs) / per_core_second(to),
    }


def per_core_second(runs: list[Usage]) -> float:
    return statistics.median(run.tokens / run.cpu_s for run in runs)


def per_second(runs: list[Usage]) -> float:
    return statistics.median(run.tokens / run.wall_s for run in runs)


def padding_rows(folder: Path, tokenizer: TextTokenizer) -> list[dict[str, Any]]:
    """Share of padding in blocks of 32k: while the text lasts, and over one whole pass with its last blocks."""
    plan = plan_of(f"{folder}/parquet/*.parquet")
    rows: list[dict[str, Any]] = []
    for name, passes in (("passes without end", None), ("one pass, last blocks included", 1)):
        stream = BlockStream(
            plan, read_in_process(plan, tokenizer=tokenizer, split="all"), seq_len=32_768, epochs=passes
        )
        num_targets: list[int] = []
        while not stream.is_finished and len(num_targets) < 600:
            num_targets += stream.take(12).num_targets.tolist()
        filled = [n for n in num_targets if n]
        rows.append({"blocks of 32k": name, "count": len(filled), "padding": 1 - sum(filled) / (32_768 * len(filled))})
    return rows


def targets(usages: dict[str, list[Usage]], padding: list[dict[str, Any]]) -> list[Target]:
    found = []
    for kind in ("parquet", "tar"):
        pipeline = usages[f"Ray Data, {kind}"]
        rate = per_core_second(pipeline)
        found += [
            least(
                f"Ray Data ({kind}) per core-second over the raw tokenizer", rate / per_core_second(usages[RAW]), 0.9
            ),
            least(f"Ray Data ({kind}) over tokenizers batch encode", rate / per_core_second(usages[BATCH_ENCODE]), 5),
            least(f"memory-mapped over Ray Data ({kind})", per_core_second(usages[MAPPED]) / rate, 100),
        ]
    wall = per_second(usages["Ray Data, tar"]) / per_second(usages[STOCK])
    found.append(least("Ray Data (tar) over stock read_webdataset + map_batches, wall", wall, 2.5))
    found.append(
        Target(name="padding at 32k while the text lasts", value=padding[0]["padding"], bound=1e-3, kind="at most")
    )
    return found


def least(name: str, value: float, bound: float) -> Target:
    return Target(name=name, value=value, bound=bound, kind="at least")


if __name__ == "__main__":
    main()
