import json

import pytest

from hsokv_ray.data.text import choose_column, replace_surrogates, row_text, string_columns
from hsokv_ray.errors import DataError


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"title": True, "text": True, "content": True}, "text"),
        ({"title": True, "content": True}, "content"),
        ({"text": False, "body": True}, "body"),
        ({"id": False, "body": True}, "body"),
        ({"title": True, "body": True}, None),
        ({"id": False}, None),
        ({}, None),
    ],
)
def test_the_column_is_text_then_content_then_the_only_strings_then_the_row(columns, expected):
    assert choose_column(columns, wanted=None, where="f") == expected


def test_text_column_wins():
    assert choose_column({"text": True, "id": False}, wanted="id", where="f") == "id"


def test_an_unknown_text_column_lists_what_there_is():
    with pytest.raises(DataError, match="x.csv has no column 'body'; it has id, title"):
        choose_column({"id": False, "title": True}, wanted="body", where="x.csv")


def test_nulls_do_not_hide_a_column_of_strings():
    rows = [{"a": None, "n": 1}, {"a": "x", "n": None}, {"a": "y", "n": 2}]
    assert string_columns(rows) == {"a": True, "n": False}


def test_rows_become_text_by_the_column_or_as_json():
    row = {"text": "hello", "n": 3, "none": None}
    assert row_text(row, "text") == "hello"
    assert row_text(row, "n") == "3"
    assert row_text(row, "none") == ""
    assert row_text(row, "absent") is None
    assert json.loads(row_text(row, None) or "") == row
    assert row_text("a bare string", None) == "a bare string"


def test_only_what_utf8_cannot_hold_is_replaced():
    assert replace_surrogates("a\udcffb\ud800c\U0001f600") == "a\ufffdb\ufffdc\U0001f600"
