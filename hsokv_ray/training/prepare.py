"""What the driver does once for a run: plan, tokenizer, held-out blocks, baselines; a resumed run reuses them."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hsokv_ray.data import (
    HeldOut,
    PartReader,
    ReadCounts,
    ShardPlan,
    TextTokenizer,
    load_tokenizer,
    open_token_set,
    read_held_out,
    read_in_process,
    read_pretokenized,
    resolve_plan,
    resolve_pretokenized,
    sample_texts,
    train_tokenizer,
    training_sample,
    unigram_baseline,
    validation_plan,
)
from hsokv_ray.data.preview import preview_lines
from hsokv_ray.data.reading import Split
from hsokv_ray.data.stream import Blocks
from hsokv_ray.errors import DataError
from hsokv_ray.models.presets import Shape, default_vocab_size, model_shape
from hsokv_ray.training.config import TrainHMSTConfig
from hsokv_ray.training.cost import ASSUMED_BYTES_PER_TOKEN, Length, run_length
from hsokv_ray.training.run_folder import RunFolder

SAMPLE_TOKENS = 500_000
"""Training tokens counted for the unigram baseline and the bytes per token."""


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """What a model must beat, in nats per token, and what was counted on the way."""

    unigram_entropy: float
    unigram_cross_entropy: float | None
    bytes_per_token: float
    num_held_out_tokens: int

    def describe(self) -> str:
        """Return the baselines as a line for a person."""
        held_out = (
            f", {self.unigram_cross_entropy:.3f} on the {self.num_held_out_tokens:,} held-out tokens"
            if self.unigram_cross_entropy is not None
            else "; nothing is held out"
        )
        return (
            f"baseline     unigram entropy of the corpus {self.unigram_entropy:.3f} nats per token{held_out} "
            f"({self.bytes_per_token:.2f} bytes per token)"
        )


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything the workers find in the run folder, and what the driver learnt on the way."""

    plan: ShardPlan
    tokenizer: TextTokenizer
    shape: Shape
    length: Length
    baselines: Baselines


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a dry run knows without reading the corpus or training a tokenizer."""

    shape: Shape
    length: Length
    lines: list[str]


def prepare(config: TrainHMSTConfig, folder: RunFolder, *, say: Callable[[str], None]) -> Prepared:
    """Fill the run folder with what the workers need, or check what is there.

    Raises:
        DataError: the source is missing, empty, too short for one block, or not the one the run began with.
    """
    plan = _plan(config, folder)
    say(f"source       {plan.uri}: about {plan.num_bytes:,} bytes in {len(plan.parts):,} parts")
    tokenizer = _tokenizer(config, folder, plan, say=say)
    baselines = _baselines(config, folder, plan, tokenizer)
    return Prepared(
        plan=plan,
        tokenizer=tokenizer,
        shape=model_shape(config.model, vocab_size=tokenizer.vocab_size, seq_len=config.data.seq_len),
        length=_length(config, plan, baselines.bytes_per_token),
        baselines=baselines,
    )


def preview(config: TrainHMSTConfig) -> Preview:
    """Resolve the source and estimate the run; nothing is written."""
    plan = _resolve(config)
    vocab_size = None
    if config.data.pretokenized:
        vocab_size = load_tokenizer(open_token_set(config.data.source).tokenizer_path).vocab_size
    elif config.data.tokenizer_path:
        vocab_size = load_tokenizer(config.data.tokenizer_path).vocab_size
    return Preview(
        shape=model_shape(config.model, vocab_size=vocab_size or config.data.vocab_size, seq_len=config.data.seq_len),
        length=_length(config, plan, ASSUMED_BYTES_PER_TOKEN),
        lines=[] if config.data.pretokenized else preview_lines(plan),
    )


def _resolve(config: TrainHMSTConfig) -> ShardPlan:
    resolve = resolve_pretokenized if config.data.pretokenized else resolve_plan
    return resolve(config.data, seed=config.run.seed, num_workers=config.run.num_workers)


def _plan(config: TrainHMSTConfig, folder: RunFolder) -> ShardPlan:
    """Return the run's plan; on a resume the source must be the one it was made for."""
    if not folder.plan.exists():
        plan = _resolve(config)
        plan.save(folder.plan)
        return plan
    old = ShardPlan.load(folder.plan)
    data = config.data.model_copy(update={"logical_ranks": old.num_streams})
    new = _resolve(config.model_copy(update={"data": data}))
    if new.digest != old.digest:
        raise DataError(
            f"{new.uri} changed since this run began (revision {old.revision} then, {new.revision} now); "
            "restore it to resume, or give another --name to start a new run"
        )
    return old


