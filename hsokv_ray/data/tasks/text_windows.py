"""Windows of text for language models, from any source URI.

A document lies in one split with all its windows; what a document is, the reader says (long text files are read in
pieces). Of a source with few documents each is cut by position instead: its front is for training, what follows for
validation, its end for the test.
"""

import re

import numpy as np
import pydantic

from hsokv_ray.config import Config
from hsokv_ray.data.config import DataConfig
from hsokv_ray.data.plan import resolve_plan
from hsokv_ray.data.reading import ReadCounts, content_hash
from hsokv_ray.data.sampling import sample_texts
from hsokv_ray.data.tasks.base import SPLITS, Examples, Split, Splits, without_inputs_of
from hsokv_ray.data.tokenizer import TextTokenizer, load_tokenizer, train_tokenizer
from hsokv_ray.errors import DataError


class WindowConfig(Config):
    """What is cut into windows, and how."""

    source: str = "python://stdlib"
    """URI of the text, in any form jobs take: path, folder, glob, `hf://`, `wds://`, `python://stdlib`."""

    seq_len: int = pydantic.Field(default=96, ge=8)
    """Tokens of a window that are read, each of which predicts its next one."""

    stride: int | None = pydantic.Field(default=None, ge=1)
    """Tokens between the starts of two training windows. None: `--seq-len`. Validation and test never overlap."""

    max_windows: int = pydantic.Field(default=20_000, ge=1)
    """Training windows, at most; validation and test have at most a tenth of them each."""

    held_out: float = pydantic.Field(default=0.1, gt=0, le=0.4)
    """Share of documents (or of each document's text) in validation, and again in the test."""

    vocab_size: int = pydantic.Field(default=2048, ge=300)
    """Entries of the tokenizer that is trained on the training documents."""

    tokenizer_path: str | None = None
    """Tokenizer folder or name. None: one is trained."""

    max_bytes: int = pydantic.Field(default=16_000_000, ge=1000)
    """Text that is read from the front of the source, in bytes."""


MIN_DOCUMENTS = 30
"""With fewer documents the source is cut by position: a tenth of them would be too few to measure with."""


class TextWindows:
    """Windows of one source.

    Args:
        config: what to cut and how.
        seed: decides which documents are held out, so that the test is the same for every seed of a run.

    Raises `DataError` where the source cannot be read, or has too little text for three splits.
    """

    name = "text_windows"

    def __init__(self, config: WindowConfig, *, seed: int = 0) -> None:
        self.config = config
        self.counts = ReadCounts()
        plan = resolve_plan(DataConfig(source=config.source, val_split=0.0), seed=seed)
        texts = list(sample_texts(plan, split="all", max_bytes=config.max_bytes, counts=self.counts))
        self.is_by_position = len(texts) < MIN_DOCUMENTS
        divide = _by_position if self.is_by_position else _by_document
        self._texts = divide(texts, config.held_out, seed)
        for split in SPLITS:
            if not self._texts[split]:
                raise DataError(f"{config.source}: no text falls into {split}; give a source with more text")
        self.tokenizer = _tokenizer(config, self._texts["train"])
        self._windows = {split: self._cut(split) for split in SPLITS}

    @property
    def num_labels(self) -> int:
        """Entries of the vocabulary: a label is the next token."""
        return self.tokenizer.vocab_size

    def splits(self, seed: int) -> Splits:
        """Return windows: tokens int64 [n, seq_len], labels the next token of each; `seed` orders the training ones."""
        test = self._windows["test"]
        # Short texts repeat, as licences do: what is also in the test is not learnt.
        validation = without_inputs_of(self._windows["validation"], test)
        train = without_inputs_of(self._windows["train"], validation, test)
        order = np.random.default_rng(seed).permutation(len(train))[: self.config.max_windows]
        return Splits(
            name=self.name,
            num_labels=self.num_labels,
            train=train.select(order),
            validation=validation,
            test=test,
            source=self.config.source,
        )

    def _cut(self, split: Split) -> Examples:
        seq_len = self.config.seq_len
        encoded = self.tokenizer.encode_documents(self._texts[split])
        stream = np.concatenate([np.append(ids, self.tokenizer.eos_id) for ids in encoded]).astype(np.int64)
        stride = (self.config.stride or seq_len) if split == "train" else seq_len
        starts = np.arange(0, len(stream) - seq_len, stride)
        if split != "train":
            starts = starts[: max(1, self.config.max_windows // 10)]
        if not len(starts):
            raise DataError(
                f"{self.config.source}: {split} has {len(stream)} tokens, a window takes {seq_len + 1}; "
                "give more text or a smaller --seq-len"
            )
        windows = stream[starts[:, None] + np.arange(seq_len + 1)]
        return Examples("tokens", windows[:, :-1].copy(), windows[:, 1:].copy())


def _by_document(texts: list[str], held_out: float, seed: int) -> dict[Split, list[str]]:
    """Divide by content, so that copies of a document fall into the same split."""
    found: dict[Split, list[str]] = {split: [] for split in SPLITS}
    for text in texts:
        share = content_hash(text, seed=seed) / 2.0**64
        split: Split = "test" if share < held_out else "validation" if share < 2 * held_out else "train"
        found[split].append(text)
    return found


def _by_position(texts: list[str], held_out: float, seed: int) -> dict[Split, list[str]]:
    """Cut every document in three, at white space."""
    found: dict[Split, list[str]] = {split: [] for split in SPLITS}
    for text in texts:
        first, second = (_next_space(text, share) for share in (1 - 2 * held_out, 1 - held_out))
        for split, part in zip(SPLITS, (text[:first], text[first:second], text[second:]), strict=True):
            found[split] += [part] if part.strip() else []
    return found


def _next_space(text: str, share: float) -> int:
    start = int(share * len(text))
    match = re.compile(r"\s").search(text, start)
    return match.start() if match else len(text)


def _tokenizer(config: WindowConfig, texts: list[str]) -> TextTokenizer:
    if config.tokenizer_path:
        return load_tokenizer(config.tokenizer_path)
    return train_tokenizer(texts, config.vocab_size)
