"""Token shards: a source tokenised once, then read by memory map with the same plans, streams and cursors as text.

A folder holds `tokens-00000.bin` (uint16 or uint32, little endian; documents joined, each ended by the end-of-text
token), beside each of them `tokens-00000.npy` (uint64 [documents, 2]: length in tokens, hash of the content), the
`tokenizer/`, and a manifest with the checksum of every file. It is complete or absent.
"""

import functools
import hashlib
import json
import math
import os
import shutil
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from hsokv_ray.data.config import DataConfig
from hsokv_ray.data.packing import PartReader, PartRequest, PartTokens, join_documents
from hsokv_ray.data.plan import Part, ShardPlan, balance
from hsokv_ray.data.reading import ReadCounts, Split, content_hash, read_in_order
from hsokv_ray.data.sources.base import ReadOptions
from hsokv_ray.data.tokenizer import TextTokenizer
from hsokv_ray.errors import CheckpointError, DataError
from hsokv_ray.manifest import read_manifest, verify_manifest, write_manifest

FORMAT = "tokens"
SHARD_TOKENS = 64_000_000
"""Tokens after which the writer begins another shard."""

_STREAMS = 12
_PARTS_PER_STREAM = 4
_PART_TOKENS = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSet:
    """A complete folder of token shards.

    Attributes:
        folder: absolute path.
        shards: names of the shards without their suffix, in order.
        dtype: of the tokens, "uint16" or "uint32".
        num_tokens, num_documents: in all shards.
        tokenizer_fingerprint: of the tokenizer that wrote them, which lies in `tokenizer_path`.
        source: URI of the text.
        digest: SHA-256 over the checksums of all files.
    """

    folder: Path
    shards: tuple[str, ...]
    dtype: str
    num_tokens: int
    num_documents: int
    tokenizer_fingerprint: str
    source: str
    digest: str

    @property
    def tokenizer_path(self) -> Path:
        """Folder of the tokenizer that wrote the shards."""
        return self.folder / "tokenizer"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDocuments:
    """Documents in a row: their joined `tokens`, 1-D, and `index`, uint64 [documents, 2] (length, content hash)."""

    tokens: np.ndarray
    index: np.ndarray


def open_token_set(folder: str | Path, *, verify: bool = True) -> TokenSet:
    """Read what `write_token_set` wrote; with `verify` every byte is checked. Raises `DataError` naming a bad file."""
    folder = Path(folder).expanduser().absolute()
    try:
        manifest = verify_manifest(folder) if verify else read_manifest(folder)
    except CheckpointError as error:
        problem = str(error).replace("; use another checkpoint", "")
        raise DataError(f"{problem}; write the folder again with jobs/pretokenize.py") from None
    if manifest.extra.get("kind") != FORMAT:
        raise DataError(f"{folder} holds no token shards; give a folder that jobs/pretokenize.py wrote")
    checksums = json.dumps({name: entry.sha256 for name, entry in manifest.files.items()}, sort_keys=True)
    values = {name: manifest.extra[name] for name in _RECORDED}
    shards = tuple(manifest.extra["shards"])
    return TokenSet(folder=folder, shards=shards, digest=hashlib.sha256(checksums.encode()).hexdigest(), **values)


def write_token_set(
    folder: str | Path,
    documents: Iterable[TokenDocuments],
    *,
    tokenizer: TextTokenizer,
    source: str,
    shard_tokens: int = SHARD_TOKENS,
) -> TokenSet:
    """Write `documents` as token shards into the new folder `folder`, which is complete or absent.

    Args:
        folder: must not exist, or be empty.
        documents: in the order they are to have.
        tokenizer: what made the tokens; copied into the folder.
        source: URI of the text, for the record.
        shard_tokens: tokens after which another shard begins; documents are never divided.

    Raises `DataError` where the folder is not empty or there is not a single document.
    """
    folder = Path(folder).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"--output-folder: {folder} is not empty; give a new folder")
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    try:
        tokenizer.save(temporary / "tokenizer")
        written = _write_shards(temporary, documents, dtype=tokenizer.dtype, shard_tokens=shard_tokens)
        if not written.num_documents:
            raise DataError(f"{source}: no document to write; give a source with text")
        extra = asdict(written) | {
            "kind": FORMAT,
            "dtype": tokenizer.dtype.name,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "source": source,
        }
        write_manifest(temporary, extra=extra)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return open_token_set(folder, verify=False)


