"""One-shot episodes: n words, each met once in its definition, and contexts whose blank asks for one of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hsokv_ray.data.tasks.base import Examples, text_examples
from hsokv_ray.data.tasks.words import BLANK, content_words, words
from hsokv_ray.errors import DataError


@dataclass(frozen=True, eq=False)
class Episode:
    """n candidates and the queries about them; a classifier is a function of (support, queries).

    Raises `DataError` where a query shows the word it asks for, a label is out of range, or the support is not one
    text per candidate.
    """

    words: tuple[str, ...]
    """What the candidates are called; random per episode in generated ones. For display: nothing is matched with it."""
    support: Examples
    """n definitions, labels 0 to n - 1 in the episode's random order."""
    queries: Examples
    """Contexts with the word blanked as `___`; the label is the position of the right word."""

    def __post_init__(self) -> None:
        if self.support.labels.tolist() != list(range(len(self.words))):
            got = f"{len(self.support)} texts for {len(self.words)} words"
            raise DataError(f"episode: got {got}; one text for each word in the order of the words is needed")
        if len(self.queries) and self.queries.labels.max() >= len(self.words):
            got = f"label {self.queries.labels.max()}"
            raise DataError(f"episode: got {got} with {len(self.words)} candidates; labels are positions of candidates")
        for text, label in zip(self.queries.inputs.tolist(), self.queries.labels.tolist(), strict=True):
            if self.words[label].lower() in words(text):
                raise DataError(f"episode: the query {text!r} shows the word it asks for; blank it as {BLANK}")

    @property
    def num_candidates(self) -> int:
        """Words to choose from; chance is 1 in this many."""
        return len(self.words)

    @property
    def definitions(self) -> list[str]:
        """The support texts."""
        return self.support.inputs.tolist()

    @property
    def contexts(self) -> list[str]:
        """The query texts."""
        return self.queries.inputs.tolist()

    @property
    def labels(self) -> np.ndarray:
        """int64 [queries]."""
        return self.queries.labels

    def shared_words(self) -> list[set[str]]:
        """Return, for each query, the content words it shares with the definition of its own word."""
        pairs = zip(self.contexts, self.labels.tolist(), strict=True)
        return [content_words(context) & content_words(self.definitions[label]) for context, label in pairs]


def make_episode(
    names: Sequence[str], definitions: Sequence[str], contexts: Sequence[Sequence[str]], *, rng: np.random.Generator
) -> Episode:
    """Return an episode with candidates and queries in random order.

    Args:
        names: n words.
        definitions: n texts.
        contexts: for each word the contexts in which it is asked for.
        rng: the source of both orders.
    """
    order: list[int] = rng.permutation(len(names)).tolist()
    asked = [(text, label) for label, i in enumerate(order) for text in contexts[i]]
    asked = [asked[i] for i in rng.permutation(len(asked))]
    return Episode(
        words=tuple(names[i] for i in order),
        support=text_examples([definitions[i] for i in order], range(len(order))),
        queries=text_examples([text for text, _ in asked], [label for _, label in asked]),
    )


def dealt(num_items: int, num_candidates: int, *, num_words: int | None, rng: np.random.Generator) -> list[np.ndarray]:
    """Return groups of `num_candidates` different positions below `num_items`, in random order; the rest is left out.

    Args:
        num_words: positions wanted in all groups, rounded up to whole groups; None: as many as there are.

    Raises `DataError` where there are too few items.
    """
    wanted = num_items if num_words is None else -(-num_words // num_candidates) * num_candidates
    num_groups = wanted // num_candidates
    if num_groups < 1 or wanted > num_items:
        needed = max(wanted, num_candidates)
        raise DataError(f"episodes: {needed} words are asked for, {num_items} are there; ask for fewer words")
    order = rng.permutation(num_items)
    return [order[i * num_candidates : (i + 1) * num_candidates] for i in range(num_groups)]
