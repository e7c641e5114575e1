"""Growing parts: views keep what they saw while rows are appended."""

import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.memory.stores.facets import compile_filter
from hsokv_ray.memory.stores.filters import field
from hsokv_ray.memory.stores.lsm.growing import Growing, GrowingView
from hsokv_ray.memory.stores.types import Rows

BATCHES = st.lists(st.lists(st.sampled_from(["a", "b", "ab", "é", "\U0001f600", "z"]), unique=True), max_size=8)


def rows_of(ids: list[str], first: int = 0) -> Rows:
    """Rows whose vector and metadata say which slot they should be in."""
    slots = range(first, first + len(ids))
    vectors = np.array([[slot, 1] for slot in slots], np.float32).reshape(-1, 2)
    return Rows(ids, vectors, [json.dumps({"slot": slot, "odd": slot % 2 == 1}).encode() for slot in slots])


@given(batches=BATCHES)
def test_every_view_stays_what_it_was_when_it_was_taken(batches: list[list[str]]) -> None:
    growing = Growing(2, "l2", 3)
    ids: list[str] = []
    taken: list[tuple[GrowingView, list[str]]] = [(growing.view(), [])]
    for batch in batches:
        assert growing.append(rows_of(batch, len(ids))) == len(ids)
        ids = ids + batch
        taken.append((growing.view(), ids))
    odd = compile_filter(field("odd") == True)  # noqa: E712
    assert odd is not None
    for view, expected in taken[::-1] + taken:
        n = len(expected)
        assert (view.num_rows, view.generation) == (n, 3)
        assert view.all_ids() == expected
        assert view.ids(range(n)) == expected
        assert view.vectors(np.arange(n))[:, 0].tolist() == list(range(n))
        last = {id: slot for slot, id in enumerate(expected)}
        assert view.find(["a", "é", "nope"]).tolist() == [last.get(id, -1) for id in ("a", "é", "nope")]
        assert view.mask(odd).tolist() == [slot % 2 == 1 for slot in range(n)]
        assert [json.loads(text)["slot"] for text in view.metadata(range(n))] == list(range(n))
        by_id = sorted(range(n), key=lambda slot: (expected[slot], slot))
        assert view.after(None, 99, None).tolist() == by_id
        assert view.after("b", 2, None).tolist() == [slot for slot in by_id if expected[slot] > "b"][:2]
        scores, positions = view.search(np.zeros((1, 2), np.float32), 3)
        assert positions.tolist() == [list(range(min(3, n)))]
        assert scores.tolist() == [[-float(slot**2 + 1) for slot in range(min(3, n))]]


@given(cuts=st.lists(st.integers(0, 40), max_size=4))
def test_rows_shipped_in_pieces_make_the_same_view(cuts: list[int]) -> None:
    growing = Growing(2, "dot", 5)
    growing.append(rows_of([f"id{i % 17}" for i in range(40)]))
    view = growing.view()
    edges = [0, *sorted(cuts), 40]
    copy = GrowingView.from_rows(2, "dot", 5, view.rows(0, edges[1]))
    for start, stop in zip(edges[1:], edges[2:], strict=False):
        before = copy
        copy = before.extended(view.rows(start, stop))
        assert before.num_rows == start
    assert copy.all_ids() == view.all_ids()
    assert np.array_equal(copy.vectors(np.arange(40)), view.vectors(np.arange(40)))
    assert copy.metadata(range(40)) == view.metadata(range(40))
    assert copy.find(["id3", "id16"]).tolist() == view.find(["id3", "id16"]).tolist() == [37, 33]


def test_readers_see_whole_batches_while_one_thread_appends() -> None:
    growing = Growing(2, "l2", 0)
    views: list[GrowingView] = [growing.view()]
    done = threading.Event()
    wrong: list[str] = []

    def read() -> None:
        while not done.is_set() or views[-1].num_rows < 5000:
            view = views[-1]
            n = view.num_rows
            if not n:
                continue
            query = np.array([[n - 1, 1]], np.float32)
            scores, positions = view.search(query, 1)
            if (scores.tolist(), positions.tolist()) != ([[0.0]], [[n - 1]]):
                wrong.append(f"search at {n}: {scores} {positions}")
            if view.find([f"id{n - 1}"]).tolist() != [n - 1] or view.find([f"id{n}"]).tolist() != [-1]:
                wrong.append(f"find at {n}")

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for first in range(0, 5000, 10):
        growing.append(rows_of([f"id{i}" for i in range(first, first + 10)], first))
        views.append(growing.view())
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong, wrong[:3]


def test_metadata_is_read_once_and_only_for_a_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    from hsokv_ray.memory.stores.lsm import growing as module

    read: list[bytes] = []
    original = module.facets_of
    monkeypatch.setattr(module, "facets_of", lambda text: (read.append(text), original(text))[1])
    growing = Growing(2, "dot", 0)
    growing.append(rows_of(["a", "b"]))
    growing.view().search(np.ones((1, 2), np.float32), 1)
    assert read == []
    predicate = compile_filter(field("slot") >= 1)
    assert predicate is not None
    first = growing.view()
    assert first.mask(predicate).tolist() == [False, True]
    growing.append(rows_of(["c"], 2))
    assert growing.view().mask(predicate).tolist() == [False, True, True]
    assert first.mask(predicate).tolist() == [False, True]
    assert len(read) == 3
