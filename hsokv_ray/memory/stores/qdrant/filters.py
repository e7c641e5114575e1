"""Predicates as Qdrant filters, for the engine's classes and the client's alike: both name the same parts.

compile_predicate(HasAny(("=lang\\x1fs:en",)), EDGE)          # Filter(must=[terms is any of ...])
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hsokv_ray.memory.stores.facets import AllOf, AnyOf, HasAny, InRange, NoneOf, Predicate
from hsokv_ray.memory.stores.qdrant.payload import TERMS, range_terms


@dataclass(frozen=True, slots=True)
class Words:
    """The classes of which a filter is built."""

    filter: Callable[..., Any]
    field: Callable[..., Any]
    match_any: Callable[..., Any]


def compile_predicate(predicate: Predicate | None, words: Words) -> Any | bool:
    """Return the filter of `predicate`; True where everything passes, False where nothing does."""
    compiled = True if predicate is None else _compile(predicate, words)
    return compiled if isinstance(compiled, bool) else words.filter(must=[compiled])


def _compile(predicate: Predicate, words: Words) -> Any | bool:
    match predicate:
        case HasAny(terms):
            return _has_any(terms, words)
        case InRange(key, op, bound):
            return _has_any(range_terms(key, op, bound), words)
        case AllOf(parts):
            compiled = [_compile(part, words) for part in parts]
            if any(part is False for part in compiled):
                return False
            rest = [part for part in compiled if part is not True]
            return words.filter(must=rest) if rest else True
        case AnyOf(parts):
            compiled = [_compile(part, words) for part in parts]
            if any(part is True for part in compiled):
                return True
            rest = [part for part in compiled if part is not False]
            return words.filter(should=rest) if rest else False
        case NoneOf(part):
            compiled = _compile(part, words)
            return not compiled if isinstance(compiled, bool) else words.filter(must_not=[compiled])


def _has_any(terms: Sequence[str], words: Words) -> Any | bool:
    return bool(terms) and words.field(key=TERMS, match=words.match_any(any=list(terms)))
