"""Which records a query may return: one small expression that means the same on every driver.

    field("lang") == "en"
    (field("year") >= 2000) & ~field("tags").contains("draft")
    field("author.name").is_in(["Woolf", "Eliot"]) | ~field("author").exists()
    parse_filter({"lang": "en", "year": {"$gte": 2000}})          # the same as JSON, for YAML, HTTP and the shell

Meaning, as in Python:
    A dot goes into nested objects; a dot within a key is written `\\.`.
    Equality keeps types apart (True is not 1, "1" is not 1) but 1 equals 1.0; numbers are 64-bit floats.
    A missing key reads as None: `== None` holds for missing and null, `!=` and `not in` hold for a missing key.
    `exists` asks for the key, null included. `contains` asks for a list with that element.
    Ranges compare numbers with numbers and ISO 8601 dates with dates (UTC where they name no zone); all else is out.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal

from hsokv_ray.errors import DataError
from hsokv_ray.memory.stores.facets import as_float, instant, split_path

Scalar = str | bool | int | float | None
Op = Literal["eq", "ne", "in", "nin", "gt", "gte", "lt", "lte", "exists", "contains"]
MAX_DEPTH = 16
"""How deep `and`, `or` and `not` may nest; what engines' own parsers surely take."""
MAX_PARTS = 1000
"""How many comparisons one filter may have; the values of `in` count as one."""


class Filter:
    """An expression over metadata; `&`, `|` and `~` combine them."""

    __slots__ = ()

    def __and__(self, other: "Filter") -> "Filter":
        return And((*_parts(self, And), *_parts(_filter(other), And)))

    def __or__(self, other: "Filter") -> "Filter":
        return Or((*_parts(self, Or), *_parts(_filter(other), Or)))

    def __invert__(self) -> "Filter":
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError("a filter has no truth value; combine filters with &, | and ~, not with and, or, not")


@dataclass(frozen=True, slots=True)
class Compare(Filter):
    """One comparison of the value at `path` with `value`."""

    op: Op
    path: tuple[str, ...]
    value: Any
    """A scalar; a tuple of scalars for in and nin; True for exists; a number or an ISO 8601 date for ranges."""


@dataclass(frozen=True, slots=True)
class And(Filter):
    """All of them; with none, everything."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or(Filter):
    """Any of them; with none, nothing."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not(Filter):
    """What `part` leaves out."""

    part: Filter


class Field:
    """A key of the metadata, to be compared. Made by `field`."""

    __slots__ = ("path",)

    def __init__(self, path: tuple[str, ...]) -> None:
        self.path = path

    def __eq__(self, value: object) -> Compare:  # type: ignore[override]
        return Compare("eq", self.path, _scalar(value, self.path))

    def __ne__(self, value: object) -> Compare:  # type: ignore[override]
        return Compare("ne", self.path, _scalar(value, self.path))

    __hash__ = None  # type: ignore[assignment]

    def __gt__(self, value: float | str | date) -> Compare:
        return Compare("gt", self.path, _bound(value, self.path))

    def __ge__(self, value: float | str | date) -> Compare:
        return Compare("gte", self.path, _bound(value, self.path))

    def __lt__(self, value: float | str | date) -> Compare:
        return Compare("lt", self.path, _bound(value, self.path))

    def __le__(self, value: float | str | date) -> Compare:
        return Compare("lte", self.path, _bound(value, self.path))

    def is_in(self, values: Iterable[Scalar]) -> Compare:
        """Equal to one of `values`."""
        return Compare("in", self.path, _scalars(values, self.path))

    def not_in(self, values: Iterable[Scalar]) -> Compare:
        """Equal to none of `values`; a missing key counts as None."""
        return Compare("nin", self.path, _scalars(values, self.path))

    def exists(self) -> Compare:
        """The key is there, even with null."""
        return Compare("exists", self.path, True)

    def contains(self, value: Scalar) -> Compare:
        """A list that has `value` as an element."""
        return Compare("contains", self.path, _scalar(value, self.path))


def field(path: str) -> Field:
    """Return the field at `path`, such as `lang` or `author.name`. Raises `DataError` for an empty key."""
    return Field(split_path(path))


def parse_filter(value: Mapping[str, Any] | Filter | None) -> Filter | None:
    """Return the filter that a JSON object says; filters and None are returned as they are.

    `{"key": scalar}` is equality; `{"key": {"$op": value}}` has $eq $ne $in $nin $gt $gte $lt $lte $exists $contains;
    several keys or operators all hold; `$and` and `$or` take lists, `$not` takes one object.

    Raises:
        DataError: names the key and what is allowed.
    """
    parsed = value if value is None or isinstance(value, Filter) else _parse_object(value, 0)
    if parsed is not None and (size := _size(parsed, 0)) > MAX_PARTS:
        raise DataError(f"filter: got {size} comparisons; at most {MAX_PARTS} are allowed: use in")
    return parsed


def matches(filter: Filter | None, metadata: Mapping[str, Any]) -> bool:
    """Return whether `metadata` passes `filter`. This is the definition; drivers are tested against it."""
    match filter:
        case None:
            return True
        case And(parts):
            return all(matches(part, metadata) for part in parts)
        case Or(parts):
            return any(matches(part, metadata) for part in parts)
        case Not(part):
            return not matches(part, metadata)
        case Compare(op, path, value):
            return _compare(op, metadata, path, value)
    raise AssertionError(filter)


def _parts(filter: Filter, cls: type["And"] | type["Or"]) -> tuple[Filter, ...]:
    """A chain of the same operator stays flat."""
    return filter.parts if isinstance(filter, cls) else (filter,)


