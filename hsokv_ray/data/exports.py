"""What `hsokv_ray.data` exports; imported on first use, because a `--help` needs only `data.config`."""

from hsokv_ray.data.batches import IGNORED, Batch, make_batch
from hsokv_ray.data.config import DataConfig
from hsokv_ray.data.cursor import DataCursor
from hsokv_ray.data.packing import PartReader, PartRequest, PartTokens, read_in_process
from hsokv_ray.data.plan import Part, ShardPlan, resolve_plan, validation_plan
from hsokv_ray.data.pretokenized import (
    TokenSet,
    open_token_set,
    read_pretokenized,
    resolve_pretokenized,
    split_token_set,
    tokenize_plan,
    write_token_set,
)
from hsokv_ray.data.reading import Document, ReadCounts, read_documents
from hsokv_ray.data.sampling import sample_texts, sample_tokens
from hsokv_ray.data.stream import Blocks, BlockStream
from hsokv_ray.data.tokenizer import TextTokenizer, cached_tokenizer, check_vocabulary, load_tokenizer, train_tokenizer
from hsokv_ray.data.validation import HeldOut, UnigramBaseline, read_held_out, training_sample, unigram_baseline

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
