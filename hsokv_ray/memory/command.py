"""`hsokv memory`: upsert, query, count, export, import, migrate; and, for shared memories, start, status, stop, ...

A sub-command is an entry of `COMMANDS`; its function takes the words after its name and returns the exit status.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hsokv_ray.config import parse
from hsokv_ray.errors import ConfigError, DataError
from hsokv_ray.memory.command_config import (
    CountConfig,
    ExportConfig,
    ImportConfig,
    MigrateConfig,
    QueryConfig,
    TransferConfig,
    UpsertConfig,
)

if TYPE_CHECKING:
    from hsokv_ray.memory.encoders import Encoder
    from hsokv_ray.memory.stores import StoreConfig, VectorStore
    from hsokv_ray.memory.transfer_state import Progress, TransferState


def main(argv: Sequence[str]) -> int:
    """Run `hsokv memory` with the words after it; return the exit status."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if argv[0] not in COMMANDS:
        raise ConfigError(f"hsokv memory has no command {argv[0]!r}; its commands: {', '.join(COMMANDS)}")
    work, _ = COMMANDS[argv[0]]
    return work(argv[1:])


def upsert(argv: Sequence[str]) -> int:
    """Write the rows of a file into a memory."""
    config = parse(UpsertConfig, argv, prog="hsokv memory upsert")
    from hsokv_ray.memory.row_files import open_rows
    from hsokv_ray.memory.stores import parse_store_uri

    target, source = parse_store_uri(config.uri), open_rows(config.file)
    encoder = _open_encoder(config.embed, config.device) if config.embed else None
    with _opened(target) as store:
        if encoder is not None:
            from hsokv_ray.memory.parquet_export import check_fit

            check_fit(
                store,
                metric=store.metric,
                dim=encoder.dim,
                encoders=[encoder.fingerprint],
                source=f"--embed {config.embed}",
            )
        state = _state("upsert", source.path, target, config.transfer, encoder=config.embed or "")
        return _load(store, source, state, config.transfer, config.uri, encoder=encoder, on_bad_row=config.on_bad_row)


def query(argv: Sequence[str]) -> int:
    """Print the records nearest to a text or to vectors."""
    config = parse(QueryConfig, argv, prog="hsokv memory query")
    filter = _filter(config.filter)
    vectors = _load_vectors(config.vector_file) if config.vector_file else None
    encoder = _open_encoder(config.embed, config.device) if config.embed and config.text is not None else None
    with _opened(_existing(config.uri)) as store:
        if encoder is not None:
            from hsokv_ray.memory.parquet_export import check_fit

            marks = [encoder.fingerprint]
            check_fit(store, metric=store.metric, dim=encoder.dim, encoders=marks, source=f"--embed {config.embed}")
            vectors = encoder.encode([config.text or ""])
        found = store.query(vectors, config.top_k, filter)
        for i, hits in enumerate(found):
            for hit in hits:
                line = {"id": hit.id, "score": round(hit.score, 6), "metadata": hit.metadata}
                print(json.dumps(line if len(found) == 1 else {"query": i} | line, ensure_ascii=False))
    return 0


def count(argv: Sequence[str]) -> int:
    """Print how many records a memory holds."""
    config = parse(CountConfig, argv, prog="hsokv memory count")
    filter = _filter(config.filter)
    with _opened(_existing(config.uri)) as store:
        print(store.count(filter))
    return 0


def export(argv: Sequence[str]) -> int:
    """Write a memory to a Parquet file."""
    config = parse(ExportConfig, argv, prog="hsokv memory export")
    from hsokv_ray.memory.parquet_export import export_records
    from hsokv_ray.meter import Meter

    with _opened(_existing(config.uri)) as store, Meter("export", total=store.count()) as meter:
        rows = export_records(store, config.file, meter=meter, batch_size=config.batch_size)
    print(f"wrote {rows:,} records to {config.file}")
    return 0


def import_(argv: Sequence[str]) -> int:
    """Write an exported file into a memory."""
    config = parse(ImportConfig, argv, prog="hsokv memory import")
    from hsokv_ray.memory.parquet_export import check_fit, read_header
    from hsokv_ray.memory.row_files import open_rows
    from hsokv_ray.memory.stores import parse_store_uri

    header, source = read_header(config.file), open_rows(config.file)
    target = _with_metric(parse_store_uri(config.uri), header.metric)
    with _opened(target) as store:
        check_fit(store, metric=header.metric, dim=header.dim, encoders=header.encoders, source=config.file)
        state = _state("import", source.path, target, config.transfer)
        return _load(store, source, state, config.transfer, config.uri)