def _size(filter: Filter, depth: int) -> int:
    """Return the number of comparisons. Raises `DataError` where they nest too deep."""
    if depth > MAX_DEPTH:
        raise _too_deep()
    match filter:
        case And(parts) | Or(parts):
            return sum(_size(part, depth + 1) for part in parts)
        case Not(part):
            return _size(part, depth + 1)
    return 1


def _too_deep() -> DataError:
    return DataError(f"filter: and, or and not nest more than {MAX_DEPTH} deep; write it flatter")


def _compare(op: Op, metadata: Mapping[str, Any], path: tuple[str, ...], value: Any) -> bool:
    there, found = _look_up(metadata, path)
    match op:
        case "eq":
            return _equal(found, value)
        case "ne":
            return not _equal(found, value)
        case "in":
            return any(_equal(found, each) for each in value)
        case "nin":
            return not any(_equal(found, each) for each in value)
        case "exists":
            return there
        case "contains":
            return isinstance(found, list | tuple) and any(_equal(each, value) for each in found)
        case _:
            return _in_range(op, found, value)


def _look_up(metadata: Mapping[str, Any], path: tuple[str, ...]) -> tuple[bool, Any]:
    value: Any = metadata
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return False, None
        value = value[key]
    return True, value


def _equal(found: Any, value: Scalar) -> bool:
    if isinstance(found, bool) or isinstance(value, bool):
        return found is value
    if isinstance(found, int | float) and isinstance(value, int | float):
        return as_float(found) == as_float(value)
    return type(found) is type(value) and found == value


def _in_range(op: str, found: Any, value: Any) -> bool:
    if isinstance(value, str):
        left, right = instant(found) if isinstance(found, str) else None, instant(value)
    else:
        is_number = isinstance(found, int | float) and not isinstance(found, bool)
        left, right = as_float(found) if is_number else None, as_float(value)
    if left is None or right is None:
        return False
    return {"gt": left > right, "gte": left >= right, "lt": left < right, "lte": left <= right}[op]


def _parse_object(value: Any, depth: int) -> Filter:
    if isinstance(value, Filter):
        return value
    if not isinstance(value, Mapping):
        raise DataError(f'filter: got {value!r}; an object such as {{"lang": "en"}} is needed')
    if depth > MAX_DEPTH:
        raise _too_deep()
    parts = tuple(_parse_item(key, inner, depth) for key, inner in value.items())
    return parts[0] if len(parts) == 1 else And(parts)


def _parse_item(key: str, value: Any, depth: int) -> Filter:
    if not isinstance(key, str):
        raise DataError(f"filter: got the key {key!r}; keys are strings")
    if key in ("$and", "$or"):
        if not isinstance(value, list):
            raise DataError(f"filter: {key} got {value!r}; a list of objects is needed")
        parts = tuple(_parse_object(part, depth + 1) for part in value)
        return And(parts) if key == "$and" else Or(parts)
    if key == "$not":
        return Not(_parse_object(value, depth + 1))
    if key.startswith("$"):
        raise DataError(f"filter: unknown {key!r}; $and, $or, $not or a key of the metadata is needed")
    if not isinstance(value, Mapping):
        return field(key) == value
    if not value:
        raise DataError(f'filter: {key!r} got an empty object; give an operator such as {{"$eq": 1}}')
    parts = tuple(_parse_operator(key, op, operand) for op, operand in value.items())
    return parts[0] if len(parts) == 1 else And(parts)


def _parse_operator(key: str, op: Any, operand: Any) -> Filter:
    at = field(key)
    match op:
        case "$eq":
            return at == operand
        case "$ne":
            return at != operand
        case "$in" | "$nin":
            if not isinstance(operand, list):
                raise DataError(f"filter: {op} of {key!r} got {operand!r}; a list is needed")
            return at.is_in(operand) if op == "$in" else at.not_in(operand)
        case "$gt" | "$gte" | "$lt" | "$lte":
            return Compare(op[1:], at.path, _bound(operand, at.path))  # type: ignore[arg-type]
        case "$exists":
            if not isinstance(operand, bool):
                raise DataError(f"filter: $exists of {key!r} got {operand!r}; true or false is needed")
            return at.exists() if operand else ~at.exists()
        case "$contains":
            return at.contains(operand)
    allowed = "$eq $ne $in $nin $gt $gte $lt $lte $exists $contains"
    raise DataError(f"filter: unknown operator {op!r} of {key!r}; allowed: {allowed}")


def _filter(value: Any) -> Filter:
    if not isinstance(value, Filter):
        raise DataError(f"filter: got {value!r} beside &, | or ~; comparisons need parentheses: (a == 1) & (b == 2)")
    return value


def _scalar(value: Any, path: tuple[str, ...]) -> Scalar:
    if value is not None and not isinstance(value, str | bool | int | float):
        raise DataError(
            f"filter: {'.'.join(path)!r} is compared with a {type(value).__name__}; "
            "a string, a number, true, false or null is needed (contains looks into lists)"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"filter: {'.'.join(path)!r} is compared with {value}; metadata holds finite numbers")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(f"filter: {'.'.join(path)!r} is compared with a lone surrogate") from None
        return str.__str__(value)  # a plain one, also of an Enum's member
    return value


def _scalars(values: Iterable[Any], path: tuple[str, ...]) -> tuple[Scalar, ...]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise DataError(f"filter: {'.'.join(path)!r} is looked up in {values!r}; a list of values is needed")
    return tuple(_scalar(value, path) for value in values)


def _finite(value: float) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _bound(value: Any, path: tuple[str, ...]) -> float | str:
    if isinstance(value, date | datetime):
        return value.isoformat()
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)
    if is_number or (isinstance(value, str) and instant(value) is not None):
        return value
    raise DataError(
        f"filter: the range of {'.'.join(path)!r} got {value!r}; "
        "a number or an ISO 8601 date such as 2026-01-31 is needed"
    )
