"""Configuration of the `hsokv memory` commands."""

from typing import Annotated, Literal

import pydantic
import tyro

from hsokv_ray.config import Config

Uri = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="URI")]
File = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
Device = Literal["cpu", "cuda", "mps"]


class TransferConfig(Config):
    """What every command that writes many records takes."""

    batch_size: int = pydantic.Field(default=1000, ge=1, le=100_000)
    """Records written at a time."""
    restart: bool = False
    """Begin again, although an earlier run of the same line was broken off."""


class UpsertConfig(Config):
    """Write the rows of FILE into a memory; a row whose id is there already replaces it.

    FILE is .jsonl with {"id", "vector", "metadata"} or, with --embed, {"id", "text"}; .parquet with such columns; or
    .npz with the arrays ids and vectors. Other keys become metadata. Broken off, the same line typed again goes on.
    """

    uri: Uri
    """The memory, made if missing: faiss:FOLDER, qdrant:FOLDER, qdrant:http://HOST:6333?collection=NAME or
    lancedb:FOLDER."""
    file: File
    """Rows: .jsonl, .parquet or .npz."""
    embed: str | None = None
    """Make vectors from the rows' texts with this encoder: sentence-transformers:NAME, hf:NAME or a model's folder."""
    device: Device = "cpu"
    """Where the encoder runs."""
    on_bad_row: Literal["error", "skip"] = "error"
    """error stops at the first row that cannot be stored; skip counts such rows and says the first ones."""
    transfer: TransferConfig = TransferConfig()
    """Batches."""


class QueryConfig(Config):
    """Print the records nearest to a text or to the vectors of a file, one JSON object per line, nearest first."""

    uri: Uri
    """The memory."""
    text: str | None = None
    """Text to look for; needs --embed."""
    embed: str | None = None
    """The encoder that made the memory's vectors."""
    device: Device = "cpu"
    """Where the encoder runs."""
    vector_file: str | None = None
    """.npy file with a vector [d] or several [n, d]."""
    top_k: int = pydantic.Field(default=5, ge=1)
    """Records per query."""
    filter: str | None = None
    """Only records whose metadata pass, as JSON: '{"lang": "en", "year": {"$gte": 2000}}'."""

    @pydantic.model_validator(mode="after")
    def _one_query(self) -> "QueryConfig":
        if (self.text is None) == (self.vector_file is None):
            raise ValueError("give either --text or --vector-file")
        if self.text is not None and self.embed is None:
            raise ValueError("--text needs --embed, the encoder that made the memory's vectors")
        return self


class CountConfig(Config):
    """Print how many records a memory holds."""

    uri: Uri
    """The memory."""
    filter: str | None = None
    """Only records whose metadata pass, as JSON."""


class ExportConfig(Config):
    """Write a memory to a Parquet file, from which `hsokv memory import` makes it again on any engine."""

    uri: Uri
    """The memory."""
    file: File
    """The .parquet file; replaced when the new one is whole."""
    batch_size: int = pydantic.Field(default=1000, ge=1, le=100_000)
    """Records read at a time."""


class ImportConfig(Config):
    """Write an exported Parquet file into a memory. Broken off, the same line typed again goes on."""

    file: File
    """What `hsokv memory export` wrote."""
    uri: Uri
    """The memory; made if missing, with the file's metric."""
    transfer: TransferConfig = TransferConfig()
    """Batches."""


class MigrateConfig(Config):
    """Copy a memory into another, on the same engine or another one. Broken off, the same line typed again goes on."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FROM")]
    """The memory to read."""
    target: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TO")]
    """The memory to write; made if missing, with the other's metric."""
    verify: Literal["counts", "records"] = "counts"
    """counts compares how many there are afterwards; records reads every record of both again."""
    transfer: TransferConfig = TransferConfig()
    """Batches."""
