"""SemanticMemory over a real store."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.errors import DataError
from hsokv_ray.memory.records import ENCODER, stable_id
from hsokv_ray.memory.semantic import SemanticMemory
from hsokv_ray.memory.stores import VectorStore, field, open_store

DIM = 16
ENGINE = "faiss"
TEXTS = ["Tea grows in Assam.", "  espaços \u2028", "", "🧠 e\u0301 <memory_3>", "Tea grows in Assam. "]


class Hashing:
    """A deterministic encoder: each word (and the text's length) is a random direction."""

    def __init__(self, fingerprint: str = "hashing-1") -> None:
        self.fingerprint = fingerprint

    def __call__(self, texts: list[str]) -> np.ndarray:
        return np.stack([sum(self._word(word) for word in [*text.split(), f"#{len(text)}"]) for text in texts])

    def _word(self, word: str) -> np.ndarray:
        return np.random.default_rng(list(word.encode())).standard_normal(DIM).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VectorStore]:
    with open_store(f"{ENGINE}:{tmp_path / 'store'}") as store:
        yield store


@pytest.fixture
def facts(store: VectorStore) -> SemanticMemory:
    memory = SemanticMemory(store, Hashing())
    memory.add(
        TEXTS, metadata=[{"i": i, "topic": {"name": "tea" if "Tea" in text else "x"}} for i, text in enumerate(TEXTS)]
    )
    return memory


def test_each_text_is_found_by_itself_as_it_was_given(facts: SemanticMemory) -> None:
    for i, text in enumerate(TEXTS):
        [found] = facts.search(text, top_k=1)
        assert (found.text, found.metadata["i"]) == (text, i)
        assert found.score == pytest.approx(1.0, abs=1e-5)
        assert "text" not in found.metadata
        assert ENCODER not in found.metadata


def test_hits_are_those_of_a_brute_force_search_that_passed_the_filter(facts: SemanticMemory) -> None:
    vectors = Hashing()(TEXTS)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query = np.random.default_rng(1).standard_normal(DIM).astype(np.float32)
    scores = vectors @ query / np.linalg.norm(query)
    expected = sorted((i for i, text in enumerate(TEXTS) if "Tea" not in text), key=lambda i: -scores[i])
    found = facts.search(query, top_k=9, filter=field("topic.name") != "tea")
    assert [each.metadata["i"] for each in found] == expected
    assert [each.score for each in found] == pytest.approx(scores[expected], abs=1e-5)
    assert facts.count({"topic.name": "tea"}) == 2
    assert facts.count({"text": ""}) == 1


def test_adding_again_stores_nothing_twice_and_an_id_is_replaced(facts: SemanticMemory) -> None:
    facts.add([TEXTS[0]], metadata=[{"i": 0, "topic": {"name": "tea"}}])
    assert facts.count() == len(TEXTS)
    [id] = facts.add(["new"], np.ones((1, DIM)), ids=["mine"])
    facts.add(["newer"], np.ones((1, DIM)), ids=["mine"])
    assert id == "mine"
    [found] = facts.get(["mine"])
    assert found is not None
    assert (found.text, found.metadata) == ("newer", {})
    assert facts.get(["absent"]) == [None]


def test_delete_by_id_and_by_filter(facts: SemanticMemory) -> None:
    [found] = facts.search(TEXTS[1], top_k=1)
    assert facts.delete([found.id, found.id, "absent"]) == 1
    assert facts.delete(filter={"topic.name": "tea"}) == 2
    assert facts.count() == 2
    assert facts.check_integrity() == []


def test_default_ids_are_digests_of_text_and_metadata(facts: SemanticMemory) -> None:
    assert facts.add(["a"], metadata=[{"b": 1}]) == [stable_id("a", {"b": 1})]
    assert facts.add(["a"]) != facts.add(["a"], metadata=[{"b": 1}])


@settings(max_examples=25)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=5, unique=True)
)
def test_any_unicode_text_survives(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    with open_store(f"{ENGINE}:{tmp_path_factory.mktemp('any') / 'store'}") as store:
        memory = SemanticMemory(store, Hashing())
        ids = memory.add(texts)
        assert [each.text for each in memory.get(ids) if each] == texts
        assert memory.check_integrity() == []


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda memory: memory.add("text"), "got one string"),
        (lambda memory: memory.add([3]), "texts: got a int"),
        (lambda memory: memory.add(["a"], metadata=[{"text": "b"}]), "'text' is this memory's own"),
        (lambda memory: memory.add(["a"], metadata=[{ENCODER: "b"}]), "'_encoder' is this memory's own"),
        (lambda memory: memory.add(["a"], metadata=[]), "metadata: got 0 for 1"),
        (lambda memory: memory.add(["a"], ids=["a", "b"]), "ids: got 2 for 1"),
        (lambda memory: memory.add(["a"], np.ones((1, DIM)), encoder_ids=[]), "encoder_ids: got 0 for 1"),
        (lambda memory: memory.add(["a"], np.ones((1, 3))), "3 dimensions"),
        (lambda memory: SemanticMemory(memory.store).add(["a"]), "no encoder"),
        (lambda memory: SemanticMemory(memory.store).search("a"), "no encoder"),
        (lambda memory: SemanticMemory(memory.store, Hashing("other-2")).add(["a"]), "5 of the texts"),
        (lambda memory: SemanticMemory(memory.store, Hashing("other-2")).search("a"), "another encoder"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    facts: SemanticMemory, call: Callable[[SemanticMemory], object], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        call(facts)
    assert facts.count() == len(TEXTS)
    assert facts.check_integrity() == []


def test_vectors_of_another_encoder_are_counted(facts: SemanticMemory) -> None:
    facts.add(["a", "b"], np.eye(DIM)[:2], encoder_ids=["other-2", ""])
    assert facts.num_stale == 1
    assert facts.check_integrity() == ["1 vectors of another encoder than this one (hashing-1)"]
    assert SemanticMemory(facts.store).num_stale == 0


def test_integrity_finds_records_without_a_text(facts: SemanticMemory, store: VectorStore) -> None:
    store.upsert(["stray"], np.ones((1, DIM)), [{"text": 3}])
    assert facts.check_integrity() == ["1 records without a text"]


def test_integrity_finds_what_a_store_gets_wrong(facts: SemanticMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    records = list(facts.store.records())
    records[0].vector[:] = np.nan
    monkeypatch.setattr(facts.store, "records", lambda: iter(records[:-1]))
    problems = facts.check_integrity()
    assert any("1 vectors of the wrong" in problem for problem in problems)
    assert any("4 records found where 5 are counted" in problem for problem in problems)
