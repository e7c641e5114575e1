"""Allowed: which rows of a part a search may return, as FAISS wants it.

allowed = Allowed(mask)              # bool [num_rows]
index.search(queries, 10, allowed)   # packed once, however often it is searched with
"""

import faiss
import numpy as np


class Allowed:
    """A mask over rows; it must not change any more. Safe to share between threads."""

    __slots__ = ("_bits", "_positions", "_selector", "count", "mask", "rows_per_list")

    def __init__(self, mask: np.ndarray) -> None:
        """`mask` is bool [num_rows], true where a row may be returned."""
        assert mask.dtype == bool, mask.dtype
        assert mask.ndim == 1, mask.shape
        self.mask = mask
        self.count = int(np.count_nonzero(mask))
        """How many rows are allowed."""
        self._selector: faiss.IDSelectorBitmap | None = None
        self._positions: np.ndarray | None = None
        self.rows_per_list: np.ndarray | None = None
        """How many allowed rows each inverted list has; kept here by `InvertedLists`."""

    @property
    def positions(self) -> np.ndarray:
        """The allowed rows, int64 [count], ascending."""
        if self._positions is None:
            self._positions = np.flatnonzero(self.mask)
        return self._positions

    @property
    def selector(self) -> "faiss.IDSelectorBitmap":
        """The mask as FAISS reads it; valid as long as this object lives."""
        if self._selector is None:
            bits = np.packbits(self.mask, bitorder="little")
            selector = faiss.IDSelectorBitmap(len(self.mask), faiss.swig_ptr(bits))
            self._bits, self._selector = bits, selector
        return self._selector


def as_allowed(allowed: "Allowed | np.ndarray | None", num_rows: int) -> Allowed | None:
    """Return `allowed` as an `Allowed`; None where every row is allowed."""
    if allowed is None:
        return None
    if not isinstance(allowed, Allowed):
        allowed = Allowed(allowed)
    assert len(allowed.mask) == num_rows, (len(allowed.mask), num_rows)
    return None if allowed.count == num_rows else allowed
