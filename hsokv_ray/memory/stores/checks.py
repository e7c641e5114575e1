"""What a store accepts, the same on every driver. Each refusal says what, what was got, and what is allowed."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hsokv_ray.errors import DataError
from hsokv_ray.memory.stores.types import Metadata, Metric, Rows

MAX_ID_BYTES = 4096
MAX_METADATA_BYTES = 16 * 2**20
_USUAL = (1e-20, 1e20)
"""Squared lengths whose float32 sums lose no digits to underflow or overflow."""
MAX_DEPTH = 64
"""How deep metadata may nest."""
MAX_DIM = 65_536
"""What Qdrant takes."""
MAX_LENGTH = 1e18
"""Longest vector where the metric is dot or l2: products and squared distances of such still fit into float32."""


def check_rows(
    ids: Sequence[str], vectors: Any, metadata: Sequence[Metadata] | None, *, metric: Metric, dim: int | None
) -> Rows:
    """Return the batch as a driver stores it; of an id that comes twice the last row is kept. Raises `DataError`."""
    names = check_ids(ids)
    if isinstance(metadata, Mapping | str | bytes):
        raise DataError("metadata: got a single value; a sequence with one dict per id is needed")
    matrix = check_vectors(vectors, metric=metric, dim=dim, num_rows=len(names))
    each_metadata = [{}] * len(names) if metadata is None else _as_list("metadata", metadata)
    if len(each_metadata) != len(names):
        raise DataError(f"metadata: got {len(each_metadata)} for {len(names)} ids; one per id is needed")
    texts = [encode_metadata(each) for each in each_metadata]
    last = {name: i for i, name in enumerate(names)}
    if len(last) < len(names):
        keep = sorted(last.values())
        names, matrix, texts = [names[i] for i in keep], np.ascontiguousarray(matrix[keep]), [texts[i] for i in keep]
    return Rows(names, matrix, texts)


def check_ids(ids: Iterable[str]) -> list[str]:
    """Return `ids` as a list of strings that UTF-8 can hold. Raises `DataError`."""
    if isinstance(ids, str | bytes):
        raise DataError(f"ids: got the single value {ids!r}; a sequence of strings is needed")
    names = _as_list("ids", ids)
    for name in names:
        if type(name) is not str:
            raise DataError(f"ids: got {name!r} of type {type(name).__name__}; strings are needed: str(id)")
        if not name:
            raise DataError("ids: got an empty string; an id has at least one character")
    try:
        longest = max((len(name.encode()) for name in names), default=0)
    except UnicodeEncodeError as error:
        raise DataError(f"ids: {error.object!r} has a lone surrogate, which is not Unicode text") from None
    if longest > MAX_ID_BYTES:
        raise DataError(f"ids: got one of {longest} bytes; at most {MAX_ID_BYTES} are allowed")
    return names


def check_vectors(vectors: Any, *, metric: Metric, dim: int | None, num_rows: int | None = None) -> np.ndarray:
    """Return `vectors` as contiguous float32 [n, d], at unit length for cosine.

    Args:
        vectors: anything NumPy turns into numbers of shape [n, d] or [d].
        dim: the store's d; None where it is not known yet.
        num_rows: the n that is needed; None for any.

    Raises:
        DataError: wrong shape or type, NaN or infinite, or of length zero where the metric is cosine.
    """
    matrix = _as_matrix(vectors)
    if matrix.ndim == 1 and matrix.size and num_rows in (None, 1):
        matrix = matrix[None]
    if matrix.ndim in (1, 2) and len(matrix) == 0 and num_rows in (None, 0):
        return np.zeros((0, dim or 0), np.float32)
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise DataError(f"vectors: got shape {list(matrix.shape)}; [n, d] is needed")
    if num_rows is not None and len(matrix) != num_rows:
        raise DataError(f"vectors: got {len(matrix)} for {num_rows} ids; one per id is needed")
    if dim is not None and matrix.shape[1] != dim:
        raise DataError(f"vectors: got {matrix.shape[1]} dimensions; this store has {dim}")
    if matrix.shape[1] > MAX_DIM:
        raise DataError(f"vectors: got {matrix.shape[1]} dimensions; at most {MAX_DIM} are allowed")
    return _finite(np.ascontiguousarray(matrix), metric)


def check_top_k(top_k: int) -> int:
    """Return `top_k`. Raises `DataError` unless it is a whole number of at least 1."""
    if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or top_k < 1:
        raise DataError(f"top_k: got {top_k!r}; a whole number of at least 1 is needed")
    return int(top_k)


def encode_metadata(metadata: Metadata) -> bytes:
    """Return `metadata` as JSON text. Raises `DataError`: not a JSON object, or too large."""
    if not metadata and isinstance(metadata, dict):
        return b"{}"
    if not isinstance(metadata, dict):
        raise DataError(f"metadata: got {type(metadata).__name__}; a dict that JSON can hold is needed")
    _check_json(metadata, "metadata", 0)
    try:
        text = json.dumps(metadata, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise DataError("metadata: a string has a lone surrogate, which is not Unicode text") from None
    except ValueError as error:  # a whole number of more than 4300 digits
        raise DataError(f"metadata: {error}; make it a string") from None
    if len(text) > MAX_METADATA_BYTES:
        raise DataError(
            f"metadata: got {len(text)} bytes of JSON for one id; at most {MAX_METADATA_BYTES} are allowed: "
            "keep large things in files and their paths here"
        )
    return text


def _as_list(name: str, values: Any) -> list[Any]:
    try:
        return list(values)
    except TypeError:
        raise DataError(f"{name}: got {type(values).__name__}; a sequence is needed") from None


def _as_matrix(vectors: Any) -> np.ndarray:
    try:
        array = np.asarray(vectors)
        if array.dtype.kind not in "fiu":
            raise TypeError(f"their type is {array.dtype}")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is refused
            return array.astype(np.float32, copy=False)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"vectors: cannot be read as numbers ({error}); give float32 of shape [n, d]") from None


def _finite(matrix: np.ndarray, metric: Metric) -> np.ndarray:
    """Return `matrix` as the metric stores it; usual lengths take a quarter of the time that any length takes."""
    quick = np.einsum("nd,nd->n", matrix, matrix)
    if metric == "cosine" and len(quick) and _USUAL[0] < quick.min() and quick.max() < _USUAL[1]:  # False with NaN
        return matrix * (1 / np.sqrt(quick))[:, None]
    squares = np.einsum("nd,nd->n", matrix, matrix, dtype=np.float64)
    if not np.isfinite(squares).all():
        row = int(np.flatnonzero(~np.isfinite(squares))[0])
        raise DataError(f"vectors: row {row} holds NaN or infinity; finite numbers are needed")
    if metric != "cosine":
        if (squares > MAX_LENGTH**2).any():
            row = int(squares.argmax())
            raise DataError(f"vectors: row {row} is {squares[row] ** 0.5:.3g} long; at most {MAX_LENGTH:g} is allowed")
        return matrix
    if (squares == 0).any():
        row = int(np.flatnonzero(squares == 0)[0])
        raise DataError(
            f"vectors: row {row} is all zeros, which has no direction; use metric dot or l2, or leave it out"
        )
    return (matrix / np.sqrt(squares)[:, None]).astype(np.float32)


def _check_json(value: Any, where: str, depth: int) -> None:
    if value is None or isinstance(value, str | bool | int):
        return
    if depth > MAX_DEPTH:
        raise DataError(f"{where[:80]}...: nested more than {MAX_DEPTH} deep")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise DataError(f"{where}: got {value}, which JSON cannot hold; use None or leave the key out")
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise DataError(f"{where}: got the key {key!r}; JSON keys are strings")
            _check_json(inner, f"{where}.{key}", depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_json(inner, f"{where}[]", depth + 1)
    else:
        raise DataError(f"{where}: got a {type(value).__name__}, which JSON cannot hold; make it a string or a number")
