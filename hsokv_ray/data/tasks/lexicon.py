"""What words can mean: attributes with values, each said in two disjoint vocabularies, and clauses to say them in."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hsokv_ray.data.tasks.words import content_words, words

_ONSETS = [
    "b",
    "bl",
    "br",
    "d",
    "dr",
    "f",
    "fl",
    "fr",
    "g",
    "gl",
    "gr",
    "h",
    "j",
    "k",
    "kl",
    "kr",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "pr",
    "r",
    "s",
    "sk",
    "sl",
    "sm",
    "sn",
    "sp",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "z",
]
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "ee", "oo"]
_CODAS = ["", "", "l", "m", "n", "r", "s", "t", "k", "ng", "rn", "st", "lt", "nd"]


@dataclass(frozen=True)
class Value:
    """One value of an attribute and the words for it."""

    definition_words: tuple[str, ...]
    """How definitions say it."""
    context_words: tuple[str, ...]
    """How contexts hint at it; none of them is a definition word of any value."""


@dataclass(frozen=True)
class Attribute:
    """A property of things; clauses hold `{}` where the word for the value goes."""

    name: str
    values: tuple[Value, ...]
    definition_clauses: tuple[str, ...]
    context_clauses: tuple[str, ...]


@dataclass(frozen=True)
class Lexicon:
    """Attributes and the openings of sentences; `{}` in an opening is the word, or what stands for it.

    Content words of definitions (openings, clauses and words for values) and of contexts are disjoint.
    """

    attributes: tuple[Attribute, ...]
    definition_openings: tuple[str, ...]
    """With the word in it."""
    nameless_openings: tuple[str, ...]
    """For definitions from which the word was removed."""
    context_openings: tuple[str, ...]

    @cached_property
    def meanings(self) -> dict[str, tuple[int, int]]:
        """Word for a value -> (attribute, value): what a learner has to find out, and what the oracle knows."""
        return {
            word: (a, v)
            for a, attribute in enumerate(self.attributes)
            for v, value in enumerate(attribute.values)
            for word in (*value.definition_words, *value.context_words)
        }

    @cached_property
    def definition_vocabulary(self) -> set[str]:
        """Content words that definitions are made of, nonces aside."""
        texts = [*self.definition_openings, *self.nameless_openings]
        texts += [clause for attribute in self.attributes for clause in attribute.definition_clauses]
        texts += [" ".join(value.definition_words) for attribute in self.attributes for value in attribute.values]
        return content_words(" ".join(texts))

    @cached_property
    def context_vocabulary(self) -> set[str]:
        """Content words that contexts are made of."""
        texts = [*self.context_openings]
        texts += [clause for attribute in self.attributes for clause in attribute.context_clauses]
        texts += [" ".join(value.context_words) for attribute in self.attributes for value in attribute.values]
        return content_words(" ".join(texts))

    def read(self, text: str) -> dict[int, int]:
        """Return attribute -> value for every attribute that `text` speaks of, in either vocabulary."""
        return dict(self.meanings[word] for word in words(text) if word in self.meanings)


def nonce(rng: np.random.Generator, *, taken: Collection[str]) -> str:
    """Return a made-up word of two or three syllables that is not in `taken`."""
    while True:
        num_syllables = int(rng.integers(2, 4))
        word = "".join(_pick(rng, part) for _ in range(num_syllables) for part in (_ONSETS, _VOWELS))
        word += _pick(rng, _CODAS)
        if word not in taken:
            return word


def sampled_lexicon(rng: np.random.Generator, *, num_attributes: int, num_values: int, num_synonyms: int) -> Lexicon:
    """Return a lexicon of made-up words, which no pretrained encoder has met.

    Args:
        num_attributes, num_values: size of the space of meanings.
        num_synonyms: words per value in each of the two vocabularies.
    """
    taken: set[str] = set()

    def some(count: int) -> tuple[str, ...]:
        found = []
        for _ in range(count):
            found.append(nonce(rng, taken=taken))
            taken.add(found[-1])
        return tuple(found)

    attributes = []
    for a in range(num_attributes):
        values = tuple(Value(some(num_synonyms), some(num_synonyms)) for _ in range(num_values))
        said, shown = some(2), some(2)
        attributes.append(
            Attribute(
                f"attribute {a}",
                values,
                definition_clauses=(f"{said[0]} of {{}}", f"{{}} in its {said[1]}"),
                context_clauses=(f"with the {shown[0]} {{}}", f"and some {{}} {shown[1]}"),
            )
        )
    name, seen = some(4), some(4)
    return Lexicon(
        tuple(attributes),
        definition_openings=(f"a {{}} is {name[0]}", f"{{}} {name[1]}", f"the {name[2]} {{}} is"),
        nameless_openings=(f"it is {name[0]}", f"{name[1]}", f"the {name[3]} is"),
        context_openings=(
            f"we {seen[0]} the {{}}",
            f"one {{}} {seen[1]}",
            f"then a {{}} {seen[2]}",
            f"the {{}} {seen[3]}",
        ),
    )


def _pick(rng: np.random.Generator, options: list[str]) -> str:
    return options[int(rng.integers(len(options)))]