def _tokenizer(
    config: TrainHMSTConfig, folder: RunFolder, plan: ShardPlan, *, say: Callable[[str], None]
) -> TextTokenizer:
    data = config.data
    if (folder.tokenizer / "tokenizer.json").exists():
        return load_tokenizer(folder.tokenizer)
    if data.pretokenized:
        tokenizer = load_tokenizer(open_token_set(data.source, verify=False).tokenizer_path)
        if data.tokenizer_path and load_tokenizer(data.tokenizer_path).fingerprint != tokenizer.fingerprint:
            raise DataError(
                f"--tokenizer-path {data.tokenizer_path} is not the tokenizer {data.source} was written with; "
                "leave the flag out, or write the folder again with jobs/pretokenize.py"
            )
    elif data.tokenizer_path:
        tokenizer = load_tokenizer(data.tokenizer_path)
    else:
        vocab_size = data.vocab_size or default_vocab_size(config.model.size)
        say(f"tokenizer    training a byte-level BPE of {vocab_size:,} entries")
        texts = sample_texts(plan, split="train", max_bytes=data.tokenizer_sample_bytes, counts=ReadCounts())
        tokenizer = train_tokenizer(texts, vocab_size)
    tokenizer.save(folder.tokenizer)
    say(f"tokenizer    {tokenizer.vocab_size:,} entries, encoded by {tokenizer.backend} ({tokenizer.reason})")
    return tokenizer


def _baselines(config: TrainHMSTConfig, folder: RunFolder, plan: ShardPlan, tokenizer: TextTokenizer) -> Baselines:
    if folder.baselines.exists():
        return Baselines(**json.loads(folder.baselines.read_text(encoding="utf-8")))
    seq_len = config.data.seq_len
    sample = training_sample(
        plan, _reader(config, plan, tokenizer, split="train"), seq_len=seq_len, max_tokens=SAMPLE_TOKENS
    )
    held_out = _held_out(config, plan, tokenizer)
    held_out.save(folder.held_out)
    unigram = unigram_baseline(sample, held_out, vocab_size=tokenizer.vocab_size)
    baselines = Baselines(
        unigram_entropy=unigram.entropy,
        unigram_cross_entropy=unigram.cross_entropy if held_out.num_blocks else None,
        bytes_per_token=len(tokenizer.decode(sample).encode()) / len(sample),
        num_held_out_tokens=held_out.num_targets,
    )
    _write_json(folder.baselines, asdict(baselines))
    return baselines


def _held_out(config: TrainHMSTConfig, plan: ShardPlan, tokenizer: TextTokenizer) -> HeldOut:
    """Read the validation blocks: of `--val-file`, else of the documents `--val-split` holds out, else none."""
    data, split = config.data, "val"
    if data.val_file is not None:
        split = "all"
        if data.pretokenized:
            plan = resolve_pretokenized(data, seed=config.run.seed, folder=data.val_file)
            _same_tokenizer(data.val_file, tokenizer)
        else:
            other = validation_plan(data, seed=config.run.seed)
            assert other is not None
            plan = other
    elif data.resolved_val_split == 0:
        no_tokens = np.empty((0, data.seq_len + 1), dtype=np.int64)
        return HeldOut(blocks=Blocks(tokens=no_tokens, num_targets=np.empty(0, dtype=np.int64), first_index=0))
    reader = _reader(config, plan, tokenizer, split=split)
    return read_held_out(plan, reader, seq_len=data.seq_len, max_tokens=config.run.eval_tokens, pad_id=tokenizer.pad_id)


def _same_tokenizer(folder: str, tokenizer: TextTokenizer) -> None:
    if open_token_set(folder, verify=False).tokenizer_fingerprint != tokenizer.fingerprint:
        raise DataError(
            f"--val-file {folder} was written with another tokenizer than --source; "
            "write both with the same --tokenizer-path"
        )


def _reader(config: TrainHMSTConfig, plan: ShardPlan, tokenizer: TextTokenizer, *, split: Split) -> PartReader:
    if config.data.pretokenized:
        return read_pretokenized(plan, split=split)
    return read_in_process(plan, tokenizer=tokenizer, split=split)


def _length(config: TrainHMSTConfig, plan: ShardPlan, bytes_per_token: float) -> Length:
    share = 1 - config.data.resolved_val_split
    if config.data.pretokenized:
        itemsize = np.dtype(plan.columns["tokens"]).itemsize
        return run_length(config, num_tokens=round(share * plan.num_bytes / itemsize), estimated=share < 1)
    num_bytes = plan.num_bytes
    if config.data.wds_epoch_documents:
        num_documents = sum(part.num_documents or 0 for part in plan.parts)
        num_bytes = num_bytes * config.data.wds_epoch_documents / num_documents
    return run_length(config, num_tokens=round(share * num_bytes / bytes_per_token), estimated=True)


def _write_json(path: Path, values: dict) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")
    temporary.replace(path)
