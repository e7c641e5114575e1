"""Metadata as drivers index it: terms for equality, numbers for ranges.

    {"lang": "en", "year": 1925, "on": "1925-05-14", "tags": ["a"]} has
    terms   ?lang  =lang␟s:en  ?year  =year␟n:1925.0  ?on  =on␟s:1925-05-14  ?tags  @tags␟s:a
    numbers n:year 1925.0, d:on -1408492800.0

`compile_filter` turns a filter into a few primitives over them, so that a driver compiles four node types and no
user text ever becomes a name or an operator in its query language.
"""

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from hsokv_ray.errors import DataError

if TYPE_CHECKING:
    from hsokv_ray.memory.stores.filters import Filter

SEPARATOR = "\x1f"
LONGEST_TERM = 200
"""Characters; longer terms are replaced by their digest."""
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_SPLIT = re.compile(r"((?:\\.|[^.\\])*)\.", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Facets:
    """What one metadata object is indexed under."""

    terms: list[str]
    """Distinct."""
    numbers: dict[str, float]
    """Finite."""


@dataclass(frozen=True, slots=True)
class HasAny:
    """At least one of `terms`; with none, nothing matches."""

    terms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InRange:
    """The number under `key` is there and compares with `bound`."""

    key: str
    op: str
    """gt, gte, lt or lte."""
    bound: float


@dataclass(frozen=True, slots=True)
class AllOf:
    """Every part; with none, everything matches."""

    parts: tuple["Predicate", ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Some part; with none, nothing matches."""

    parts: tuple["Predicate", ...]


@dataclass(frozen=True, slots=True)
class NoneOf:
    """The complement of `part`."""

    part: "Predicate"


Predicate = HasAny | InRange | AllOf | AnyOf | NoneOf


def facets(metadata: Mapping[str, Any]) -> Facets:
    """Return the terms and numbers of `metadata`."""
    terms: dict[str, None] = {}
    numbers: dict[str, float] = {}
    for path, value in _leaves(metadata, ()):
        name = _key(path)
        terms[_term("?", name)] = None
        if isinstance(value, list | tuple):
            for element in value:
                if not isinstance(element, list | tuple | Mapping):
                    terms[_term("@", name, element)] = None
        elif not isinstance(value, Mapping):
            terms[_term("=", name, value)] = None
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers[f"n:{name}"] = as_float(value)
            elif isinstance(value, str) and (when := instant(value)) is not None:
                numbers[f"d:{name}"] = when
    return Facets(list(terms), numbers)


def compile_filter(filter: "Filter | None") -> Predicate | None:
    """Return `filter` in terms of `Facets`; None stays None."""
    from hsokv_ray.memory.stores.filters import And, Compare, Not, Or

    match filter:
        case None:
            return None
        case And(parts):
            return AllOf(tuple(_required(part) for part in parts))
        case Or(parts):
            return AnyOf(tuple(_required(part) for part in parts))
        case Not(part):
            return NoneOf(_required(part))
        case Compare(op, path, value):
            return _compile(op, _key(path), value)
    raise AssertionError(filter)


def holds(predicate: Predicate | None, found: Facets) -> bool:
    """Return whether `found` satisfies `predicate`."""
    match predicate:
        case None:
            return True
        case HasAny(terms):
            return not set(terms).isdisjoint(found.terms)
        case InRange(key, op, bound):
            return key in found.numbers and in_range(found.numbers[key], op, bound)
        case AllOf(parts):
            return all(holds(part, found) for part in parts)
        case AnyOf(parts):
            return any(holds(part, found) for part in parts)
        case NoneOf(part):
            return not holds(part, found)


def in_range(number: Any, op: str, bound: float) -> Any:
    """Return whether `number` (a float or an array of them) is in the range."""
    match op:
        case "gt":
            return number > bound
        case "gte":
            return number >= bound
        case "lt":
            return number < bound
        case "lte":
            return number <= bound
    raise AssertionError(op)


def instant(text: str) -> float | None:
    """Return the seconds since 1970 of an ISO 8601 date or time, UTC where it names no zone; None for other text."""
    if not _DATE.match(text):
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    try:
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except OverflowError:
        return None


def split_path(path: str) -> tuple[str, ...]:
    """Return the keys of `path`: split at dots, except where a backslash stands before one. Raises `DataError`."""
    if not isinstance(path, str):
        raise DataError(f"filter: got the key {path!r}; a string is needed")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise DataError(f"filter: the key {path!r} has a lone surrogate, which is not Unicode text") from None
    keys = tuple(_ESCAPE.sub(r"\1", key) for key in _SPLIT.findall(path + "."))
    if not all(keys):
        raise DataError(f"filter: got the key {path!r}; keys are not empty, a dot within a key is written \\.")
    return keys


def join_path(path: Iterable[str]) -> str:
    """Return `path` as text that `split_path` reads back."""
    return ".".join(key.replace("\\", "\\\\").replace(".", "\\.") for key in path)


def as_float(value: float) -> float:
    """Return `value` as a float; a whole number too large for one becomes the largest there is."""
    try:
        return float(value)
    except OverflowError:
        return sys.float_info.max if value > 0 else -sys.float_info.max


def _key(path: tuple[str, ...]) -> str:
    return join_path(path).replace(SEPARATOR, "\\s")


def _leaves(value: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every key's path and value, objects before what is in them."""
    for key, inner in value.items():
        yield (*path, key), inner
        if isinstance(inner, Mapping):
            yield from _leaves(inner, (*path, key))


def _required(filter: "Filter") -> Predicate:
    predicate = compile_filter(filter)
    assert predicate is not None
    return predicate


def _compile(op: str, name: str, value: Any) -> Predicate:
    match op:
        case "eq":
            return _equals(name, (value,))
        case "ne":
            return NoneOf(_equals(name, (value,)))
        case "in":
            return _equals(name, value)
        case "nin":
            return NoneOf(_equals(name, value))
        case "exists":
            return HasAny((_term("?", name),))
        case "contains":
            return HasAny((_term("@", name, value),))
    if isinstance(value, str):
        when = instant(value)
        assert when is not None
        return InRange(f"d:{name}", op, when)
    return InRange(f"n:{name}", op, as_float(value))


def _equals(name: str, values: tuple[Any, ...]) -> Predicate:
    equal = HasAny(tuple(_term("=", name, value) for value in values))
    if None in values:
        return AnyOf((equal, NoneOf(HasAny((_term("?", name),)))))
    return equal


def _term(kind: str, name: str, *value: Any) -> str:
    text = kind + name
    if value:
        text += SEPARATOR + _scalar(value[0])
    if len(text) > LONGEST_TERM:
        return "#" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return text


def _scalar(value: Any) -> str:
    if value is None:
        return "z"
    if isinstance(value, bool):
        return f"b:{value}"
    if isinstance(value, int | float):
        return f"n:{as_float(value) + 0.0!r}"  # + 0.0: -0.0 equals 0.0
    return f"s:{value}"
