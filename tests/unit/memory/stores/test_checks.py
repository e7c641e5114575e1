"""What a store accepts."""

import enum

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hsokv_ray.errors import DataError
from hsokv_ray.memory.stores import checks
from hsokv_ray.memory.stores.types import Rows


@pytest.mark.parametrize(
    "vectors",
    [
        [[1, 2], [3, 4]],
        np.float64([[1, 2], [3, 4]]),
        np.asfortranarray(np.float32([[1, 2], [3, 4]])),
        np.float32([[1, 9, 2, 9], [3, 9, 4, 9]])[:, ::2],
        np.int8([[1, 2], [3, 4]]),
        np.float16([[1, 2], [3, 4]]),
        ((1, 2), (3, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_vectors_become_contiguous_float32(vectors):
    matrix = checks.check_vectors(vectors, metric="l2", dim=2)
    assert matrix.dtype == np.float32
    assert matrix.flags.c_contiguous
    assert matrix.tolist() == [[1, 2], [3, 4]]


def test_torch_tensors_are_vectors():
    torch = pytest.importorskip("torch")
    assert checks.check_vectors(torch.ones(2, 3), metric="dot", dim=None).tolist() == [[1, 1, 1], [1, 1, 1]]
    with pytest.raises(DataError, match="grad"):
        checks.check_vectors(torch.ones(2, 3, requires_grad=True), metric="dot", dim=None)


@pytest.mark.parametrize("vectors", [None, "abc", ["1", "2"], [[1, None]], [[1j, 2]], [[True, False]], [object()], {}])
def test_what_is_no_number_is_refused(vectors):
    with pytest.raises(DataError, match="cannot be read as numbers"):
        checks.check_vectors(vectors, metric="l2", dim=None)


@given(
    hnp.arrays(np.float32, (3, 4), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)).filter(
        lambda matrix: matrix.any(axis=1).all()
    )
)
def test_with_cosine_vectors_are_stored_at_unit_length(matrix):
    stored = checks.check_vectors(matrix, metric="cosine", dim=4)
    np.testing.assert_allclose(np.linalg.norm(stored.astype(np.float64), axis=1), 1, atol=1e-6)
    large = matrix.astype(np.float64)
    np.testing.assert_allclose(stored, large / np.linalg.norm(large, axis=1, keepdims=True), atol=1e-6)


def test_vectors_whose_products_overflow_float32_are_refused_without_cosine():
    for metric in ("dot", "l2"):
        checks.check_vectors([[9e17, 0]], metric=metric, dim=2)
        with pytest.raises(DataError, match="row 1 is 2e\\+18 long; at most 1e\\+18"):
            checks.check_vectors([[1, 0], [2e18, 0]], metric=metric, dim=2)
    assert checks.check_vectors([[2e18, 0]], metric="cosine", dim=2).tolist() == [[1, 0]]


def test_dimensions_have_a_limit():
    with pytest.raises(DataError, match="got 65537 dimensions; at most 65536"):
        checks.check_vectors(np.ones((1, 65537), np.float32), metric="l2", dim=None)


def test_the_callers_array_is_not_changed():
    matrix = np.float32([[3, 4]])
    checks.check_vectors(matrix, metric="cosine", dim=None)
    assert matrix.tolist() == [[3, 4]]


def test_a_single_vector_is_a_batch_of_one():
    assert checks.check_vectors([1, 2, 3], metric="l2", dim=None).shape == (1, 3)
    assert len(checks.check_rows(["a"], [1, 2, 3], None, metric="l2", dim=None)) == 1


@pytest.mark.parametrize("ids", ["abc", b"abc", None, 3, [b"a"], [None], [np.int64(1)]])
def test_ids_are_a_sequence_of_strings(ids):
    with pytest.raises(DataError, match="ids: "):
        checks.check_ids(ids)


@given(st.lists(st.sampled_from("abcde"), max_size=12))
def test_of_repeated_ids_the_last_row_stays(ids):
    vectors = np.arange(1, len(ids) + 1, dtype=np.float32)[:, None]
    rows = checks.check_rows(ids, vectors, [{"i": i} for i in range(len(ids))], metric="l2", dim=1)
    last = {id: i for i, id in enumerate(ids)}
    assert {id: int(vector[0]) - 1 for id, vector in zip(rows.ids, rows.vectors, strict=True)} == last
    assert [f'{{"i":{last[id]}}}'.encode() for id in rows.ids] == rows.metadata


def test_a_batch_is_checked_in_one_go():
    rows = checks.check_rows(["a", "b"], np.eye(2), iter([{}, {"k": "é"}]), metric="dot", dim=None)
    assert isinstance(rows, Rows)
    assert rows.metadata == [b"{}", '{"k":"é"}'.encode()]


class Colour(str, enum.Enum):  # noqa: UP042
    RED = "red"


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({}, "{}"),
        ({"a": (1, 2)}, '{"a":[1,2]}'),
        ({"a": np.float64(0.1)}, '{"a":0.1}'),
        ({"a": Colour.RED}, '{"a":"red"}'),
        ({"": {"\x00": [None, True, -0.0]}}, '{"":{"\\u0000":[null,true,-0.0]}}'),
        ({"a": 10**400}, f'{{"a":{10**400}}}'),
    ],
)
def test_metadata_is_written_as_compact_json(metadata, text):
    assert checks.encode_metadata(metadata).decode() == text


def _nested(depth):
    value = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "got NoneType"),
        ([("a", 1)], "got list"),
        ({1: 2}, "JSON keys are strings"),
        ({"a": {"b": [float("inf")]}}, "metadata.a.b\\[\\]: got inf"),
        ({"a": {1, 2}}, "metadata.a: got a set"),
        ({"a": np.float32(1)}, "got a float32"),
        ({"a": b"x"}, "got a bytes"),
        ({"\ud800": 1}, "lone surrogate"),
        ({"a": 10**5000}, "make it a string"),
        (_nested(100), "more than 64 deep"),
    ],
)
def test_what_json_cannot_hold_is_refused(metadata, message):
    with pytest.raises(DataError, match=message):
        checks.encode_metadata(metadata)


def test_metadata_comes_one_dict_per_id():
    for wrong in ({}, "ab", b"ab", 3, [{}], [{}, {}, {}]):
        with pytest.raises(DataError, match="metadata: "):
            checks.check_rows(["a", "b"], np.eye(2), wrong, metric="dot", dim=None)
