"""Words to ids for small tasks: a vocabulary fitted on training texts only, or a hash that needs no fitting.

Ids 0 to 4 are the same in both: padding, unknown, start, separator of a pair, blank. Both are saved as one JSON file.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from hsokv_ray.data.tasks.base import Examples
from hsokv_ray.data.tasks.words import BLANK, words
from hsokv_ray.errors import DataError

PAD_ID, UNKNOWN_ID, START_ID, SEPARATOR_ID, BLANK_ID = range(5)
NUM_SPECIAL = 5
FILE = "word_tokenizer.json"


@dataclass(frozen=True, eq=False)
class Encoded:
    """Token ids of n texts."""

    input_ids: np.ndarray
    """int64 [n, T], padded with 0."""
    attention_mask: np.ndarray
    """int64 [n, T], 1 where there is a token."""
    num_cut: int
    """Texts that were longer than allowed."""


class WordTokenizer:
    """A vocabulary of whole words, or `num_buckets` of hashed ones.

    Args:
        vocabulary: words in the order of their ids, from 5 on; None hashes.
        num_buckets: ids for hashed words.
    """

    pad_token_id = PAD_ID

    def __init__(self, vocabulary: Sequence[str] | None = None, *, num_buckets: int = 0) -> None:
        if (vocabulary is not None) == (num_buckets > 0):
            raise DataError("tokenizer: give a vocabulary (WordTokenizer.fit) or a number of buckets, not both")
        self._ids = {word: NUM_SPECIAL + i for i, word in enumerate(vocabulary or ())}
        self._num_buckets = num_buckets

    @classmethod
    def fit(cls, texts: Iterable[str], *, max_words: int = 30_000, min_count: int = 1) -> Self:
        """Return a tokenizer with the `max_words` most frequent words of training texts that occur `min_count` times.

        Of episodes with nonces, which each come once, a `min_count` of 3 leaves them out: they are then unknown words.

        Raises `DataError` where the texts hold no word.
        """
        counts = Counter(word for text in texts for word in words(text) if word != BLANK)
        if not counts:
            raise DataError("tokenizer: the training texts hold no word; give texts")
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls([word for word in ranked[:max_words] if counts[word] >= min_count])

    @classmethod
    def hashed(cls, num_buckets: int) -> Self:
        """Return a tokenizer that needs no training texts; different words may share an id."""
        return cls(num_buckets=num_buckets)

    @property
    def vocab_size(self) -> int:
        """Rows an embedding needs."""
        return NUM_SPECIAL + (self._num_buckets or len(self._ids))

    def id_of(self, word: str) -> int:
        """Return the id of one word in lower case."""
        if word == BLANK:
            return BLANK_ID
        if self._num_buckets:
            digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            return NUM_SPECIAL + int.from_bytes(digest, "little") % self._num_buckets
        return self._ids.get(word, UNKNOWN_ID)

    def encode(self, texts: Sequence[str] | Sequence[Sequence[str]] | np.ndarray, *, max_length: int = 96) -> Encoded:
        """Return the ids of texts, or of pairs of texts.

        Args:
            texts: n texts, or n pairs.
            max_length: tokens of a text, the start token included; longer texts are cut and counted. Of a pair, the
                longer text loses words first.
        """
        if max_length < 4:
            raise DataError(f"max_length: got {max_length}; at least 4 tokens are needed")
        rows, num_cut = [], 0
        for text in texts:
            parts = [[self.id_of(w) for w in words(part)] for part in ([text] if isinstance(text, str) else text)]
            room = max_length - len(parts)
            num_cut += sum(map(len, parts)) > room
            rows.append(_joined(_shortened(parts, room)))
        width = max(map(len, rows), default=1)
        input_ids = np.full((len(rows), width), PAD_ID, dtype=np.int64)
        for i, row in enumerate(rows):
            input_ids[i, : len(row)] = row
        return Encoded(input_ids, (input_ids != PAD_ID).astype(np.int64), num_cut)

    def examples(self, examples: Examples, *, max_length: int = 96) -> Examples:
        """Return texts or pairs as `Examples` of token ids; padding is 0."""
        return Examples("tokens", self.encode(examples.inputs, max_length=max_length).input_ids, examples.labels)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the tokenizer into `folder`; return the file."""
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"num_buckets": self._num_buckets, "vocabulary": None if self._num_buckets else list(self._ids)}
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return path

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read what `save_pretrained` wrote. Raises `DataError` where it is missing or damaged."""
        path = Path(folder) / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(content["vocabulary"], num_buckets=content["num_buckets"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            cause = " ".join(str(error).split())
            raise DataError(f"{path}: not a word tokenizer ({cause}); give the folder save_pretrained wrote") from None


def _joined(parts: list[list[int]]) -> list[int]:
    ids = [START_ID, *parts[0]]
    for part in parts[1:]:
        ids += [SEPARATOR_ID, *part]
    return ids


def _shortened(parts: list[list[int]], room: int) -> list[list[int]]:
    lengths = [len(part) for part in parts]
    while sum(lengths) > room:
        lengths[lengths.index(max(lengths))] -= 1
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]
