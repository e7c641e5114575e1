"""Postings give the mask that evaluating the predicate row by row gives."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.errors import StoreError
from hsokv_ray.memory.stores.facets import (
    AllOf,
    AnyOf,
    Facets,
    HasAny,
    InRange,
    NoneOf,
    Predicate,
    compile_filter,
    facets,
    holds,
)
from hsokv_ray.memory.stores.filters import field
from hsokv_ray.memory.stores.lsm.postings import Postings, PostingsBuilder

TERMS = st.sampled_from(["a", "b", "é", "\U0001f600", "", "ab"])
KEYS = st.sampled_from(["n:x", "n:é", "d:x"])
NUMBERS = st.sampled_from([-1.5, 0.0, 1.0, 1e300]) | st.floats(allow_nan=False, allow_infinity=False)
ROWS = st.lists(st.builds(Facets, st.lists(TERMS, unique=True), st.dictionaries(KEYS, NUMBERS)), max_size=12)
LEAVES = st.builds(HasAny, st.lists(TERMS, max_size=3).map(tuple)) | st.builds(
    InRange, KEYS, st.sampled_from(["gt", "gte", "lt", "lte"]), NUMBERS
)
PREDICATES = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(NoneOf, inner)
        | st.lists(inner, max_size=3).map(lambda parts: AllOf(tuple(parts)))
        | st.lists(inner, max_size=3).map(lambda parts: AnyOf(tuple(parts)))
    ),
    max_leaves=6,
)


def built(rows: list[Facets]) -> PostingsBuilder:
    builder = PostingsBuilder()
    for position, found in enumerate(rows):
        builder.add(position, found)
    return builder


@given(rows=ROWS, predicate=PREDICATES, beyond=st.integers(0, 3))
def test_a_mask_says_row_by_row_what_the_predicate_says(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Facets], predicate: Predicate, beyond: int
) -> None:
    path = tmp_path_factory.mktemp("postings") / "postings.arrow"
    builder = built(rows)
    builder.write(path)
    first = max(0, len(rows) - beyond)  # a view of a growing part may know fewer rows than there are
    expected = [holds(predicate, row) for row in rows]
    assert builder.mask(predicate, len(rows)).tolist() == expected
    assert builder.mask(predicate, first).tolist() == expected[:first]
    assert Postings.open(path).mask(predicate, len(rows)).tolist() == expected
    assert Postings.open(pa.py_buffer(path.read_bytes())).mask(predicate, len(rows)).tolist() == expected


@pytest.mark.parametrize(("op", "expected"), [("gt", [4]), ("gte", [1, 2, 4]), ("lt", [0]), ("lte", [0, 1, 2])])
def test_a_range_takes_its_bound_as_its_operator_says(tmp_path: Path, op: str, expected: list[int]) -> None:
    rows = [Facets([], {"n:x": value}) for value in (1.0, 2.0, 2.0)] + [Facets([], {}), Facets([], {"n:x": 3.0})]
    builder = built(rows)
    builder.write(tmp_path / "p")
    for postings in (builder, Postings.open(tmp_path / "p")):
        assert np.flatnonzero(postings.mask(InRange("n:x", op, 2.0), 5)).tolist() == expected


def test_filters_on_real_metadata_find_their_rows(tmp_path: Path) -> None:
    metadata = [{"lang": "en", "year": 1925}, {"lang": "fr"}, {"on": "1925-05-14", "tags": ["a", "b"]}, {}]
    built([facets(each) for each in metadata]).write(tmp_path / "p")
    postings = Postings.open(tmp_path / "p")

    def rows(filter) -> list[int]:
        return np.flatnonzero(postings.mask(compile_filter(filter), 4)).tolist()

    assert rows(field("lang") == "en") == [0]
    assert rows(field("lang") != "en") == [1, 2, 3]
    assert rows(field("year") >= 1925) == [0]
    assert rows(field("on") < "1925-06-01") == [2]
    assert rows(field("tags").contains("b")) == [2]


def test_a_file_that_is_not_postings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not arrow")
    with pytest.raises(StoreError, match="cannot be read as postings"):
        Postings.open(tmp_path / "text")
    table = pa.table({"other": [1]})
    with pa.OSFile(str(tmp_path / "other"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(StoreError, match="is not a postings file"):
        Postings.open(tmp_path / "other")
    with pytest.raises(StoreError, match="cannot be read"):
        Postings.open(tmp_path / "missing")
