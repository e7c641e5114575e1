"""Bytes that arrive in parts: the same text, the same errors, however they are cut."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.errors import DataError
from serve.documents import intake
from serve.documents.intake import Index, PagesIntake, TextIntake

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
labels = st.none() | st.integers(-5, 5) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@pytest.fixture(autouse=True, scope="module")
def _small_steps() -> Iterator[None]:
    """An index with an entry every third character, so that short texts have many."""
    usual, intake.EVERY = intake.EVERY, 3
    yield
    intake.EVERY = usual


def cuts(data: bytes, draw: Any) -> list[bytes]:
    """Some way to cut `data` into parts."""
    places = draw(st.lists(st.integers(0, len(data)), max_size=6))
    return [data[begin:end] for begin, end in pairwise([0, *sorted(places), len(data)])]


def check_index(index: Index, text: str) -> None:
    assert (index.num_characters, index.num_bytes) == (len(text), len(text.encode()))
    assert index.offsets == [len(text[:i].encode()) for i in range(0, len(text) + 1, index.every)]


@given(texts, st.data())
def test_text_is_counted_the_same_however_it_is_cut(text: str, data: st.DataObject) -> None:
    taken = TextIntake()
    for part in cuts(text.encode(), data.draw):
        taken.feed(part)
    if not text:
        with pytest.raises(DataError, match="empty"):
            taken.finish()
        return
    taken.finish()
    check_index(taken.index, text)


def said_of(data: bytes) -> str | None:
    """What must be said of a document of these bytes, by Python's own decoder."""
    try:
        return None if data.decode() else "the document is empty; send text"
    except UnicodeDecodeError as error:
        return f"the document is not UTF-8: byte {error.start} ({error.reason}); save it as UTF-8"


@given(st.binary(max_size=40) | texts.map(str.encode), st.binary(max_size=3), st.data())
def test_bytes_that_are_not_utf8_are_named_as_python_names_them(begin: bytes, end: bytes, data: st.DataObject) -> None:
    whole = begin + end
    taken = TextIntake()
    try:
        for part in cuts(whole, data.draw):
            taken.feed(part)
        taken.finish()
        found = None
    except DataError as error:
        found = str(error)
    assert found == said_of(whole)


@given(st.lists(st.tuples(texts, labels, labels), max_size=6), st.booleans(), st.booleans(), st.data())
def test_pages_are_joined_by_blank_lines_and_found_at_their_ranges(
    pages: list[tuple[str, Any, Any]], leads: bool, escaped: bool, data: st.DataObject
) -> None:
    lines = []
    for text, page, title in pages:
        value = {"text": text, "page": page, "title": None if title is None else str(title)}
        lines.append(json.dumps(value, ensure_ascii=escaped) + data.draw(st.sampled_from(["\n", "\r\n", "\n\n"])))
    written: list[bytes] = []
    taken = PagesIntake(written.append, leads=leads, line_bytes=10_000)
    for part in cuts("".join(lines).encode(), data.draw):
        taken.feed(part)
    if not any(text for text, _, _ in pages):
        with pytest.raises(DataError, match="empty"):
            taken.finish()
        return
    taken.finish()
    whole = b"".join(written).decode()
    assert whole == ("\n\n" if leads else "") + "\n\n".join(text for text, _, _ in pages)
    check_index(taken.index, whole)
    for (text, page, title), (begin, end, label, name) in zip(pages, taken.pages, strict=True):
        assert (whole[begin:end], label, name) == (text, page, None if title is None else str(title))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "a", "size": 3}', "line 2: unknown key 'size'; text, page, title are allowed"),
        ('{"page": 3}', "line 2: 'text' is NoneType"),
        ('{"text": 3}', "line 2: 'text' is int"),
        ('["text"]', "line 2: got list"),
        ("text", "line 2: it is not JSON"),
        ('{"text": "a", "text": "b"}', "line 2: a key comes twice"),
        ('{"text": "\\ud800"}', "line 2: 'text' has a lone surrogate"),
        ('{"text": "a", "title": "\\udfff"}', "line 2: 'title' has a lone surrogate"),
        ('{"text": "a", "page": true}', "line 2: 'page' is bool"),
        ('{"text": "a", "page": 1.5}', "line 2: 'page' is float"),
        ('{"text": "a", "page": NaN}', "line 2: 'page' is float"),
        ('{"text": "a", "page": 1' + "0" * 20 + "}", "line 2: 'page' is past"),
        ('{"text": "a", "page": 1' + "0" * 5000 + "}", "line 2: it is not JSON"),
        ('{"text": "a", "title": 3}', "line 2: 'title' is int"),
        ('{"text": "a", "title": "' + "t" * 2000 + '"}', "line 2: 'title' has 2000 characters"),
        ("[" * 9000, "line 2: it is nested too deep"),
        ('{"text": "' + "a" * 20_000 + '"}', "line 2: it has more than 10000 bytes"),
    ],
)
def test_a_wrong_line_is_named_with_what_is_wrong(line: str, expected: str) -> None:
    taken = PagesIntake(lambda _: None, leads=False, line_bytes=10_000)
    with pytest.raises(DataError) as caught:
        taken.feed(f'{{"text": "first"}}\n{line}\n{{"text": "third"}}\n'.encode())
    assert str(caught.value).startswith(expected)


def test_a_line_that_is_not_utf8_is_named() -> None:
    taken = PagesIntake(lambda _: None, leads=False, line_bytes=100)
    with pytest.raises(DataError, match="line 1: it is not UTF-8 at its byte 10"):
        taken.feed(b'{"text": "\xff"}\n')


def test_a_line_that_never_ends_is_refused_before_it_is_all_held() -> None:
    taken = PagesIntake(lambda _: None, leads=False, line_bytes=1000)
    for _ in range(10):
        taken.feed(b"x" * 100)
    with pytest.raises(DataError, match="line 1: it has more than 1000 bytes"):
        taken.feed(b"x")
