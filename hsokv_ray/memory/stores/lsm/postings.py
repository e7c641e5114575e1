"""Postings: which rows have which term and number, so that a filter becomes a mask without reading metadata.

    builder = PostingsBuilder()
    builder.add(0, facets({"lang": "en", "year": 1925}))
    builder.mask(predicate, num_rows=1)                      # bool [1]
    builder.write(path)
    Postings.open(path).mask(predicate, num_rows=1)          # the same, from a mapped file

The file is an Arrow IPC file with one row of lists: sorted terms, where each one's rows start, and all rows one after
the other; the same for number keys, whose rows are sorted by value.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hsokv_ray.errors import StoreError
from hsokv_ray.memory.stores.facets import AllOf, AnyOf, Facets, HasAny, InRange, NoneOf, Predicate
from hsokv_ray.memory.stores.lsm.strings import StringColumn

_NO_ROWS = np.zeros(0, np.int32)
_SCHEMA = pa.schema(
    {
        "terms": pa.large_list(pa.large_string()),
        "term_starts": pa.large_list(pa.int64()),
        "term_rows": pa.large_list(pa.int32()),
        "keys": pa.large_list(pa.large_string()),
        "key_starts": pa.large_list(pa.int64()),
        "key_values": pa.large_list(pa.float64()),
        "key_rows": pa.large_list(pa.int32()),
    }
)


class _Masks(ABC):
    """Evaluates predicates over what the subclass looks up."""

    @abstractmethod
    def _term_rows(self, term: str) -> np.ndarray: ...

    @abstractmethod
    def _range_rows(self, key: str, op: str, bound: float) -> np.ndarray: ...

    def mask(self, predicate: Predicate, num_rows: int) -> np.ndarray:
        """Return which of the first `num_rows` rows satisfy `predicate`, bool [num_rows]."""
        match predicate:
            case HasAny(terms):
                return _mask_of((self._term_rows(term) for term in terms), num_rows)
            case InRange(key, op, bound):
                return _mask_of((self._range_rows(key, op, bound),), num_rows)
            case AllOf(parts):
                found = np.ones(num_rows, bool)
                for part in parts:
                    found &= self.mask(part, num_rows)
                return found
            case AnyOf(parts):
                found = np.zeros(num_rows, bool)
                for part in parts:
                    found |= self.mask(part, num_rows)
                return found
            case NoneOf(part):
                return ~self.mask(part, num_rows)
        raise AssertionError(predicate)


class PostingsBuilder(_Masks):
    """Postings in memory; rows are added in ascending order. One thread at a time."""

    def __init__(self) -> None:
        self._terms: dict[str, list[int]] = {}
        self._numbers: dict[str, tuple[list[float], list[int]]] = {}

    def add(self, position: int, facets: Facets) -> None:
        """Add what the metadata of row `position` is indexed under."""
        for term in facets.terms:
            self._terms.setdefault(term, []).append(position)
        for key, number in facets.numbers.items():
            values, rows = self._numbers.setdefault(key, ([], []))
            values.append(number)
            rows.append(position)

    def write(self, path: str | Path) -> None:
        """Write an Arrow IPC file. Raises `OSError`."""
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as writer:
            writer.write_batch(self._batch())

    def _batch(self) -> pa.RecordBatch:
        terms, keys = sorted(self._terms), sorted(self._numbers)
        numbers = [_by_value(*self._numbers[key]) for key in keys]
        columns: dict[str, Any] = {
            "terms": pa.array(terms, pa.large_string()),
            "term_starts": _starts(len(self._terms[term]) for term in terms),
            "term_rows": _joined([np.asarray(self._terms[term], np.int32) for term in terms], np.int32),
            "keys": pa.array(keys, pa.large_string()),
            "key_starts": _starts(len(rows) for _, rows in numbers),
            "key_values": _joined([values for values, _ in numbers], np.float64),
            "key_rows": _joined([rows for _, rows in numbers], np.int32),
        }
        lists = [_one_list(pa.array(column)) for column in columns.values()]
        return pa.RecordBatch.from_arrays(lists, schema=_SCHEMA)

    def _term_rows(self, term: str) -> np.ndarray:
        return np.asarray(self._terms.get(term, ()), np.int32)

    def _range_rows(self, key: str, op: str, bound: float) -> np.ndarray:
        if key not in self._numbers:
            return _NO_ROWS
        values, rows = _by_value(*self._numbers[key])
        return rows[_value_range(values, op, bound)]


class Postings(_Masks):
    """Postings of a file, mapped. Safe to use from several threads."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        lists = {name: batch.column(name)[0].values for name in _SCHEMA.names}
        self._terms, self._keys = StringColumn(lists["terms"]), StringColumn(lists["keys"])
        self._term_starts, self._key_starts = _numpy(lists["term_starts"]), _numpy(lists["key_starts"])
        self._term_rows_all, self._key_rows_all = _numpy(lists["term_rows"]), _numpy(lists["key_rows"])
        self._key_values = _numpy(lists["key_values"])

    @classmethod
    def open(cls, source: "str | Path | pa.Buffer") -> "Postings":
        """Map the file at a path, or read an Arrow buffer without copying it. Raises `StoreError`: not such a file."""
        try:
            file = source if isinstance(source, pa.Buffer) else pa.memory_map(str(source))
            batch = pa.ipc.open_file(file).get_batch(0)
        except (OSError, pa.ArrowInvalid) as error:
            raise StoreError(f"{source}: cannot be read as postings ({error}); restore it from a snapshot") from None
        if batch.schema != _SCHEMA or batch.num_rows != 1:
            raise StoreError(f"{source}: is not a postings file; restore it from a snapshot")
        return cls(batch)

    def _term_rows(self, term: str) -> np.ndarray:
        at = self._terms.find(term)
        return _NO_ROWS if at < 0 else self._term_rows_all[self._term_starts[at] : self._term_starts[at + 1]]

    def _range_rows(self, key: str, op: str, bound: float) -> np.ndarray:
        at = self._keys.find(key)
        if at < 0:
            return _NO_ROWS
        start, stop = self._key_starts[at], self._key_starts[at + 1]
        return self._key_rows_all[start:stop][_value_range(self._key_values[start:stop], op, bound)]


def _mask_of(groups: Iterable[np.ndarray], num_rows: int) -> np.ndarray:
    found = np.zeros(num_rows, bool)
    for rows in groups:
        found[rows[rows < num_rows] if len(rows) and rows.max() >= num_rows else rows] = True
    return found


def _by_value(values: list[float], rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.asarray(values, np.float64)
    order = np.argsort(numbers, kind="stable")
    return numbers[order], np.asarray(rows, np.int32)[order]


def _value_range(values: np.ndarray, op: str, bound: float) -> slice:
    """Return which of the ascending `values` are in the range."""
    match op:
        case "gt":
            return slice(int(np.searchsorted(values, bound, "right")), None)
        case "gte":
            return slice(int(np.searchsorted(values, bound, "left")), None)
        case "lt":
            return slice(0, int(np.searchsorted(values, bound, "left")))
        case "lte":
            return slice(0, int(np.searchsorted(values, bound, "right")))
    raise AssertionError(op)


def _starts(lengths: Iterable[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.fromiter(lengths, np.int64))]).astype(np.int64)


def _joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)


def _one_list(values: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)


def _numpy(values: pa.Array) -> np.ndarray:
    return values.to_numpy(zero_copy_only=True)
