"""Definitional Nonce (Herbelot and Baroni 2017): words with the first sentence of their Wikipedia article.

The published task ranks all words of a vocabulary by similarity to the definition's vector. Without a filter a look-up
of stems that reads no definition wins it, so words whose form shows in their definition are dropped here, as in the
filtered variant, and counted. Because the set has one sentence per word, episodes halve it: the first half defines, the
second half is the context. Figures of these episodes are not comparable with published ones; `words` with the whole
definitions serve the published protocol.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hsokv_ray.data.tasks.files import read_tsv, require
from hsokv_ray.data.tasks.real_words import DefinedWord
from hsokv_ray.data.tasks.words import BLANK, content_words, form_words, words
from hsokv_ray.errors import DataError

_HOW = (
    "give a folder with n2v.definitional.dataset.train.txt and .test.txt "
    "(https://github.com/NLPrinceton/ALaCarte, data-nonces)"
)
_MIN_CONTENT = 2


@dataclass(frozen=True)
class Nonce:
    """A word and its definition, in which the word is `___`."""

    word: str
    definition: str


@dataclass(frozen=True)
class FilteredNonces:
    """What passes the filter, and how much does not."""

    nonces: list[Nonce]
    num_dropped: int
    """Words whose form shows in the definition."""

    def halves(self) -> list[DefinedWord]:
        """Return the first half of each definition as definition and the second, after a blank, as context."""
        found = []
        for nonce in self.nonces:
            tokens = [token for token in words(nonce.definition) if token != BLANK]
            first, second = tokens[: len(tokens) // 2], tokens[len(tokens) // 2 :]
            texts = (" ".join(first), " ".join([BLANK, *second]))
            if all(len(content_words(text)) >= _MIN_CONTENT for text in texts):
                found.append(DefinedWord(nonce.word, texts[0], (texts[1],)))
        return found


def read_definitional_nonces(folder: str | Path, part: Literal["train", "test"]) -> FilteredNonces:
    """Read the words of the published `part`, filtered for form.

    Args:
        folder: holds the files, or a folder oneshot_words with them.

    Raises `DataError` where the file is missing or damaged, or nothing passes the filter.
    """
    folder = Path(folder).expanduser()
    inner = folder / "oneshot_words"
    path = require(inner if inner.is_dir() else folder, f"n2v.definitional.dataset.{part}.txt", how=_HOW)
    rows = [row for row in read_tsv(path, num_columns=1) if row[0] and not row[0].startswith("#")]
    short = next((row for row in rows if len(row) < 2), None)
    if short is not None:
        raise DataError(f"{path}: {short[0]!r} has no definition; {_HOW}")
    all_nonces = [Nonce(row[0], " ".join(row[1].split())) for row in rows]
    kept = [nonce for nonce in all_nonces if not form_words(nonce.definition, nonce.word)]
    if not kept:
        raise DataError(f"{path}: none of {len(all_nonces)} words passes the filter of forms; {_HOW}")
    return FilteredNonces(kept, len(all_nonces) - len(kept))
