"""MemoryConsolidator over a real store, and over one that fails at chosen calls."""

import gzip
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.errors import ConfigError, StoreError
from hsokv_ray.memory.config import ConsolidationConfig
from hsokv_ray.memory.consolidation import KEY, MemoryConsolidator
from hsokv_ray.memory.episodic import EpisodicMemory
from hsokv_ray.memory.grouping import group_near_duplicates
from hsokv_ray.memory.importance import importance
from hsokv_ray.memory.semantic import SemanticMemory
from hsokv_ray.memory.stores import VectorStore, open_store
from hsokv_ray.memory.stores.types import Page, Record, Rows, StoreStats

DIM = 8
ENGINE = "faiss"
ALL = ConsolidationConfig(min_importance=0.0)


class Failing(VectorStore):
    """Hands every call on to `inner`; the calls whose numbers are in `at` raise, before or after they are done."""

    driver = "failing"

    def __init__(self, inner: VectorStore) -> None:
        super().__init__(inner.metric)
        self.inner, self.calls, self.at, self.after = inner, 0, set[int](), False

    @property
    def dim(self) -> int | None:
        return self.inner.dim

    def _do(self, method: str, *arguments: Any) -> Any:
        self.calls += 1
        fails = self.calls in self.at
        if fails and not self.after:
            raise StoreError(f"call {self.calls} ({method}) fails")
        done = getattr(self.inner, method)(*arguments)
        if fails:
            raise StoreError(f"call {self.calls} ({method}) fails after it was done")
        return done

    def _upsert(self, rows: Rows) -> None:
        self._do("_upsert", rows)

    def _search(self, queries: np.ndarray, top_k: int, predicate: Any) -> Any:
        return self._do("_search", queries, top_k, predicate)

    def _get(self, ids: list[str]) -> list[Record | None]:
        return self._do("_get", ids)

    def _delete(self, ids: list[str]) -> int:
        return self._do("_delete", ids)

    def _delete_where(self, predicate: Any) -> int:
        return self._do("_delete_where", predicate)

    def _count(self, predicate: Any) -> int:
        return self._do("_count", predicate)

    def _scroll(self, predicate: Any, page_size: int, cursor: str | None) -> Page:
        return self.inner._scroll(predicate, page_size, cursor)

    def _stats(self) -> StoreStats:
        return self.inner._stats()

    def _optimize(self) -> None:
        self.inner._optimize()

    def _close(self) -> None:
        self.inner.close()


class Silent(Failing):
    """Loses what it is told to write, or returns it without its text, or never finds it by its vector."""

    fault = "write"

    def _upsert(self, rows: Rows) -> None:
        if self.fault == "write":
            return
        if self.fault == "text":
            rows = Rows(rows.ids, rows.vectors, [text.replace(b"text ", b"TEXT ") for text in rows.metadata])
        self.inner._upsert(rows)

    def _search(self, queries: np.ndarray, top_k: int, predicate: Any) -> Any:
        return [[] for _ in queries] if self.fault == "query" else self.inner._search(queries, top_k, predicate)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VectorStore]:
    with open_store(f"{ENGINE}:{tmp_path / 'store'}") as store:
        yield store


def near(axis: int, tilt: float = 0.0, towards: int = -1) -> np.ndarray:
    vector = np.zeros(DIM, np.float32)
    vector[axis], vector[towards] = 1.0, tilt
    return vector / np.linalg.norm(vector)


def episodes_of(*vectors: np.ndarray, clock: float = 1000.0) -> EpisodicMemory:
    memory = EpisodicMemory(100, clock=lambda: clock)
    for i, vector in enumerate(vectors):
        memory.add(f"text {i}", vector, id=f"e{i}", metadata={"i": i})
    return memory


def texts_anywhere(episodic: EpisodicMemory, store: VectorStore) -> set[str]:
    found = {each.text for each in episodic.recent()}
    for record in store.records():
        found |= {record.metadata["text"], *record.metadata.get(KEY, {}).get("variants", [])}
    return found


def test_near_duplicates_become_one_record_with_the_medoids_text_and_what_it_stands_for(store: VectorStore) -> None:
    episodic = episodes_of(near(0, 0.1), near(0), near(0, -0.1), near(3))
    episodic.search(near(0), top_k=1)
    facts = SemanticMemory(store)
    report = MemoryConsolidator(episodic, facts, ALL).run()
    assert sorted(report.moved) == ["e0", "e1", "e2", "e3"]
    assert (report.kept, report.failed) == ([], {})
    assert [(each.medoid, each.members) for each in report.groups] == [("e1", ("e0", "e1", "e2")), ("e3", ("e3",))]
    assert len(episodic) == 0
    [found] = facts.search(near(0), top_k=1)
    assert (found.id, found.text, found.metadata["i"]) == ("e1", "text 1", 1)
    assert found.metadata[KEY] == {
        "represents": ["e0", "e1", "e2"],
        "variants": ["text 0", "text 2"],
        "time_s": 1000.0,
        "uses": 1,
    }
    assert facts.count() == 2


