"""Predicates as SQL for LanceDB.

    to_sql(HasAny(("=lang\\x1fs:en",)))          # array_has_any(terms, ['=lang\\x1fs:en'])

Text of the user's stands only within string literals. Complements are pushed down to the comparisons: DataFusion's
parser recurses, and overflows the stack of the process at some forty nested NOTs.
"""

from hsokv_ray.memory.stores.facets import AllOf, AnyOf, HasAny, InRange, NoneOf, Predicate

_SIGNS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def to_sql(predicate: Predicate) -> str:
    """Return the condition that `predicate` says; it is true or false for every row, never null."""
    return _compile(predicate, wanted=True)


def literal(text: str) -> str:
    """Return `text` as an SQL string; within one, only the quote has a meaning."""
    return "'" + text.replace("'", "''") + "'"


def _compile(predicate: Predicate, *, wanted: bool) -> str:
    match predicate:
        case HasAny(terms):
            return _leaf(_has_any(terms), wanted) if terms else _constant(not wanted)
        case InRange(key, op, bound):
            return _leaf(_in_range(key, op, bound), wanted)
        case AllOf(parts) | AnyOf(parts):
            joined = [_compile(part, wanted=wanted) for part in parts]
            is_and = isinstance(predicate, AllOf) == wanted
            return f"({(' AND ' if is_and else ' OR ').join(joined)})" if joined else _constant(is_and)
        case NoneOf(part):
            return _compile(part, wanted=not wanted)


def _has_any(terms: tuple[str, ...]) -> str:
    return f"array_has_any(terms, [{', '.join(map(literal, terms))}])"


def _in_range(key: str, op: str, bound: float) -> str:
    """A key's number stands where the key stands; `repr` is a double's exact text."""
    place = f"CAST(array_position(number_keys, {literal(key)}) AS BIGINT)"
    number = f"array_element(number_values, {place})"
    return f"coalesce({number} {_SIGNS[op]} CAST('{bound!r}' AS DOUBLE), false)"


def _leaf(condition: str, wanted: bool) -> str:
    return condition if wanted else f"(NOT {condition})"


def _constant(value: bool) -> str:
    return "true" if value else "false"
