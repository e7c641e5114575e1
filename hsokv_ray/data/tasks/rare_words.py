"""Rare words, one shot, generated: hidden attributes said in one vocabulary and asked for in another.

Words are combinations of attributes. A definition names all of them (`crimson`), a context hints at some (`the shade of
cherries`), and no content word is in both, so that nothing but the alignment of the two vocabularies, which has to be
learnt from training episodes, tells which word is meant. The word itself is a nonce made up for the episode.

    task = RareWords(RareWordConfig(), seed=0)
    task.episodes("train", num_episodes=100, seed=1)       # to learn from
    task.evaluation("test", seed=1)                        # 200 words that were never seen, in episodes of 20

Held out are pairs of values: with attributes x and y of V values each, the cell (x, y) belongs to the test where
x + permutation[y] is 0 modulo V, to the validation where it is 1. So every value is learnt, and no pair of the test is
ever seen in training.
"""

from typing import Literal

import numpy as np
import pydantic

from hsokv_ray.config import Config
from hsokv_ray.data.tasks.base import SPLITS, Split
from hsokv_ray.data.tasks.english import ENGLISH
from hsokv_ray.data.tasks.episodes import Episode, make_episode
from hsokv_ray.data.tasks.grammar import context, definition, telling_attributes
from hsokv_ray.data.tasks.lexicon import Lexicon, nonce, sampled_lexicon
from hsokv_ray.data.tasks.words import FUNCTION_WORDS
from hsokv_ray.errors import ConfigError

MIN_WORDS = 200
"""One-shot words in an evaluation, at least: the 95 % interval of an accuracy is then at most 14 points wide."""


