"""Words of a text, what counts as a content word, and when two words show the same form."""

import re

BLANK = "___"
"""Stands where a word was taken out."""

_FUNCTION_WORDS = """
a about above after again against all also always am an and another any are as at away be because been before being
below between both but by can cannot could did do does doing done down during each either else ever every few for from
further get give given had has have having he her here hers him himself his how i if in into is it its itself just less
like made make many may me might mine more most much must my myself neither no nobody nor not now of off often on once
one only or other others our ours out over own part quite same she should since so some someone something such than
that the their theirs them then there these they thing things this those through thus to too under until up upon us use
used usually very was we well were what when where whether which while who whom whose why will with within without
would yet you your yours
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words that say nothing about what a thing is; they may stand on both sides of what is matched."""

_WORD = re.compile(r"___|[^\W_]+(?:'[^\W_]+)*")
_ENDINGS = re.compile(
    r"(ations?|ingly|ings?|edly|eds?|ers?|ors?|ies|ied|ily|ness|ments?|ables?|ibles?|ists?|isms?|ically|ical|ics?|ally"
    r"|als?|ly|ity|ous|ful|less|ship|es|ed|s|y|e)$"
)
_MIN_STEM = 4


def words(text: str) -> list[str]:
    """Return the words of `text` in lower case, without punctuation; `___` is a word."""
    return _WORD.findall(text.lower())


def content_words(text: str) -> set[str]:
    """Return the words of `text` less function words, blanks and single letters."""
    return {word for word in words(text) if word not in FUNCTION_WORDS and word != BLANK and len(word) > 1}


def stem(word: str) -> str:
    """Return `word` without its last English ending, at least 4 letters; crude: it only serves to hide forms."""
    word = word.lower().partition("'")[0]
    shorter = _ENDINGS.sub("", word)
    return shorter if len(shorter) >= _MIN_STEM else word


def shares_form(word: str, other: str) -> bool:
    """Tell whether `other` shows the form of `word`: the same stem, or the stem of one begins or ends the other.

    Meant to find too much rather than too little: `abate` and `abatement`, `linear` and `curvilinear`.
    """
    a, b = sorted((stem(word), stem(other)), key=len)
    if a == b or word.lower() == other.lower():
        return True
    return len(a) >= _MIN_STEM and (b.startswith(a) or b.endswith(a))


def form_words(text: str, word: str) -> set[str]:
    """Return the words of `text` that show the form of `word`."""
    return {other for other in words(text) if other != BLANK and shares_form(word, other)}


def blank_out(text: str, word: str, *, by: str = BLANK) -> str:
    """Return `text` with every word that shows the form of `word` replaced by `by`."""
    return _WORD.sub(lambda match: by if match[0] != BLANK and shares_form(word, match[0]) else match[0], text)
