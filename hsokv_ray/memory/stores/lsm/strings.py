"""StringColumn: strings or bytes of an Arrow column, read one by one without making the others.

column = StringColumn(batch.column("id"))
column.text(3), column.texts([3, 5]), column.bisect("some id")   # the column is sorted: bytes as text, the same order
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa


class StringColumn:
    """A column of type large_string or large_binary without nulls."""

    __slots__ = ("_array", "_bytes", "_offsets", "size")

    def __init__(self, array: pa.Array) -> None:
        assert array.type in (pa.large_string(), pa.large_binary()), array.type
        assert not array.null_count
        _, offsets, data = array.buffers()
        self._array = array
        self.size = len(array)
        begin = array.offset
        self._offsets = memoryview(offsets).cast("q")[begin : begin + self.size + 1] if self.size else memoryview(b"")
        self._bytes = memoryview(data) if data is not None else memoryview(b"")

    def __len__(self) -> int:
        return self.size

    def value(self, row: int) -> bytes:
        """Return the bytes of one row."""
        offsets = self._offsets
        return bytes(self._bytes[offsets[row] : offsets[row + 1]])

    def text(self, row: int) -> str:
        """Return the text of one row."""
        offsets = self._offsets
        return str(self._bytes[offsets[row] : offsets[row + 1]], "utf-8")

    def values(self, rows: Iterable[int]) -> list[bytes]:
        """Return the bytes of some rows."""
        data, offsets = self._bytes, self._offsets
        return [bytes(data[offsets[row] : offsets[row + 1]]) for row in rows]

    def texts(self, rows: Iterable[int]) -> list[str]:
        """Return the texts of some rows."""
        data, offsets = self._bytes, self._offsets
        return [str(data[offsets[row] : offsets[row + 1]], "utf-8") for row in rows]

    def all_texts(self) -> list[str]:
        """Return every text; a million take some tenths of a second."""
        return self._array.cast(pa.large_string()).to_numpy(zero_copy_only=False).tolist()

    def bisect(self, key: str | bytes) -> int:
        """Return the first row that is not below `key`; the column is sorted."""
        wanted = key.encode() if isinstance(key, str) else key
        low, high = 0, self.size
        data, offsets = self._bytes, self._offsets
        while low < high:
            middle = (low + high) // 2
            if bytes(data[offsets[middle] : offsets[middle + 1]]) < wanted:
                low = middle + 1
            else:
                high = middle
        return low

    def find(self, key: str | bytes) -> int:
        """Return the row that holds `key`, or -1; the column is sorted."""
        wanted = key.encode() if isinstance(key, str) else key
        row = self.bisect(wanted)
        return row if row < self.size and self.value(row) == wanted else -1

    def find_all(self, keys: Iterable[str]) -> np.ndarray:
        """Return the row of each key, int64, -1 where there is none; the column is sorted."""
        return np.fromiter((self.find(key) for key in keys), np.int64)
