"""Views against an oracle: a dict of records and NumPy, over any split into segments and growing parts."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.errors import DataError
from hsokv_ray.memory.stores.facets import Predicate, compile_filter, facets, holds
from hsokv_ray.memory.stores.filters import field
from hsokv_ray.memory.stores.lsm.growing import Growing, GrowingView
from hsokv_ray.memory.stores.lsm.segment import Segment, write_segment
from hsokv_ray.memory.stores.lsm.view import Part, Version, View
from hsokv_ray.memory.stores.types import Metric, Record, Rows

DIM = 3
ID_NUMBERS = st.integers(0, 25)
WRITES = st.lists(st.tuples(st.sampled_from(["put", "put", "put", "drop", "seal", "new"]), ID_NUMBERS), max_size=60)
FILTERS = [None, field("k") == 1, field("k") != 1, field("k") >= 2, field("missing").exists(), ~(field("k") == 7)]


@dataclass
class Parts:
    """Rows in parts with alive masks, as a store keeps them, and the same as a dict."""

    folder: Path
    metric: Metric
    records: dict[str, Record]
    parts: list[tuple[Part, np.ndarray]]
    growing: Growing

    def put(self, id: str, vector: np.ndarray, metadata: dict) -> None:
        self.drop(id)
        self.growing.append(Rows([id], vector[None], [json.dumps(metadata).encode()]))
        self._dead = [*self._dead, False]
        self.records[id] = Record(id, vector, metadata)

    def drop(self, id: str) -> None:
        self.records.pop(id, None)
        for part, alive in self.parts:
            at = int(part.find([id])[0])
            if at >= 0:
                alive[at] = False
        at = int(self.growing.view().find([id])[0])
        if at >= 0:
            self._dead[at] = True

    def __post_init__(self) -> None:
        self._dead: list[bool] = []

    def seal(self, *, into_segment: bool) -> None:
        view, dead = self.growing.view(), np.array(self._dead, bool)
        if into_segment and not dead.all():
            kept = np.flatnonzero(~dead)
            rows = Rows(view.ids(kept), view.vectors(kept), view.metadata(kept))
            folder = self.folder / f"s{len(self.parts)}"
            write_segment(folder, rows, kind="flat", metric=self.metric)
            self.parts.append((Segment.open(folder), np.ones(len(kept), bool)))
        elif not into_segment:
            self.parts.append((view, ~dead))
        self.growing, self._dead = Growing(DIM, self.metric, self.growing.generation + 1), []

    def view(self) -> View:
        parts: list[tuple[Part, np.ndarray | None]] = [
            (part, None if alive.all() else alive.copy()) for part, alive in self.parts
        ]
        return View(
            Version(1, 1), self.metric, DIM, (*parts, (self.growing.view(), ~np.array(self._dead, bool))), num_threads=1
        )


def played(folder: Path, metric: Metric, writes: list[tuple[str, int]]) -> Parts:
    parts = Parts(folder, metric, {}, [], Growing(DIM, metric, 0))
    grid = np.random.default_rng(0).integers(-2, 3, (len(writes) + 1, DIM)).astype(np.float32)  # many equal scores
    for step, (action, number) in enumerate(writes):
        if action == "put":
            parts.put(f"é{number}", grid[step], {"k": number % 4} if number % 5 else {})
        elif action == "drop":
            parts.drop(f"é{number}")
        else:
            parts.seal(into_segment=action == "seal")
    return parts


def passing(parts: Parts, predicate: Predicate | None) -> list[Record]:
    return [each for each in parts.records.values() if holds(predicate, facets(each.metadata))]


@settings(max_examples=150)
@given(writes=WRITES, metric=st.sampled_from(["dot", "l2"]), top_k=st.sampled_from([1, 4, 99]))
def test_a_view_over_any_parts_answers_as_a_dict_of_records_would(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[str, int]], metric: Metric, top_k: int
) -> None:
    parts = played(tmp_path_factory.mktemp("view"), metric, writes)
    view = parts.view()
    assert view.alive_count == view.count() == len(parts.records)
    wanted = ["é3", "nope", "é7", "é3"]
    assert view.get(wanted) == [parts.records.get(id) for id in wanted]
    queries = np.array([[1, 0, 0], [0, -1, 1], [1, 1, 1], [0, 0, 0], [2, 1, 0]], np.float32)
    for filter in FILTERS:
        predicate = compile_filter(filter)
        expected = passing(parts, predicate)
        assert view.count(predicate) == len(expected)
        assert sorted(view.ids_where(predicate)) == sorted(each.id for each in expected)
        for asked in (queries[:1], queries):
            matches = view.search(asked, top_k, predicate)
            hits = matches.hits()
            assert len(hits) == len(asked)
            for row, (query, found) in enumerate(zip(asked, hits, strict=True)):
                scored = {each.id: score(query, each.vector, metric) for each in expected}
                best = sorted(scored.values(), reverse=True)[:top_k]
                assert [hit.score for hit in found] == pytest.approx(best, abs=1e-5)
                assert [(-hit.score, hit.id) for hit in found] == sorted((-hit.score, hit.id) for hit in found)
                assert len({hit.id for hit in found}) == len(found)
                for hit in found:
                    assert hit.score == pytest.approx(scored[hit.id], abs=1e-5)
                    assert hit.metadata == parts.records[hit.id].metadata
                gaps = matches.position[row] < 0
                assert (gaps == (matches.part[row] < 0)).all()
                assert (gaps == np.isneginf(matches.scores[row])).all()
                assert gaps.sum() == len(gaps) - len(found)


def score(query: np.ndarray, vector: np.ndarray, metric: Metric) -> float:
    return float(query @ vector) if metric == "dot" else -float(((query - vector) ** 2).sum())


@settings(max_examples=60)
@given(writes=WRITES, page_size=st.sampled_from([1, 3, 50]), filter=st.sampled_from(FILTERS))
def test_scrolling_visits_every_record_once_in_id_order(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[str, int]], page_size: int, filter
) -> None:
    parts = played(tmp_path_factory.mktemp("view"), "dot", writes)
    view, predicate = parts.view(), compile_filter(filter)
    found, cursor = [], None
    while True:
        page = view.scroll(predicate, page_size, cursor)
        assert len(page.records) <= page_size
        found += page.records
        if (cursor := page.cursor) is None:
            break
        assert len(page.records) == page_size
    assert found == sorted(passing(parts, predicate), key=lambda each: each.id)


@pytest.mark.parametrize("cursor", ["", "x", "after:", 3, "after:\ud800"])
def test_a_cursor_that_no_page_had_is_refused(cursor) -> None:
    with pytest.raises(DataError, match="which no page of this store had"):
        View(Version(0, 0), "dot", None, ()).scroll(None, 5, cursor)


def test_a_view_without_rows_answers_everything() -> None:
    for parts in ((), ((Growing(2, "dot", 0).view(), None),)):
        view = View(Version(0, 0), "dot", 2, parts)
        assert view.search(np.ones((3, 2), np.float32), 5).hits() == [[], [], []]
        assert view.get(["a"]) == [None]
        assert (view.count(), view.ids_where(), view.scroll(None, 5, None).records) == (0, [], [])


def test_a_view_stays_as_it_is_when_the_store_goes_on(tmp_path: Path) -> None:
    parts = played(tmp_path, "dot", [("put", 1), ("put", 2), ("seal", 0), ("put", 3)])
    view = parts.view()
    before = view.scroll(None, 50, None)
    parts.put("é1", np.ones(DIM, np.float32), {"new": True})
    parts.drop("é2")
    parts.seal(into_segment=True)
    assert view.scroll(None, 50, None) == before
    assert [each.id for each in before.records] == ["é1", "é2", "é3"]
    assert sorted(parts.view().ids_where()) == ["é1", "é3"]


def test_a_reader_with_shipped_rows_sees_what_the_writer_sees() -> None:
    growing = Growing(DIM, "l2", 4)
    vectors = np.random.default_rng(0).standard_normal((30, DIM), np.float32)
    growing.append(Rows([f"id{i}" for i in range(30)], vectors, [b'{"k":1}'] * 30))
    mine = growing.view()
    theirs = GrowingView.from_rows(DIM, "l2", 4, mine.rows(0, 20)).extended(mine.rows(20, 30))
    alive = np.arange(30) % 3 > 0
    predicate = compile_filter(field("k") == 1)
    left, right = (View(Version(0, 9), "l2", DIM, ((part, alive),)) for part in (mine, theirs))
    assert left.search(vectors[:7], 5, predicate).hits() == right.search(vectors[:7], 5, predicate).hits()


def test_versions_are_ordered_by_owner_then_by_write() -> None:
    assert Version(1, 9) < Version(2, 0) < Version(2, 1)