def tokenize_plan(plan: ShardPlan, *, tokenizer: TextTokenizer, counts: ReadCounts) -> Iterator[TokenDocuments]:
    """Yield all documents of `plan` in the order of its parts, tokenised; what was read is added to `counts`."""
    for part in plan.parts:
        texts = [document.text for document in read_in_order(plan, part, split="all", counts=counts)]
        pieces = tokenizer.encode_documents(texts)
        index = np.empty((len(texts), 2), dtype=np.uint64)
        index[:, 0] = [len(piece) + 1 for piece in pieces]
        index[:, 1] = [content_hash(text, seed=0) for text in texts]
        yield TokenDocuments(tokens=join_documents(pieces, tokenizer=tokenizer), index=index)


def resolve_pretokenized(
    config: DataConfig, *, seed: int, num_workers: int = 1, folder: str | None = None
) -> ShardPlan:
    """Return the plan of the token shards in `config.source` (or `folder`): parts are ranges of documents.

    Every file is verified, once, on the driver. Raises `DataError` naming a missing or damaged one.
    """
    tokens = open_token_set(folder or config.source)
    num_streams = config.logical_ranks or math.lcm(_STREAMS, num_workers)
    target = min(_PART_TOKENS, -(-tokens.num_tokens // (num_streams * _PARTS_PER_STREAM)))
    parts = [part for name in tokens.shards for part in _cut(str(tokens.folder / name), tokens.dtype, target)]
    balanced = balance(parts, num_streams=num_streams)
    return ShardPlan(
        uri=str(tokens.folder),
        format=FORMAT,
        parts=tuple(replace(part, index=i) for i, part in enumerate(balanced)),
        revision=tokens.digest,
        seed=seed,
        num_streams=num_streams,
        num_bytes=sum(part.num_bytes for part in parts),
        options=ReadOptions.from_config(config.model_copy(update={"wds_resampled": False})),
        columns={FORMAT: tokens.dtype},
    )


def read_pretokenized(plan: ShardPlan, *, split: Split = "train") -> PartReader:
    """Return a reader of token shards through memory maps; documents are shuffled within their part."""

    def read(requests: Iterator[PartRequest]) -> Generator[PartTokens, None, None]:
        for request in requests:
            counts = ReadCounts()
            tokens = _read_part(plan, request.part, split=split, epoch=request.epoch, counts=counts)
            yield PartTokens(
                stream=request.stream, epoch=request.epoch, position=request.position, tokens=tokens, counts=counts
            )

    return read


def split_token_set(folder: str | Path, *, split: Split, val_split: float, seed: int) -> Iterator[TokenDocuments]:
    """Yield the documents of one side of a split by content, shard by shard."""
    tokens = open_token_set(folder)
    for name in tokens.shards:
        shard = _open_shard(str(tokens.folder / name), tokens.dtype)
        numbers = _of_split(shard, np.arange(len(shard.index)), split=split, val_split=val_split, seed=seed)
        yield TokenDocuments(tokens=_gather(shard, numbers), index=shard.index[numbers])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    shards: list[str]
    num_tokens: int
    num_documents: int


_RECORDED = ("dtype", "num_tokens", "num_documents", "tokenizer_fingerprint", "source")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    tokens: np.ndarray
    index: np.ndarray
    offsets: np.ndarray
    """int64 [documents + 1], where each document begins."""


def _write_shards(folder: Path, documents: Iterable[TokenDocuments], *, dtype: np.dtype, shard_tokens: int) -> _Written:
    shards: list[str] = []
    num_tokens = num_documents = 0
    source = iter(documents)
    while batch := _next_shard(source, shard_tokens):
        shards.append(f"tokens-{len(shards):05d}")
        with (folder / f"{shards[-1]}.bin").open("wb") as file:
            for piece in batch:
                file.write(piece.tokens.astype(dtype.newbyteorder("<"), copy=False).data)
        index = np.concatenate([piece.index for piece in batch])
        np.save(folder / f"{shards[-1]}.npy", index, allow_pickle=False)
        num_tokens += int(index[:, 0].sum())
        num_documents += len(index)
    return _Written(shards=shards, num_tokens=num_tokens, num_documents=num_documents)


def _next_shard(documents: Iterator[TokenDocuments], shard_tokens: int) -> list[TokenDocuments]:
    batch, num_tokens = [], 0
    while num_tokens < shard_tokens and (piece := next(documents, None)) is not None:
        if len(piece.index):
            batch.append(piece)
            num_tokens += len(piece.tokens)
    return batch


def _cut(shard: str, dtype: str, target: int) -> Iterator[Part]:
    """Cut a shard into ranges of documents of at least `target` tokens each, the last one excepted."""
    offsets = _open_shard(shard, dtype).offsets
    start = 0
    while start < len(offsets) - 1:
        stop = max(start + 1, int(np.searchsorted(offsets, offsets[start] + target)))
        stop = min(stop, len(offsets) - 1)
        num_bytes = int(offsets[stop] - offsets[start]) * np.dtype(dtype).itemsize
        yield Part(index=0, shard=shard, start=start, stop=stop, num_bytes=num_bytes, num_documents=stop - start)
        start = stop


@functools.lru_cache(maxsize=256)
def _open_shard(path: str, dtype: str) -> _Shard:
    try:
        tokens = np.memmap(f"{path}.bin", dtype=np.dtype(dtype).newbyteorder("<"), mode="r")
        index = np.load(f"{path}.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: token shard cannot be read ({error}); write it again with jobs/pretokenize.py"
        ) from None
    offsets = np.concatenate([[0], np.cumsum(index[:, 0], dtype=np.int64)])
    # As a plain array: slicing a memmap object costs more than copying a document.
    return _Shard(tokens=tokens.view(np.ndarray), index=index.view(np.ndarray), offsets=offsets)


def _read_part(plan: ShardPlan, part: Part, *, split: Split, epoch: int, counts: ReadCounts) -> np.ndarray:
    shard = _open_shard(part.shard, str(plan.columns[FORMAT]))
    numbers = np.arange(part.start + part.remainder, part.stop, part.modulus)
    chosen = _of_split(shard, numbers, split=split, val_split=plan.options.val_split, seed=plan.seed)
    counts.documents += len(chosen)
    counts.held_out_documents += len(numbers) - len(chosen)
    rng = np.random.default_rng([plan.seed, epoch, part.index])
    return _gather(shard, rng.permutation(chosen))


def _of_split(shard: _Shard, numbers: np.ndarray, *, split: Split, val_split: float, seed: int) -> np.ndarray:
    """Return the documents among `numbers` that belong to `split`, chosen by content and seed."""
    if split == "all":
        return numbers
    is_held_out = _mixed(shard.index[numbers, 1], seed) < val_split * 2.0**64
    return numbers[is_held_out == (split == "val")]


def _mixed(hashes: np.ndarray, seed: int) -> np.ndarray:
    """Return the hashes, uint64, permuted by `seed` (the finaliser of SplitMix64, Steele et al. 2014)."""
    mixed = hashes + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _gather(shard: _Shard, numbers: np.ndarray) -> np.ndarray:
    """Join the tokens of the documents `numbers`, in that order."""
    starts, stops = shard.offsets[numbers].tolist(), shard.offsets[numbers + 1].tolist()
    pieces = [shard.tokens[start:stop] for start, stop in zip(starts, stops, strict=True)]
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=shard.tokens.dtype)
