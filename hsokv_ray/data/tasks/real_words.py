"""Real rare words as episodes: a dictionary's definition with the form hidden, and its example with the word blanked.

The folder rare_words holds `rare_words.jsonl(.gz)`: objects with word and senses, a sense with definition and examples.
Words that show their form in the definition (abatement: "the act of abating") lose it: it is replaced by the blank.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hsokv_ray.data.tasks.base import SPLITS, Split
from hsokv_ray.data.tasks.episodes import Episode, dealt, make_episode
from hsokv_ray.data.tasks.files import read_json_lines, require
from hsokv_ray.data.tasks.words import BLANK, blank_out, content_words, form_words
from hsokv_ray.errors import DataError

_HOW = (
    "give a folder with rare_words.jsonl.gz: one object per line with word and senses, each with definition and "
    "examples (made from Open English WordNet, https://en-word.net)"
)
_MIN_CONTENT = 1
"""Content words that definition and context must keep when the form is hidden."""


@dataclass(frozen=True)
class DefinedWord:
    """A word, what it means, and where it is used; its form is in neither."""

    word: str
    definition: str
    contexts: tuple[str, ...]


class RealWords:
    """Episodes of defined words, split by word.

    Args:
        words: the words; `read_rare_words`, `read_definitional_nonces`.
        name: of the data, for tables.
        seed: decides which words are held out: a fifth for the test, a fifth for validation.
        num_candidates: words in an episode.
    """

    def __init__(self, words: list[DefinedWord], *, name: str, seed: int, num_candidates: int = 20) -> None:
        self.name = name
        self.num_candidates = num_candidates
        order = np.random.default_rng(seed).permutation(len(words))
        fifth = len(words) // 5
        bounds = {"test": order[:fifth], "validation": order[fifth : 2 * fifth], "train": order[2 * fifth :]}
        self._words = {split: [words[i] for i in bounds[split]] for split in SPLITS}

    def words(self, split: Split) -> list[DefinedWord]:
        """Return the words of a split."""
        return self._words[split]

    def episodes(self, split: Split, *, seed: int, num_words: int | None = None) -> list[Episode]:
        """Return episodes of words of `split`, each word once, with one of its contexts.

        Args:
            num_words: how many, rounded up to whole episodes; None: all, less those that fill no episode.

        Raises `DataError` where the split has fewer words.
        """
        rng = np.random.default_rng([seed, SPLITS.index(split)])
        words = self._words[split]
        groups = dealt(len(words), self.num_candidates, num_words=num_words, rng=rng)
        return [_episode([words[i] for i in group], rng) for group in groups]


@dataclass(frozen=True)
class HiddenForms:
    """Words that can be used, and how many could not."""

    words: list[DefinedWord]
    num_dropped: int
    """Words that do not occur in their example, or whose texts say too little without them."""


def read_rare_words(folder: str | Path) -> HiddenForms:
    """Read the folder rare_words (or a folder that holds it).

    Raises `DataError` where the file is missing or damaged, or no word is left.
    """
    path = require(_inner(folder, "rare_words"), "rare_words.jsonl", how=_HOW)
    found: list[DefinedWord] = []
    num_rows = 0
    for num_rows, row in enumerate(read_json_lines(path, fields=("word", "senses")), start=1):  # noqa: B007
        try:
            sense = row["senses"][0]
            word = hide_form(row["word"], sense["definition"], sense["examples"])
        except (KeyError, IndexError, TypeError):
            raise DataError(f"{path}:{num_rows}: a sense with definition and examples is needed; {_HOW}") from None
        if word is not None:
            found.append(word)
    if not found:
        raise DataError(f"{path}: no word can be used; {_HOW}")
    return HiddenForms(found, num_rows - len(found))


def hide_form(word: str, definition: str, examples: list[str]) -> DefinedWord | None:
    """Return the word with its form blanked in definition and contexts; None where too little is left.

    Contexts that never show the word are left out: there is nothing to ask for in them.
    """
    hidden = blank_out(definition, word)
    contexts = tuple(blank_out(text, word) for text in examples if form_words(text, word))
    contexts = tuple(text for text in contexts if BLANK in text and len(content_words(text)) >= _MIN_CONTENT)
    if not contexts or len(content_words(hidden)) < _MIN_CONTENT:
        return None
    return DefinedWord(word, hidden, contexts)


def _inner(folder: str | Path, name: str) -> Path:
    folder = Path(folder).expanduser()
    return folder / name if (folder / name).is_dir() else folder


def _episode(words: list[DefinedWord], rng: np.random.Generator) -> Episode:
    contexts = [[word.contexts[int(rng.integers(len(word.contexts)))]] for word in words]
    return make_episode([word.word for word in words], [word.definition for word in words], contexts, rng=rng)
