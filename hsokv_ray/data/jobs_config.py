"""Configuration of the two jobs that prepare text: tokenise it once, or split it by document."""

import pydantic

from hsokv_ray.config import Config
from hsokv_ray.data.config import DataConfig
from hsokv_ray.errors import ConfigError


class PretokenizeConfig(Config):
    """Tokenise a source once, into token shards that `--pretokenized` training maps into memory."""

    output_folder: str
    """New folder for the shards, their tokenizer and the manifest; complete or absent."""

    shard_tokens: int = pydantic.Field(default=64_000_000, ge=1)
    """Tokens after which another shard begins; documents are never divided."""

    seed: int = pydantic.Field(default=0, ge=0)
    """Seed of the order in which the sample for a new tokenizer is read."""

    data: DataConfig = DataConfig()
    """Text and tokenizer; a tokenizer is trained on the source where --tokenizer-path is not given."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "PretokenizeConfig":
        if self.data.pretokenized:
            raise ConfigError("--pretokenized: the source is text here; leave the flag out")
        return self


class SplitDatasetConfig(Config):
    """Split a source by document, chosen by content and seed, so that copies fall on the same side."""

    output_folder: str
    """New folder: train.jsonl and val.jsonl, or with --pretokenized the token shards train/ and val/."""

    seed: int = pydantic.Field(default=0, ge=0)
    """Seed of the split."""

    data: DataConfig = DataConfig()
    """Text, or with --pretokenized a folder of token shards; --val-split is the share of val."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "SplitDatasetConfig":
        if self.data.resolved_val_split == 0:
            raise ConfigError("--val-split: got 0; a share between 0 and 0.5 makes a split (default 0.1)")
        return self
