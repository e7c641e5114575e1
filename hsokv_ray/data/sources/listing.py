"""Which files a source consists of."""

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from hsokv_ray.data.config import DataConfig
from hsokv_ray.data.sources.arrow_files import Arrow, Parquet
from hsokv_ray.data.sources.base import Format, Shard, absolute
from hsokv_ray.data.sources.huggingface import list_hub_files
from hsokv_ray.data.sources.row_files import Delimited, JsonFile, JsonLines
from hsokv_ray.data.sources.tar_shards import TarShard, refuse_unsafe_key
from hsokv_ray.data.sources.text_files import TextFile
from hsokv_ray.data.uri import SourceSpec, expand_braces
from hsokv_ray.errors import DataError

FORMATS: dict[str, Format] = {
    "txt": TextFile(),
    "csv": Delimited(","),
    "tsv": Delimited("\t"),
    "jsonl": JsonLines(),
    "json": JsonFile(),
    "parquet": Parquet(),
    "arrow": Arrow(),
    "tar": TarShard(),
}
_ALIASES = {"md": "txt", "markdown": "txt", "text": "txt", "ndjson": "jsonl", "tgz": "tar"}
SUPPORTED = "txt, md, csv, tsv, jsonl, json, parquet, and .gz of these"
_PARALLEL = 8


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The shards of a source in order, and what was passed over."""

    shards: list[Shard]
    skipped_files: list[str] = field(default_factory=list)
    """Files whose format is not read."""
    bad_shards: list[str] = field(default_factory=list)
    """Shards that cannot be read, with the cause; only where `--on-bad-shard skip` allows them."""
    revision: str | None = None


def format_of(path: str) -> str | None:
    """Return the format (a key of `FORMATS`) by a file's extension, None where it is not read."""
    extension = Shard(path).name.removesuffix(".gz").rpartition("/")[2].rpartition(".")[2]
    extension = _ALIASES.get(extension, extension)
    return extension if extension in FORMATS else None


def list_source(spec: SourceSpec, config: DataConfig) -> Listing:
    """Return the files of `spec`, in the order of their names.

    Raises:
        DataError: there are none, or one is missing and `--on-bad-shard` is error.
    """
    if spec.backend == "webdataset":
        refuse_unsafe_key(config.wds_key)
        paths = list(_tar_paths(spec.location))
    elif spec.backend == "hf":
        paths = list_hub_files(spec, config)
    else:
        paths = list(_file_paths(spec.location))
    wanted = "tar" if spec.backend == "webdataset" else None
    read, skipped = _by_format([absolute(path) for path in paths], wanted=wanted)
    if not read:
        raise DataError(f"{spec.uri}: no usable file among {_some(skipped)}; supported are {SUPPORTED}")
    shards = [Shard(path, config.hf_token_env) for path in read]
    listing = _without_missing(shards, skip=config.on_bad_shard == "skip")
    if not listing.shards:
        raise DataError(f"{spec.uri}: no shard can be opened; the first: {listing.bad_shards[0]}")
    return Listing(
        shards=listing.shards,
        skipped_files=skipped,
        bad_shards=listing.bad_shards,
        revision=_commit_of(listing.shards) or _digest(listing.shards),
    )


def parallel_map(function, items: Iterable) -> list:
    """Apply `function` to `items` on a few threads, so that a thousand requests to a server take seconds."""
    with ThreadPoolExecutor(_PARALLEL) as pool:
        return list(pool.map(function, items))


def _tar_paths(pattern: str) -> Iterator[str]:
    names = list(expand_braces(pattern))
    if any(_matches(name) for name in names):
        # Some shards of a range exist, so the missing ones are damage, not a wrong pattern.
        found = [path for name in names for path in (_matches(name) or [name])]
    else:
        found = [name for name in names if "://" in name]
    if not found:
        raise DataError(
            f"wds://{pattern}: matches no file; it expands to {len(names)} names, {names[0]!r} to {names[-1]!r}; "
            "check the folder, the range and its zero padding"
        )
    for path in found:
        yield from _walk(path) if os.path.isdir(path) else [path]


def _matches(name: str) -> list[str]:
    path = os.path.expanduser(name)
    return [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))


def _file_paths(location: str) -> Iterator[str]:
    names = [location] if os.path.exists(os.path.expanduser(location)) else list(expand_braces(location))
    found = [path for name in names for path in _matches(name)]
    if not found:
        raise DataError(f"{location}: no such file, folder or match; check the path (globs need quotes in a shell)")
    for path in dict.fromkeys(found):
        yield from _walk(path) if os.path.isdir(path) else [path]


def _walk(folder: str) -> Iterator[str]:
    """Yield the files below `folder`, sorted; hidden ones are passed over, linked folders are followed once."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            yield from (os.path.join(parent, name) for name in sorted(names) if not name.startswith("."))
        seen.add(real)


def _by_format(paths: list[str], *, wanted: str | None) -> tuple[list[str], list[str]]:
    read, skipped = [], []
    for path in paths:
        kind = format_of(path)
        (read if kind and (wanted is None or kind == wanted) else skipped).append(path)
    return read, skipped


def _without_missing(shards: list[Shard], *, skip: bool) -> Listing:
    def problem(shard: Shard) -> str | None:
        try:
            shard.open_raw().close()
        except DataError:
            raise
        # Filesystems of fsspec raise their own client's exceptions.
        except Exception as error:
            return f"{shard.path}: {' '.join(str(error).split()) or type(error).__name__}"
        return None

    problems = parallel_map(problem, shards)
    bad = [text for text in problems if text]
    if bad and not skip:
        raise DataError(f"{bad[0]} ({len(bad)} of {len(shards)} shards); repair it or give --on-bad-shard skip")
    return Listing(shards=[s for s, text in zip(shards, problems, strict=True) if not text], bad_shards=bad)


def _commit_of(shards: list[Shard]) -> str | None:
    repository, at, rest = shards[0].path.partition("@")
    return rest.partition("/")[0] if repository.startswith("hf://") and at else None


def _digest(shards: list[Shard]) -> str:
    """Return a digest of names below the common folder and of sizes, so that a moved copy is the same revision."""
    paths = [shard.path for shard in shards]
    root = os.path.commonprefix([str(Path(path).parent) for path in paths])
    listing = "\n".join(f"{shard.path[len(root) :]} {shard.size}" for shard in shards)
    return f"files-{hashlib.sha256(listing.encode()).hexdigest()[:16]}"


def _some(names: list[str]) -> str:
    shown = ", ".join(os.path.basename(name) for name in names[:5])
    return f"{len(names)} ({shown}{', ...' if len(names) > 5 else ''})" if names else "0 files"
