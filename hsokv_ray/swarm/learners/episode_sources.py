"""Where one-shot episodes come from: generated, or a folder of real words, to train, to validate and to test."""

from typing import Protocol

from hsokv_ray.data.tasks import MIN_WORDS, Episode, RareWordConfig, RareWords, RealWords, WordTokenizer
from hsokv_ray.data.tasks.base import Split

NUM_FITTED = 100
"""Generated episodes from which the vocabulary is taken; every word of the grammar occurs many times in them."""
MIN_COUNT = 3
"""Occurrences that make a word of the vocabulary; a nonce has fewer and is unknown."""


class EpisodeSource(Protocol):
    """Episodes of three disjoint sets of words."""

    def training(self, seed: int, num_queries: int) -> list[Episode]:
        """Return episodes with at least `num_queries` queries together."""
        ...

    def measured(self, split: Split, num_words: int) -> list[Episode]:
        """Return the episodes of an evaluation, the same each time, with at least `num_words` one-shot words."""
        ...

    @property
    def tokenizer(self) -> WordTokenizer:
        """Of the words of training."""
        ...


class GeneratedEpisodes:
    """Episodes of the generator; a batch of more queries than words asks for each word in several contexts.

    Args:
        config: of the task.
        seed: of what is held out and of what is measured.
    """

    def __init__(self, config: RareWordConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self._tasks: dict[int, RareWords] = {}
        episodes = self._task(1).episodes("train", num_episodes=NUM_FITTED, seed=seed)
        self._tokenizer = _fitted(episodes)

    def training(self, seed: int, num_queries: int) -> list[Episode]:
        """Return one episode; see `EpisodeSource`."""
        contexts = -(-num_queries // self._config.num_candidates)
        return self._task(contexts).episodes("train", num_episodes=1, seed=seed)

    def measured(self, split: Split, num_words: int) -> list[Episode]:
        """See `EpisodeSource`. Raises `ConfigError`: `num_words` is below `MIN_WORDS` or more than is held out."""
        return self._task(1).evaluation(split, seed=self._seed, num_words=num_words)

    @property
    def tokenizer(self) -> WordTokenizer:
        """Fitted on training episodes."""
        return self._tokenizer

    def _task(self, contexts_per_word: int) -> RareWords:
        if contexts_per_word not in self._tasks:
            config = self._config.model_copy(update={"contexts_per_word": contexts_per_word})
            self._tasks[contexts_per_word] = RareWords(config, seed=self._seed)
        return self._tasks[contexts_per_word]


class RealEpisodes:
    """Episodes of real words, one context for each; a larger batch takes several episodes.

    Args:
        task: the words; `DataError` where they are too few for one episode.
        seed: of what is measured.
        measures_all: all words of a split that fill an episode, however many are asked for.
    """

    def __init__(self, task: RealWords, seed: int, *, measures_all: bool = False) -> None:
        self._task, self._seed, self._measures_all = task, seed, measures_all
        self._tokenizer = _fitted(task.episodes("train", seed=seed))

    def training(self, seed: int, num_queries: int) -> list[Episode]:
        """See `EpisodeSource`. Raises `DataError`: too few words."""
        return self._task.episodes("train", seed=seed, num_words=num_queries)

    def measured(self, split: Split, num_words: int = MIN_WORDS) -> list[Episode]:
        """See `EpisodeSource`. Raises `DataError`: too few words."""
        return self._task.episodes(split, seed=self._seed, num_words=None if self._measures_all else num_words)

    @property
    def tokenizer(self) -> WordTokenizer:
        """Fitted on all training words, each in one context."""
        return self._tokenizer


def _fitted(episodes: list[Episode]) -> WordTokenizer:
    texts = [text for episode in episodes for text in (*episode.definitions, *episode.contexts)]
    return WordTokenizer.fit(texts, min_count=MIN_COUNT)
