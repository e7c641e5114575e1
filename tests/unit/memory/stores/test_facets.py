"""Facets: what a filter compiles to says the same as the filter itself."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hsokv_ray.errors import DataError
from hsokv_ray.memory.stores import field, matches
from hsokv_ray.memory.stores.facets import (
    LONGEST_TERM,
    as_float,
    compile_filter,
    facets,
    holds,
    instant,
    join_path,
    split_path,
)


@settings(max_examples=500)
@given(data=st.data())
def test_a_compiled_filter_means_what_the_filter_means(data, random):
    filter, metadata = data.draw(random.filters), data.draw(random.metadata)
    assert holds(compile_filter(filter), facets(metadata)) == matches(filter, metadata)


@given(data=st.data())
def test_every_key_with_a_scalar_is_found_by_its_value(data, random):
    metadata = data.draw(st.dictionaries(st.text(min_size=1, max_size=5), random.scalars, max_size=3))
    for key, value in metadata.items():
        for filter in (field(join_path([key])) == value, field(join_path([key])).exists()):
            assert holds(compile_filter(filter), facets(metadata))


def test_no_filter_holds_for_everything():
    assert compile_filter(None) is None
    assert holds(None, facets({}))


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
@example(["\\"])
@example([".", "\\.", "a\\"])
@example(["\x1f", "\\s"])
def test_a_path_reads_back(path):
    assert split_path(join_path(path)) == tuple(path)


@given(st.text(st.sampled_from("a.\\\n"), max_size=8))
def test_any_text_is_a_path_or_refused(text):
    try:
        path = split_path(text)
    except DataError:
        return
    assert split_path(join_path(path)) == path


def test_different_keys_have_different_facets():
    keys = ["a.b", "a\\.b", "a\\\\.b", "a\x1fb", "a\\sb", "a\\\\sb", "a"]
    nested = [({"a": {"b": 1}}), {"a.b": 1}, {"a\\": {"b": 1}}, {"a\x1fb": 1}, {"asb": 1}, {"a\\sb": 1}, {"a": 1}]
    for i, metadata in enumerate(nested):
        found = [key for key in keys if holds(compile_filter(field(key) == 1), facets(metadata))]
        assert found == [keys[i]]


def test_long_texts_are_told_apart_and_kept_short():
    texts = ["x" * 1000 + end for end in "ab"]
    terms = [facets({"k": text}).terms for text in texts]
    assert terms[0] != terms[1]
    assert all(len(term) <= LONGEST_TERM for term in terms[0] + terms[1])
    assert holds(compile_filter(field("k") == texts[0]), facets({"k": texts[0]}))
    assert not holds(compile_filter(field("k") == texts[0]), facets({"k": texts[1]}))


def test_terms_are_distinct_and_numbers_finite():
    found = facets({"a": ["x", "x", 1, 1.0, True], "b": 10**400, "c": -(10**400), "d": True, "e": "2024-01-01"})
    assert len(set(found.terms)) == len(found.terms)
    assert set(found.numbers) == {"n:b", "n:c", "d:e"}
    assert all(math.isfinite(number) for number in found.numbers.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01", 0.0),
        ("1970-01-02T00:00:00Z", 86400.0),
        ("1970-01-01T01:00:00+01:00", 0.0),
        ("1970-01-01 00:00:00.5", 0.5),
        ("1969-12-31", -86400.0),
        ("0001-01-01", -62135596800.0),
        ("1970", None),
        ("1970-13-01", None),
        ("yesterday", None),
        ("", None),
        ("１９７０-01-01", None),
    ],
)
def test_an_instant_is_seconds_since_1970_in_utc(text, expected):
    assert instant(text) == expected


def test_whole_numbers_beyond_floats_become_the_largest():
    assert as_float(10**400) == -as_float(-(10**400)) == 1.7976931348623157e308
    assert as_float(3) == 3.0
