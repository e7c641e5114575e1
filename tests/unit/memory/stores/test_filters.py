"""Filters: what they mean, and how they are written as JSON."""

from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.errors import DataError
from hsokv_ray.memory.stores import field, matches, parse_filter
from hsokv_ray.memory.stores.filters import And, Compare, Not, Or

BOOK = {
    "title": "Mrs Dalloway",
    "year": 1925,
    "on": "1925-05-14",
    "author": {"name": "Woolf", "born": 1882},
    "tags": ["novel", 1, None],
    "nothing": None,
    "a.b": "dot",
    "sold": True,
}

HOLD = [
    field("title") == "Mrs Dalloway",
    field("year") == 1925.0,
    field("author.name") == "Woolf",
    field("a\\.b") == "dot",
    field("nothing") == None,  # noqa: E711
    field("missing") == None,  # noqa: E711
    field("missing.deeper") == None,  # noqa: E711
    field("missing") != 1,
    field("year") != "1925",
    field("sold") != 1,
    field("author") != "Woolf",
    field("year").is_in([1, 1925]),
    field("missing").not_in([1, 2]),
    field("missing").is_in([1, None]),
    field("nothing").exists(),
    field("author.born").exists(),
    ~field("author.died").exists(),
    field("tags").contains("novel"),
    field("tags").contains(1.0),
    field("tags").contains(None),
    ~field("title").contains("Mrs"),
    field("year") >= 1925,
    field("year") < 1925.5,
    field("on") > "1925-05-13",
    field("on") >= date(1925, 5, 14),
    field("on") < datetime(1925, 5, 14, 0, 0, 1, tzinfo=UTC),
    field("on") <= "1925-05-14T01:00:00+01:00",
    And(()),
    ~Or(()),
    (field("year") > 1900) & (field("year") < 1950) | (field("title") == "x"),
]


@pytest.mark.parametrize("filter", HOLD, ids=repr)
def test_what_a_filter_holds_for(filter):
    assert matches(filter, BOOK)
    assert not matches(~filter, BOOK)


DO_NOT_HOLD = [
    field("title") == "mrs dalloway",
    field("sold") == 1,
    field("year") == "1925",
    field("year") == True,  # noqa: E712
    field("a.b") == "dot",
    field("author") == None,  # noqa: E711
    field("tags") == "novel",
    field("tags").is_in(["novel"]),
    field("missing") > 0,
    field("title") > 0,
    field("sold") > 0,
    field("year") > "1900-01-01",
    field("on") > 0,
    field("nothing") <= 0,
    field("title").is_in([]),
    field("tags").contains("nov"),
]


@pytest.mark.parametrize("filter", DO_NOT_HOLD, ids=repr)
def test_what_a_filter_does_not_hold_for(filter):
    assert not matches(filter, BOOK)
    assert matches(~filter, BOOK)


JSON = [
    ({"lang": "en"}, field("lang") == "en"),
    ({"lang": None}, field("lang") == None),  # noqa: E711
    ({"a": 1, "b": 2}, (field("a") == 1) & (field("b") == 2)),
    ({"a": {"$gte": 1, "$lt": 2}}, (field("a") >= 1) & (field("a") < 2)),
    ({"a": {"$in": [1, "x"]}}, field("a").is_in([1, "x"])),
    ({"a": {"$nin": []}}, field("a").not_in([])),
    ({"a": {"$ne": True}}, field("a") != True),  # noqa: E712
    ({"a.b": {"$exists": True}}, field("a.b").exists()),
    ({"a": {"$exists": False}}, ~field("a").exists()),
    ({"a": {"$contains": "x"}}, field("a").contains("x")),
    ({"$or": [{"a": 1}, {"$not": {"b": 2}}]}, (field("a") == 1) | ~(field("b") == 2)),
    ({"$and": []}, And(())),
    ({"$or": []}, Or(())),
    ({}, And(())),
    (None, None),
]


@pytest.mark.parametrize(("value", "expected"), JSON, ids=lambda value: repr(value)[:60])
def test_json_says_the_same_as_python(value, expected):
    assert parse_filter(value) == expected