class RareWordConfig(Config):
    """Sizes of the generated rare-word task."""

    num_candidates: int = pydantic.Field(default=20, ge=2)
    """Words in an episode; chance is 1 in this many."""

    contexts_per_word: int = pydantic.Field(default=1, ge=1)
    """Queries for each word of an episode."""

    context_attributes: int = pydantic.Field(default=3, ge=1)
    """Attributes a context hints at; more where it takes more to tell the word from the other candidates."""

    form: Literal["nonce", "removed"] = "nonce"
    """What stands for the word in its definition: a nonce made up for the episode, or nothing."""

    vocabulary: Literal["english", "sampled"] = "english"
    """English words, or made-up ones drawn by the task's seed, which no pretrained encoder has met."""

    num_attributes: int = pydantic.Field(default=6, ge=3)
    """Attributes of a sampled vocabulary; the English one has 6."""

    num_values: int = pydantic.Field(default=8, ge=4)
    """Values of an attribute of a sampled vocabulary; the English ones have 8."""

    num_synonyms: int = pydantic.Field(default=3, ge=1)
    """Words for a value on each side of a sampled vocabulary; the English one has 3."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "RareWordConfig":
        if self.vocabulary == "english" and (self.num_attributes, self.num_values, self.num_synonyms) != (6, 8, 3):
            got = f"{self.num_attributes} attributes, {self.num_values} values, {self.num_synonyms} synonyms"
            raise ValueError(f"vocabulary: got english with {got}; it has 6, 8 and 3: give --vocabulary sampled")
        if self.context_attributes > self.num_attributes:
            got = f"{self.context_attributes} of {self.num_attributes} attributes"
            raise ValueError(f"context_attributes: got {got}; give at most as many as there are")
        return self

    @property
    def num_held_out(self) -> int:
        """Words of the test, and as many of the validation."""
        return self.num_values ** (self.num_attributes - 1)


class RareWords:
    """The generator.

    Args:
        config: sizes.
        seed: decides what is held out, and the words of a sampled vocabulary.

    Raises `ConfigError` where the held-out words are too few for an evaluation.
    """

    name = "rare_words"

    def __init__(self, config: RareWordConfig | None = None, *, seed: int) -> None:
        self.config = config or RareWordConfig()
        rng = np.random.default_rng(seed)
        self.lexicon = _lexicon(self.config, rng)
        needed = max(MIN_WORDS, self.config.num_candidates)
        if self.config.num_held_out < needed:
            raise ConfigError(
                f"rare words: {self.config.num_held_out} words are held out, {needed} are needed; "
                "give more --num-values or --num-attributes"
            )
        self._seed = seed
        self._shift = rng.permutation(self.config.num_values)
        self._taken = self.lexicon.definition_vocabulary | self.lexicon.context_vocabulary | FUNCTION_WORDS

    def split_of(self, meanings_NA: np.ndarray) -> list[Split]:
        """Return the split each meaning, int [N, attributes], belongs to."""
        cells = (meanings_NA[:, 0] + self._shift[meanings_NA[:, 1]]) % self.config.num_values
        return [{0: "test", 1: "validation"}.get(int(cell), "train") for cell in cells]  # type: ignore[return-value]

    def episodes(self, split: Split, *, num_episodes: int, seed: int) -> list[Episode]:
        """Return episodes of words of `split`; a word may occur in several of them, never twice in one."""
        rng = self._rng(split, seed, 0)
        return [self._episode(self._meanings(split, self.config.num_candidates, rng), rng) for _ in range(num_episodes)]

    def evaluation(self, split: Split, *, seed: int, num_words: int = MIN_WORDS) -> list[Episode]:
        """Return episodes with at least `num_words` words of `split`, all of them different.

        Raises `ConfigError` where `num_words` is too small to measure with or more than is held out.
        """
        size = self.config.num_candidates
        total = -(-num_words // size) * size
        if num_words < MIN_WORDS or total > self.config.num_held_out:
            allowed = f"{MIN_WORDS} to {self.config.num_held_out // size * size}"
            raise ConfigError(f"num_words: got {num_words}; an evaluation takes {allowed} one-shot words")
        rng = self._rng(split, seed, 1)
        meanings_NA = self._meanings(split, total, rng)
        return [self._episode(meanings_NA[i : i + size], rng) for i in range(0, total, size)]

    def _rng(self, split: Split, seed: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, seed, SPLITS.index(split), purpose])

    def _meanings(self, split: Split, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return `count` different meanings of `split`, int [count, attributes]."""
        found: dict[tuple[int, ...], None] = {}
        num_values, num_attributes = self.config.num_values, self.config.num_attributes
        while len(found) < count:
            meanings_NA = rng.integers(num_values, size=(2 * count, num_attributes))
            # The first column follows from the second and the cell, so no draw is thrown away.
            cell = {"test": np.zeros(1, int), "validation": np.ones(1, int)}.get(split, np.arange(2, num_values))
            meanings_NA[:, 0] = (rng.choice(cell, 2 * count) - self._shift[meanings_NA[:, 1]]) % num_values
            found |= dict.fromkeys(map(tuple, meanings_NA.tolist()))
        return np.array(list(found)[:count])

    def _episode(self, meanings_NA: np.ndarray, rng: np.random.Generator) -> Episode:
        taken, names = set(self._taken), []
        for _ in meanings_NA:
            names.append(nonce(rng, taken=taken))
            taken.add(names[-1])
        is_shown = self.config.form == "nonce"
        definitions = [
            definition(self.lexicon, meaning, name if is_shown else None, rng)
            for meaning, name in zip(meanings_NA, names, strict=True)
        ]
        contexts = [
            [self._context(meanings_NA, row, rng) for _ in range(self.config.contexts_per_word)]
            for row in range(len(meanings_NA))
        ]
        return make_episode(names, definitions, contexts, rng=rng)

    def _context(self, meanings_NA: np.ndarray, row: int, rng: np.random.Generator) -> str:
        told = telling_attributes(meanings_NA, row, num_attributes=self.config.context_attributes, rng=rng)
        return context(self.lexicon, meanings_NA[row], told, rng)


def _lexicon(config: RareWordConfig, rng: np.random.Generator) -> Lexicon:
    if config.vocabulary == "english":
        return ENGLISH
    return sampled_lexicon(
        rng,
        num_attributes=config.num_attributes,
        num_values=config.num_values,
        num_synonyms=config.num_synonyms,
    )
