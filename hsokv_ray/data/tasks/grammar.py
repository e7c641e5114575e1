"""Sentences about a thing with given attributes, sampled from a lexicon's openings, clauses and words."""

import numpy as np

from hsokv_ray.data.tasks.lexicon import Lexicon
from hsokv_ray.data.tasks.words import BLANK


def definition(lexicon: Lexicon, meaning: np.ndarray, word: str | None, rng: np.random.Generator) -> str:
    """Return a definition that names every attribute, in random order.

    Args:
        meaning: int [attributes], the value of each.
        word: stands in the definition; None leaves it out.
    """
    opening = _pick(rng, lexicon.nameless_openings if word is None else lexicon.definition_openings).format(word)
    clauses = []
    for a in rng.permutation(len(meaning)):
        attribute = lexicon.attributes[a]
        said = _pick(rng, attribute.values[meaning[a]].definition_words)
        clauses.append(_pick(rng, attribute.definition_clauses).format(said))
    return f"{opening} {', '.join(clauses)}"


def context(lexicon: Lexicon, meaning: np.ndarray, attributes: np.ndarray, rng: np.random.Generator) -> str:
    """Return a context with a blank that hints at the values of `attributes` (positions), in their order."""
    clauses = [_pick(rng, lexicon.context_openings).format(BLANK)]
    for a in attributes:
        attribute = lexicon.attributes[a]
        shown = _pick(rng, attribute.values[meaning[a]].context_words)
        clauses.append(_pick(rng, attribute.context_clauses).format(shown))
    return ", ".join(clauses)


def telling_attributes(
    meanings_NA: np.ndarray, row: int, *, num_attributes: int, rng: np.random.Generator
) -> np.ndarray:
    """Return `num_attributes` random attributes, and as many more as it takes to tell `row` from all other rows.

    Args:
        meanings_NA: int [N, A], all rows different.
    """
    order = rng.permutation(meanings_NA.shape[1])
    same_NA = np.delete(meanings_NA, row, axis=0) == meanings_NA[row]
    while same_NA[:, order[:num_attributes]].all(axis=1).any():
        num_attributes += 1
    return order[:num_attributes]


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