WRONG = [
    ([], "an object such as"),
    ("lang = en", "an object such as"),
    ({"$nor": []}, "unknown '\\$nor'"),
    ({"$and": {"a": 1}}, "a list of objects is needed"),
    ({"$or": [1]}, "an object such as"),
    ({"$not": None}, "an object such as"),
    ({"a": {}}, "empty object"),
    ({"a": {"$regex": "x"}}, "unknown operator '\\$regex'.*allowed: \\$eq"),
    ({"a": {"gt": 1}}, "unknown operator 'gt'"),
    ({"a": {1: 1}}, "unknown operator 1"),
    ({"a": {"$in": "x"}}, "a list is needed"),
    ({"a": {"$in": [[1]]}}, "a string, a number"),
    ({"a": [1]}, "a string, a number"),
    ({"a": float("nan")}, "finite"),
    ({"a": "\ud800"}, "lone surrogate"),
    ({"\ud800": 1}, "lone surrogate"),
    ({"a": {"$gt": "x"}}, "ISO 8601"),
    ({"a": {"$gt": True}}, "ISO 8601"),
    ({"a": {"$gt": None}}, "ISO 8601"),
    ({"a": {"$gt": float("inf")}}, "ISO 8601"),
    ({"a": {"$exists": 1}}, "true or false"),
    ({"": 1}, "keys are not empty"),
    ({"a..b": 1}, "keys are not empty"),
    ({"a.": 1}, "keys are not empty"),
    ({"a\\": 1}, "keys are not empty"),
    ({1: 1}, "keys are strings"),
]


@pytest.mark.parametrize(("value", "message"), WRONG, ids=lambda value: repr(value)[:40])
def test_a_wrong_filter_says_what_is_wrong(value, message):
    with pytest.raises(DataError, match=message) as caught:
        parse_filter(value)
    assert "\n" not in str(caught.value)


def test_filters_may_neither_nest_nor_grow_without_end():
    value = {"a": 1}
    for _ in range(5000):
        value = {"$not": value}
    with pytest.raises(DataError, match="more than 16 deep"):
        parse_filter(value)
    filter = field("a") == 1
    for _ in range(5000):
        filter = Not(filter)
    with pytest.raises(DataError, match="more than 16 deep"):
        parse_filter(filter)
    with pytest.raises(DataError, match="got 1001 comparisons; at most 1000"):
        parse_filter({"$or": [{"a": i} for i in range(1001)]})


def test_a_chain_of_one_operator_stays_flat():
    chain, either = field("a") == 0, field("a") == 0
    for i in range(1, 500):
        chain, either = chain & (field("a") == i), either | (field("a") == i)
    assert parse_filter(chain) == And(tuple(field("a") == i for i in range(500)))
    assert parse_filter(either) == Or(tuple(field("a") == i for i in range(500)))


def test_filters_are_not_used_as_truth_values():
    with pytest.raises(TypeError, match="combine filters with"):
        bool(field("a") == 1)
    with pytest.raises(DataError, match="parentheses"):
        (field("a") == 1) & 2
    with pytest.raises(DataError, match="list of values"):
        field("a").is_in("abc")
    with pytest.raises(DataError, match="list of values"):
        field("a").is_in(3)
    with pytest.raises(DataError, match="a string is needed"):
        field(3)


@given(data=st.data())
def test_not_is_the_complement_and_de_morgan_holds(data, random):
    filter, other = data.draw(random.filters), data.draw(random.filters)
    metadata = data.draw(random.metadata)
    assert matches(~filter, metadata) != matches(filter, metadata)
    assert matches(~(filter & other), metadata) == matches(~filter | ~other, metadata)
    assert matches(filter | other, metadata) == (matches(filter, metadata) or matches(other, metadata))


def _as_json(filter):
    match filter:
        case And(parts):
            return {"$and": [_as_json(part) for part in parts]}
        case Or(parts):
            return {"$or": [_as_json(part) for part in parts]}
        case Not(part):
            return {"$not": _as_json(part)}
        case Compare(op, path, value):
            key = ".".join(key.replace("\\", "\\\\").replace(".", "\\.") for key in path)
            return {key: {f"${op}": list(value) if isinstance(value, tuple) else value}}
    raise AssertionError(filter)


@given(data=st.data())
def test_a_filter_written_as_json_reads_back(data, random):
    filter = data.draw(random.filters)
    assert parse_filter(_as_json(filter)) == filter
