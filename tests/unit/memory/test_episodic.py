"""EpisodicMemory against a list, and against whoever corrupts it."""

import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hsokv_ray.errors import CheckpointError, DataError
from hsokv_ray.memory.episodic import EpisodicMemory

DIM = 6


def unit(seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).standard_normal(DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


def encode(texts: list[str]) -> np.ndarray:
    return np.stack([unit(sum(text.encode())) for text in texts])


def filled(num: int = 5, capacity: int = 10) -> EpisodicMemory:
    memory = EpisodicMemory(capacity, clock=itertools.count(100.0).__next__)
    for i in range(num):
        memory.add(f"text {i}", unit(i), id=f"e{i}", metadata={"i": i})
    return memory


def test_the_newest_come_first_and_the_oldest_makes_room() -> None:
    memory = filled(7, capacity=4)
    assert [each.text for each in memory.recent()] == ["text 6", "text 5", "text 4", "text 3"]
    assert [each.id for each in memory.recent(2)] == ["e6", "e5"]
    assert (len(memory), memory.num_dropped) == (4, 3)
    assert memory.get(["e0", "e6"])[0] is None
    assert memory.check_integrity() == []


@pytest.mark.parametrize("text", ["", "  zwei\nZeilen\t", "\u2028\u0000🧠 e\u0301", "<memory_3>"])
def test_the_original_text_comes_back(text: str) -> None:
    memory = EpisodicMemory(3, encoder=encode)
    id = memory.add(text, metadata={"κλειδί": [1, None]})
    [found] = memory.search(text)
    assert (found.id, found.text, found.metadata) == (id, text, {"κλειδί": [1, None]})
    assert found.score == pytest.approx(1.0)


def test_ids_stay_unique_when_the_clock_stands_still_and_episodes_come_and_go() -> None:
    memory = EpisodicMemory(100, clock=lambda: 7.0)
    ids = [memory.add("same text") for _ in range(300)]
    assert len(set(ids)) == 300
    assert memory.remove(ids[250:260]) == 10
    assert [each.id for each in memory.recent()] == ids[260:300][::-1] + ids[200:250][::-1]


def test_a_clock_that_goes_back_does_not_change_the_order() -> None:
    memory = EpisodicMemory(9, clock=iter([5.0, 1.0, 9.0]).__next__)
    for text in "abc":
        memory.add(text)
    assert [(each.text, each.time_s) for each in memory.recent()] == [("c", 9.0), ("b", 5.0), ("a", 5.0)]
    assert memory.check_integrity() == []


def test_search_is_exact_and_counts_uses_unless_told_not_to() -> None:
    memory = filled(5)
    query = unit(42)
    expected = sorted(range(5), key=lambda i: -float(unit(i) @ query))[:3]
    found = memory.search(query * 7, top_k=3, count=False)
    assert [memory.id for memory in found] == [f"e{i}" for i in expected]
    assert [each.score for each in found] == pytest.approx([float(unit(i) @ query) for i in expected], abs=1e-6)
    assert all(each.uses == 0 for each in memory.recent())
    memory.search(query, top_k=1)
    memory.search(query, top_k=1)
    [best] = memory.get([f"e{expected[0]}"])
    assert best is not None
    assert (best.uses, best.last_used_s) == (2, 106.0)
    assert sum(each.uses for each in memory.recent()) == 2


def test_of_equally_near_episodes_the_newer_comes_first() -> None:
    memory = EpisodicMemory(9)
    for text in "abc":
        memory.add(text, unit(1), id=text)
    assert [each.id for each in memory.search(unit(1), top_k=2)] == ["c", "b"]


def test_an_episode_without_a_vector_is_remembered_but_not_searched() -> None:
    memory = EpisodicMemory(3)
    id = memory.add("no vector")
    assert memory.search(unit(1)) == []
    assert memory.vectors([id]) == [None]
    memory.add("with", unit(1))
    assert [each.text for each in memory.search(unit(1))] == ["with"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda memory: memory.add("x", unit(1), id="e1"), "'e1' is in the memory already"),
        (lambda memory: memory.add(3), "text: got int"),
        (lambda memory: memory.add("\ud800", unit(1)), "lone surrogate"),
        (lambda memory: memory.add("x", np.zeros(DIM)), "all zeros"),
        (lambda memory: memory.add("x", np.ones(DIM + 1)), "7 dimensions"),
        (lambda memory: memory.add("x", np.full(DIM, np.nan)), "NaN"),
        (lambda memory: memory.add("x", metadata={"a": {1}}), "JSON cannot hold"),
        (lambda memory: memory.search("text"), "has no encoder"),
        (lambda memory: memory.search(unit(1), top_k=0), "top_k"),
        (lambda memory: memory.search(np.ones(3)), "3 dimensions"),
        (lambda memory: EpisodicMemory(0), "capacity: got 0"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(call: Callable[[EpisodicMemory], object], said: str) -> None:
    memory = filled()
    with pytest.raises(DataError, match=said):
        call(memory)
    assert len(memory) == 5
    assert memory.check_integrity() == []


def test_a_saved_memory_reads_back_whole_and_a_second_save_replaces_the_first(tmp_path: Path) -> None:
    memory = filled(12, capacity=10)
    memory.add("kein Vektor \u2028", metadata={"a": None})
    memory.search(unit(3))
    memory.save(tmp_path)
    memory.remove(["e5"])
    memory.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    again = EpisodicMemory.load(tmp_path, clock=lambda: 999.0)
    assert again.recent() == memory.recent()
    assert (again.capacity, again.num_dropped) == (10, 3)
    assert again.search(unit(7), count=False) == memory.search(unit(7), count=False)
    assert again.add("later") not in {each.id for each in memory.recent()}


@pytest.mark.parametrize("name", ["values.json", "arrays.safetensors", "manifest.json"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = filled().save(tmp_path) / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        EpisodicMemory.load(tmp_path)


def test_a_save_that_was_broken_off_leaves_the_state_before(tmp_path: Path) -> None:
    memory = filled(3)
    path = memory.save(tmp_path)
    half = tmp_path / ".tmp-state-00000002"
    half.mkdir()
    (half / "values.json").write_text("{")
    assert EpisodicMemory.load(tmp_path).recent() == memory.recent()
    memory.add("more", unit(9))
    memory.save(tmp_path)
    assert not half.exists()
    assert not path.exists()
    assert EpisodicMemory.load(tmp_path).recent() == memory.recent()


def test_a_state_that_does_not_fit_itself_is_refused(tmp_path: Path) -> None:
    from hsokv_ray.memory.snapshots import load_state, save_state

    filled().save(tmp_path / "a")
    arrays, values = load_state(tmp_path / "a", "episodic")
    for i, change in enumerate([{"capacity": 2}, {"capacity": "x"}, {"episodes": [{"vector": True}]}]):
        save_state(tmp_path / f"b{i}", "episodic", arrays, json.loads(json.dumps(values | change)))
        with pytest.raises(CheckpointError, match="episodic memory"):
            EpisodicMemory.load(tmp_path / f"b{i}")


def corruptions() -> dict[str, Callable[[EpisodicMemory], object]]:
    def change(memory: EpisodicMemory, **fields: object) -> None:
        memory._episodes["e2"] = replace(memory._episodes["e2"], **fields)  # type: ignore[arg-type]

    return {
        "in a capacity of": lambda m: setattr(m, "capacity", 2),
        "not its own": lambda m: change(m, id="other"),
        "without an episode": lambda m: m._episodes.pop("e2"),
        "different orders": lambda m: m._vectors.__setitem__("e0", m._vectors.pop("e0")),
        "order of their times": lambda m: change(m, time_s=1.0),
        "negative number": lambda m: change(m, uses=-1),
        "unit length": lambda m: m._vectors.__setitem__("e2", np.ones(DIM)),
        "differ in dimensions": lambda m: m._vectors.__setitem__("e2", np.array([1.0])),
    }


@pytest.mark.parametrize("said", corruptions())
def test_integrity_finds_what_was_corrupted(said: str) -> None:
    memory = filled()
    assert memory.check_integrity() == []
    corruptions()[said](memory)
    assert any(said in problem for problem in memory.check_integrity())


def test_threads_that_add_and_search_lose_nothing() -> None:
    memory = EpisodicMemory(1000, encoder=encode)
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda i: (memory.add(f"t{i}"), memory.search(f"t{i}", top_k=1))[0], range(200)))
    assert {each.id for each in memory.recent()} == set(ids)
    assert sum(each.uses for each in memory.recent()) == 200
    assert memory.check_integrity() == []


class Life(RuleBasedStateMachine):
    """Random additions, removals, uses and reloads against a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = EpisodicMemory(5, clock=itertools.count(0.0).__next__)
        self.model: list[tuple[str, str]] = []

    @rule(text=st.text(max_size=5), seed=st.none() | st.integers(0, 99))
    def add(self, text: str, seed: int | None) -> None:
        if "\ud800" <= max(text, default="") <= "\udfff":
            return
        id = self.memory.add(text, None if seed is None else unit(seed))
        self.model = [*self.model, (id, text)][-5:]

    @rule(seed=st.integers(0, 99))
    def search(self, seed: int) -> None:
        texts = dict(self.model)
        assert all(texts[found.id] == found.text for found in self.memory.search(unit(seed)))

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        ids = [id for id, _ in self.model if data.draw(st.booleans())]
        assert self.memory.remove([*ids, *ids, "absent"]) == len(ids)
        self.model = [(id, text) for id, text in self.model if id not in ids]

    @invariant()
    def holds_what_it_should(self) -> None:
        assert self.memory.check_integrity() == []
        assert [(each.id, each.text) for each in self.memory.recent()] == self.model[::-1]


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)
