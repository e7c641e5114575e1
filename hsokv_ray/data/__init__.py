"""Text to batches: source -> plan -> documents -> tokens -> blocks -> batches. Nothing here imports Ray."""

# ruff: noqa: F405
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsokv_ray.data.exports import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.exports"), name)


__all__ = [
    "Batch",
    "BlockStream",
    "Blocks",
    "DataConfig",
    "DataCursor",
    "Document",
    "HeldOut",
    "IGNORED",
    "Part",
    "PartReader",
    "PartRequest",
    "PartTokens",
    "ReadCounts",
    "ShardPlan",
    "TextTokenizer",
    "TokenSet",
    "UnigramBaseline",
    "cached_tokenizer",
    "check_vocabulary",
    "load_tokenizer",
    "make_batch",
    "open_token_set",
    "read_documents",
    "read_held_out",
    "read_in_process",
    "read_pretokenized",
    "resolve_plan",
    "resolve_pretokenized",
    "sample_texts",
    "sample_tokens",
    "split_token_set",
    "tokenize_plan",
    "train_tokenizer",
    "training_sample",
    "unigram_baseline",
    "validation_plan",
    "write_token_set",
]
