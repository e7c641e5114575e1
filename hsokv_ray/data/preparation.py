"""The work of `jobs/pretokenize.py` and `jobs/split_dataset.py`."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from hsokv_ray.data.jobs_config import PretokenizeConfig, SplitDatasetConfig
from hsokv_ray.data.plan import ShardPlan, resolve_plan
from hsokv_ray.data.pretokenized import TokenSet, open_token_set, split_token_set, tokenize_plan, write_token_set
from hsokv_ray.data.reading import ReadCounts, Split, read_in_order
from hsokv_ray.data.sampling import sample_texts
from hsokv_ray.data.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer
from hsokv_ray.errors import DataError

DEFAULT_VOCAB_SIZE = 8192


def pretokenize(config: PretokenizeConfig, *, say: Callable[[str], None] = print) -> TokenSet:
    """Write the token shards `config` asks for and say what was read and skipped.

    Raises `DataError` where the source cannot be read or the output folder is not empty.
    """
    plan = resolve_plan(config.data, seed=config.seed)
    tokenizer = _tokenizer(config, plan)
    say(f"tokenizer    {tokenizer.vocab_size:,} entries, encoded by {tokenizer.backend} ({tokenizer.reason})")
    counts = ReadCounts()
    written = write_token_set(
        config.output_folder,
        tokenize_plan(plan, tokenizer=tokenizer, counts=counts),
        tokenizer=tokenizer,
        source=plan.uri,
        shard_tokens=config.shard_tokens,
    )
    say(f"read         {_describe(counts)}")
    say(f"wrote        {written.num_tokens:,} tokens of {written.num_documents:,} documents to {written.folder}")
    return written


def split_dataset(config: SplitDatasetConfig, *, say: Callable[[str], None] = print) -> Path:
    """Write both sides of a split; return the output folder, which is complete or absent.

    Raises `DataError` where the source cannot be read, a side has no document, or the folder is not empty.
    """
    folder = Path(config.output_folder).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"--output-folder: {folder} is not empty; give a new folder")
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    write = _split_tokens if config.data.pretokenized else _split_text
    try:
        sides: tuple[Split, Split] = ("train", "val")
        for side in sides:
            say(f"{side:<12} {write(config, temporary, side)}")
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    say(f"wrote        {folder}")
    return folder


def _tokenizer(config: PretokenizeConfig, plan: ShardPlan) -> TextTokenizer:
    data = config.data
    if data.tokenizer_path:
        return load_tokenizer(data.tokenizer_path)
    texts = sample_texts(plan, split="train", max_bytes=data.tokenizer_sample_bytes, counts=ReadCounts())
    return train_tokenizer(texts, data.vocab_size or DEFAULT_VOCAB_SIZE)


def _split_text(config: SplitDatasetConfig, folder: Path, side: Split) -> str:
    plan = resolve_plan(config.data, seed=config.seed)
    counts = ReadCounts()
    with (folder / f"{side}.jsonl").open("w", encoding="utf-8") as file:
        for part in plan.parts:
            for document in read_in_order(plan, part, split=side, counts=counts):
                file.write(json.dumps({"id": document.id, "text": document.text}, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    if not counts.documents:
        raise DataError(f"{plan.uri}: no document falls on the side of {side}; change --val-split or give more text")
    return _describe(counts)


def _split_tokens(config: SplitDatasetConfig, folder: Path, side: Split) -> str:
    tokens = open_token_set(config.data.source)
    documents = split_token_set(tokens.folder, split=side, val_split=config.data.resolved_val_split, seed=config.seed)
    tokenizer = load_tokenizer(tokens.tokenizer_path)
    written = write_token_set(folder / side, documents, tokenizer=tokenizer, source=tokens.source)
    return f"{written.num_documents:,} documents, {written.num_tokens:,} tokens"


def _describe(counts: ReadCounts) -> str:
    shown = counts.to_dict()
    head = f"{shown.pop('documents'):,} documents, {shown.pop('text_bytes'):,} bytes"
    return ", ".join([head, *(f"{name.replace('_', ' ')} {value:,}" for name, value in shown.items() if value)])