def test_what_does_not_matter_stays(store: VectorStore) -> None:
    facts = SemanticMemory(store)
    facts.add(["known"], near(0)[None])
    episodic = episodes_of(near(0, 0.01), near(1), near(0, -0.01))
    for _ in range(5):
        episodic.search(near(0, -0.01), top_k=1)
    report = MemoryConsolidator(episodic, facts).run()
    assert report.kept == ["e0"]  # 0.4 * 0 + 0.4 * 0 + 0.2 * 1; e1 is new, e2 is used
    assert report.moved == ["e1", "e2"]
    assert [each.id for each in episodic.recent()] == ["e0"]


def test_importance_is_the_documented_formula() -> None:
    config = ConsolidationConfig(use_weight=1, novelty_weight=2, recency_weight=1, half_use=3)
    scores = importance(config, np.array([0, 3, 9]), np.array([-1.0, 0.25, 1.0]), np.array([0.0, 3600.0, 36000.0]))
    expected = [(0 + 2 * 1 + 1) / 4, (0.5 + 2 * 0.75 + 0.995) / 4, (0.75 + 0 + 0.995**10) / 4]
    assert scores == pytest.approx(expected)


@pytest.mark.parametrize("after", [False, True])
def test_whatever_call_fails_nothing_is_lost_and_the_next_run_finishes(tmp_path: Path, after: bool) -> None:
    vectors = [near(0), near(0, 0.1), near(2), near(4)]
    for step in itertools.count(1):
        with open_store(f"{ENGINE}:{tmp_path / f'store{step}'}") as inner:
            store = Failing(inner)
            store.at, store.after = {step}, after
            episodic = episodes_of(*vectors)
            texts = {each.text for each in episodic.recent()}
            worker = MemoryConsolidator(episodic, SemanticMemory(store), ALL)
            try:
                failed = worker.run().failed
            except StoreError:
                failed = {"search": ""}
                assert len(episodic) == 4
            assert texts_anywhere(episodic, inner) >= texts
            if store.calls < step:
                assert failed == {}
                break
            assert failed
            store.at = set()
            report = worker.run()
            assert (report.failed, report.kept, len(episodic)) == ({}, [], 0)
            assert texts_anywhere(episodic, inner) == texts
            assert inner.count() == 3
            assert worker.check_integrity() == []
    assert step > 8


@pytest.mark.parametrize(
    ("fault", "said"), [("write", "does not read back"), ("text", "does not read back"), ("query", "not found by its")]
)
def test_a_store_that_loses_what_it_said_it_took_gets_nothing_deleted(
    store: VectorStore, fault: str, said: str
) -> None:
    silent = Silent(store)
    silent.fault = fault
    episodic = episodes_of(near(0), near(1))
    report = MemoryConsolidator(episodic, SemanticMemory(silent), ALL).run()
    assert set(report.failed) == {"e0", "e1"}
    assert all(said in reason for reason in report.failed.values())
    assert report.moved == []
    assert len(episodic) == 2


def test_a_run_again_changes_nothing_and_new_duplicates_do_not_overwrite(store: VectorStore) -> None:
    facts = SemanticMemory(store)
    [group] = MemoryConsolidator(episodes_of(near(0), near(0, 0.1)), facts, ALL).run().groups
    before = {record.id: record.metadata for record in store.records()}
    episodic = EpisodicMemory(9)
    worker = MemoryConsolidator(episodic, facts, ALL)
    assert worker.run().moved == []
    episodic.add("other text", near(5), id=group.medoid)
    report = worker.run()
    assert "that of another record" in report.failed[group.medoid]
    assert {record.id: record.metadata for record in store.records()} == before
    assert len(episodic) == 1


def test_one_episode_that_cannot_be_stored_does_not_hold_up_the_others(store: VectorStore) -> None:
    episodic = episodes_of(near(0), near(1))
    episodic.add("bad key", near(2), id="bad", metadata={"text": "mine"})
    episodic.add("worse key", near(3), id="worse", metadata={KEY: {}})
    report = MemoryConsolidator(episodic, SemanticMemory(store), ALL).run()
    assert sorted(report.moved) == ["e0", "e1"]
    assert "'text'" in report.failed["bad"]
    assert f"'{KEY}'" in report.failed["worse"]


def test_episodes_without_a_vector_are_encoded_or_reported(store: VectorStore) -> None:
    def episodes() -> EpisodicMemory:
        memory = EpisodicMemory(9)
        memory.add("no vector", id="bare")
        return memory

    report = MemoryConsolidator(episodes(), SemanticMemory(store), ALL).run()
    assert "no encoder" in report.failed["bare"]
    encoded = SemanticMemory(store, lambda texts: np.stack([near(1) for _ in texts]))
    assert MemoryConsolidator(episodes(), encoded, ALL).run().moved == ["bare"]


