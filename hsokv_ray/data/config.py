"""What to read and how to turn it into tokens: the `data` section of every job that reads text."""

from typing import Literal

import pydantic

from hsokv_ray.config import Config

Backend = Literal["custom", "hf", "webdataset"]


class DataConfig(Config):
    """Text, tokenizer and packing."""

    source: str = "python://stdlib"
    """URI of the text: a path, folder or glob (txt, md, csv, tsv, jsonl, json, parquet, .gz of these), `file://`,
    `hf://name:config:split` or `hf://org/name`, `wds://pattern`, a bare `x-{000..009}.tar`, or `python://stdlib` (the
    documentation and sources of the running Python)."""

    dataset_file: str | None = None
    """Older name of `--source`; takes the same values."""

    dataset_backend: Backend | None = None
    """Reader: custom (files), hf (Hugging Face datasets) or webdataset (tar shards). None: told from the source."""

    hf_name: str | None = None
    """Hugging Face data set, `name` or `org/name`, or a local data set folder."""

    hf_config: str | None = None
    """Configuration of the Hugging Face data set."""

    hf_split: str = "train"
    """Split of the Hugging Face data set."""

    hf_revision: str | None = None
    """Branch, tag or commit of the data set on the hub; resolved once to a commit."""

    hf_streaming: bool = True
    """Stream the data set's files instead of preparing the whole set in the cache first."""

    hf_cache_dir: str | None = None
    """Cache folder of `datasets`. None: its own default."""

    hf_num_workers: int = pydantic.Field(default=2, ge=1)
    """Processes that prepare the data set where it is not streamed."""

    hf_token_env: str = "HF_TOKEN"
    """Environment variable that holds the hub token; the token itself is never written or logged."""

    wds_pattern: str | None = None
    """WebDataset shards, with braces: `shard-{000000..000099}.tar`."""

    wds_resampled: bool = False
    """Draw shards with replacement for ever; needs `--wds-epoch-documents`."""

    wds_epoch_documents: int | None = pydantic.Field(default=None, ge=1)
    """Documents that count as one epoch where shards are resampled."""

    wds_shuffle: int = pydantic.Field(default=1000, ge=0)
    """Documents in the seeded shuffle buffer of tar shards; 0 keeps their order."""

    wds_decode: Literal["text", "bytes"] = "text"
    """How a member is decoded: UTF-8 text, or bytes taken as Latin-1 so that every byte survives."""

    wds_key: str = "txt"
    """Extension of the member that holds the text."""

    text_column: str | None = None
    """Column of a table that holds the text. None: `text`, else `content`, else the only string column, else the
    whole row as JSON."""

    ascii_only: bool = False
    """Skip documents with characters outside ASCII; they are counted."""

    on_bad_shard: Literal["error", "skip"] = "error"
    """A truncated or corrupt shard stops the run, or is skipped and counted."""

    on_bad_text: Literal["replace", "error"] = "replace"
    """Bytes that are not UTF-8 are replaced and counted, or stop the run."""

    val_split: float | None = pydantic.Field(default=None, ge=0, le=0.5)
    """Share of documents held out for validation, chosen by content and seed. None: 0.1, or 0 with `--val-file`."""

    val_file: str | None = None
    """Source of the validation text, in any form `--source` takes; excludes `--val-split`."""

    pretokenized: bool = False
    """The source (and `--val-file`) are folders written by `jobs/pretokenize.py`."""

    tokenizer_path: str | None = None
    """Folder, tokenizer.json or Hugging Face name of a tokenizer. None: a byte-level BPE is trained on the source."""

    vocab_size: int | None = pydantic.Field(default=None, ge=300, le=1_000_000)
    """Entries of the tokenizer to train. None: the model size's own (8,192 for micro)."""

    tokenizer_sample_bytes: int = pydantic.Field(default=16_000_000, ge=10_000)
    """Text the tokenizer is trained on, taken from the front of the shuffled shards, in bytes."""

    seq_len: int = pydantic.Field(default=512, ge=8)
    """Tokens in one block."""

    stride: int | None = pydantic.Field(default=None, ge=1)
    """Tokens between the starts of two blocks. None: `--seq-len`, so blocks do not overlap."""

    document_mask: bool = False
    """Attention does not cross the documents packed into one block, and positions restart at each."""

    logical_ranks: int | None = pydantic.Field(default=None, ge=1)
    """Streams the documents are divided into; fixes the global order, and must be a multiple of `--num-workers`.
    None: 12, or the least common multiple of 12 and the workers."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.val_split and self.val_file:
            raise ValueError(
                f"--val-split {self.val_split} and --val-file {self.val_file} exclude each other; give one of them"
            )
        if self.wds_resampled and self.wds_epoch_documents is None:
            raise ValueError("--wds-resampled has no end; give the epoch's length with --wds-epoch-documents N")
        if self.stride is not None and self.stride > self.seq_len:
            raise ValueError(f"--stride: got {self.stride}; at most --seq-len {self.seq_len}, or tokens are skipped")
        return self

    @property
    def resolved_val_split(self) -> float:
        """Share of documents held out, with the default filled in."""
        if self.val_split is not None:
            return self.val_split
        return 0.0 if self.val_file else 0.1

    @property
    def block_stride(self) -> int:
        """Tokens between the starts of two blocks."""
        return self.stride or self.seq_len