def migrate(argv: Sequence[str]) -> int:
    """Copy a memory into another."""
    config = parse(MigrateConfig, argv, prog="hsokv memory migrate")
    from hsokv_ray.memory.parquet_export import check_fit, known_encoders
    from hsokv_ray.memory.stores import parse_store_uri
    from hsokv_ray.memory.transfer import copy_records, differing_records
    from hsokv_ray.meter import Meter

    origin, target = _existing(config.source), parse_store_uri(config.target)
    if origin.model_dump() == target.model_dump():
        raise ConfigError(f"{config.source} is both ends of the migration; give another target")
    with _opened(origin) as source, _opened(target := _with_metric(target, source.metric)) as store:
        marks = known_encoders(source)
        check_fit(store, metric=source.metric, dim=source.dim, encoders=marks, source=config.source)
        stats = [source.count(), source.dim, source.metric]
        state = _state("migrate", config.source, target, config.transfer, digest=json.dumps(stats))
        began = time.monotonic()
        with Meter("migrate", total=stats[0]) as meter, _noted_when_broken_off(meter):
            done = copy_records(source, store, state=state, meter=meter, batch_size=config.transfer.batch_size)
        bad = []
        if config.verify == "records":
            with Meter("verify", total=stats[0]) as meter:
                bad = differing_records(source, store, meter=meter, batch_size=config.transfer.batch_size)
        total = store.count()
    if bad:
        raise DataError(f"{len(bad):,} records differ in the target, such as {bad[0]!r}; run the same line again")
    _say_done(done, total, config.target, time.monotonic() - began)
    return 0


def _shared(name: str) -> Callable[[Sequence[str]], int]:
    def work(argv: Sequence[str]) -> int:
        return getattr(import_module("hsokv_ray.memory.shared.command"), name)(argv)

    return work


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "upsert": (upsert, "write rows of a jsonl, parquet or npz file"),
    "query": (query, "print the nearest records"),
    "count": (count, "print how many records there are"),
    "export": (export, "write everything to a Parquet file"),
    "import": (import_, "read such a file into a memory"),
    "migrate": (migrate, "copy a memory to another engine or place"),
    "start": (_shared("start"), "start a memory that this cluster shares"),
    "status": (_shared("status"), "print what its actors hold"),
    "stop": (_shared("stop"), "end its actors; its files stay"),
    "restart": (_shared("restart"), "start its actors anew, with the code installed now"),
    "tenant": (_shared("tenant"), "make a tenant's key, or remove it"),
}
"""Name -> function of the words after it, and one line of help."""


def _usage() -> str:
    lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: hsokv memory COMMAND ...", "", *lines, "", "hsokv memory COMMAND --help says more."])


@contextmanager
def _opened(config: "StoreConfig") -> Iterator["VectorStore"]:
    from hsokv_ray.memory.stores import open_store

    with open_store(config) as store:
        yield store


def _existing(uri: str) -> "StoreConfig":
    """Return the configuration of `uri`; a command that only reads makes no store."""
    from hsokv_ray.memory.stores import parse_store_uri
    from hsokv_ray.memory.transfer_state import local_place

    config = parse_store_uri(uri)
    place = local_place(config)
    if place is not None and not place.exists():
        raise ConfigError(f"{uri}: there is no memory at {place}")
    return config


def _with_metric(config: "StoreConfig", metric: str) -> "StoreConfig":
    return config if "metric" in config.model_fields_set else config.model_copy(update={"metric": metric})


def _open_encoder(spec: str, device: str) -> "Encoder":
    from transformers.utils import logging

    from hsokv_ray.memory.encoders import open_encoder

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return open_encoder(spec, device=device)


def _filter(text: str | None) -> Any:
    if text is None:
        return None
    from hsokv_ray.memory.stores import parse_filter

    try:
        return parse_filter(json.loads(text))
    except ValueError as error:
        raise ConfigError(f'--filter {text}: {error}; give JSON such as \'{{"lang": "en"}}\'') from None


def _load_vectors(path: str) -> Any:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--vector-file {path}: cannot be read ({error}); give a .npy file of numbers") from None


def _state(
    command: str,
    source: Path | str,
    target: "StoreConfig",
    transfer: TransferConfig,
    *,
    encoder: str = "",
    digest: str = "",
) -> "TransferState":
    from hsokv_ray.memory.row_files import file_digest
    from hsokv_ray.memory.transfer_state import state_for

    digest = digest or file_digest(source)
    state = state_for(command, source=source, source_digest=digest, target=target, encoder=encoder)
    if transfer.restart:
        state.finish()
    return state


def _load(
    store: "VectorStore", source: Any, state: "TransferState", transfer: TransferConfig, uri: str, **options: Any
) -> int:
    from hsokv_ray.memory.transfer import load_rows
    from hsokv_ray.meter import Meter

    began = time.monotonic()
    with Meter("write", total=source.total, unit=source.unit) as meter, _noted_when_broken_off(meter):
        done = load_rows(store, source, state=state, meter=meter, batch_size=transfer.batch_size, **options)
    _say_done(done, store.count(), uri, time.monotonic() - began)
    return 0


@contextmanager
def _noted_when_broken_off(meter: Any) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        meter.say("stopped; the same line typed again goes on")
        raise


def _say_done(done: "Progress", total: int, uri: str, seconds: float) -> None:
    skipped = f", {done.skipped:,} bad rows skipped" if done.skipped else ""
    print(f"wrote {done.rows:,} rows to {uri}{skipped}; it holds {total:,}")
    print(f"{seconds:.1f} s", file=sys.stderr)