def test_an_index_that_is_full_of_equals_still_shows_the_new_one(store: VectorStore) -> None:
    SemanticMemory(store).add([f"old {i}" for i in range(40)], np.tile(near(0), (40, 1)))
    episodic = episodes_of(near(0))
    report = MemoryConsolidator(episodic, SemanticMemory(store), ALL).run()
    assert (report.moved, report.failed) == (["e0"], {})


def test_integrity_finds_episodes_left_over_and_records_that_disown_themselves(store: VectorStore) -> None:
    facts = SemanticMemory(store)
    facts.add(["a"], near(0)[None], [{KEY: {"represents": ["e0", "r"]}}], ["r"])
    facts.add(["b"], near(1)[None], [{KEY: {"represents": ["e0", "s"]}}], ["s"])
    facts.add(["c"], near(2)[None], [{KEY: {"represents": []}}], ["t"])
    problems = MemoryConsolidator(episodes_of(near(0)), facts).check_integrity()
    assert any("still in episodic memory" in problem for problem in problems)
    assert any("is represented by" in problem for problem in problems)
    assert "record 't' does not represent itself" in problems
    assert len(problems) == 3


def test_another_metric_and_weights_of_zero_are_refused(tmp_path: Path) -> None:
    with (
        open_store(f"{ENGINE}:{tmp_path / 'dot'}?metric=dot") as store,
        pytest.raises(ConfigError, match="metric 'dot'"),
    ):
        MemoryConsolidator(EpisodicMemory(1), SemanticMemory(store))
    with pytest.raises(ConfigError, match="all are 0"):
        ConsolidationConfig(use_weight=0, novelty_weight=0, recency_weight=0)


@st.composite
def crowds(draw: st.DrawFn) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    centres = rng.standard_normal((draw(st.integers(1, 3)), 4))
    points = centres[rng.integers(0, len(centres), draw(st.integers(1, 12)))]
    points = points + draw(st.sampled_from([0.0, 0.1, 0.4])) * rng.standard_normal(points.shape)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


@settings(max_examples=150)
@given(vectors=crowds(), similarity=st.sampled_from([0.5, 0.8, 0.95]), shuffle=st.randoms(use_true_random=False))
def test_groups_cover_everything_once_hold_together_and_do_not_depend_on_the_order(
    vectors: np.ndarray, similarity: float, shuffle: Any
) -> None:
    ids = [f"m{i:02d}" for i in range(len(vectors))]
    groups = group_near_duplicates(ids, vectors, similarity)
    assert sorted(id for group in groups for id in group.members) == ids
    at = {id: vectors[i] for i, id in enumerate(ids)}
    for group in groups:
        assert all(at[group.medoid] @ at[id] >= similarity - 1e-9 for id in group.members)
        sums = {
            a: sum(at[a] @ at[b] for b in group.members)
            for a in group.members
            if all(at[a] @ at[b] >= similarity + 1e-9 for b in group.members)
        }
        assert not sums or sum(at[group.medoid] @ at[b] for b in group.members) >= max(sums.values()) - 1e-6
    order = list(range(len(ids)))
    shuffle.shuffle(order)
    assert group_near_duplicates([ids[i] for i in order], vectors[order], similarity) == groups


def test_two_that_only_resemble_a_third_do_not_share_a_group_with_each_other_as_medoid() -> None:
    chain = np.array([[np.cos(a), np.sin(a)] for a in np.deg2rad([0, 20, 40, 60])])
    groups = group_near_duplicates(["a", "b", "c", "d"], chain, 0.9)
    assert [(group.medoid, group.members) for group in groups] == [("b", ("a", "b", "c")), ("d", ("d",))]


@pytest.mark.real_data
def test_two_thousand_real_sentences_move_and_every_text_is_found_afterwards(
    real_data: Path, store: VectorStore
) -> None:
    with gzip.open(real_data / "sentence_vectors" / "sentences.txt.gz", "rt", encoding="utf-8") as file:
        sentences = [line.rstrip("\n") for line in itertools.islice(file, 2000)]
    with np.load(real_data / "sentence_vectors" / "minilm_sentences.npz") as arrays:
        vectors = arrays["vectors"][:2000].astype(np.float32)
    episodic = EpisodicMemory(2000)
    for sentence, vector in zip(sentences, vectors, strict=True):
        episodic.add(sentence, vector)
    config = ConsolidationConfig(min_importance=0.0, similarity=0.9)
    report = MemoryConsolidator(episodic, SemanticMemory(store), config).run()
    assert (len(report.moved), report.kept, report.failed, len(episodic)) == (2000, [], {}, 0)
    assert store.count() == len(report.groups) < 2000
    assert texts_anywhere(episodic, store) == set(sentences)
    assert MemoryConsolidator(episodic, SemanticMemory(store)).check_integrity() == []
