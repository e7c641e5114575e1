"""KeyValueMemory against plain NumPy, and against whoever corrupts it."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hsokv_ray.errors import CheckpointError, ConfigError, DataError, StoreError
from hsokv_ray.memory.config import KeyValueConfig, LifecycleConfig
from hsokv_ray.memory.key_value import KeyValueMemory
from hsokv_ray.memory.lifecycle import Stage
from hsokv_ray.memory.records import stable_id
from hsokv_ray.memory.retrieval import GatedRead

DIM, WIDTH = 8, 5


def memory_of(capacity: int = 16, *, encoder_id: str = "", **options: object) -> KeyValueMemory:
    return KeyValueMemory(
        KeyValueConfig(key_dim=DIM, value_dim=WIDTH, capacity=capacity, **options), encoder_id=encoder_id
    )


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def filled(num: int = 10, **options: object) -> KeyValueMemory:
    memory = memory_of(**options)
    memory.write(normal(num, DIM), normal(num, WIDTH, seed=1), ids=[f"e{i}" for i in range(num)])
    return memory


def reference(memory: KeyValueMemory, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and best scores by loops, in float64; blended."""
    config, out, best = memory.config, [], []
    for query in queries.astype(np.float64):
        query = query / np.linalg.norm(query)
        rows = [(float(query @ memory.keys[s].double().numpy()), s) for s in memory.slots_of(memory.ids)]
        rows = sorted(rows, reverse=True)[:top_k]
        best.append(rows[0][0])
        rows = [(score, slot) for score, slot in rows if score >= config.threshold]
        strength = memory.lifecycle.strength()
        weights = np.array([strength[slot] * np.exp(score / config.temperature) for score, slot in rows])
        total = sum(
            w / weights.sum() * memory.values[slot].double().numpy() for w, (_, slot) in zip(weights, rows, strict=True)
        )
        out.append(total if rows else np.zeros(WIDTH))
    return np.stack(out), np.array(best)


@pytest.mark.parametrize("top_k", [1, 3, 10])
@pytest.mark.parametrize("retrieved", [0, 12, 40])
def test_a_blended_read_is_the_strength_weighted_softmax_over_the_nearest_hits(top_k: int, retrieved: int) -> None:
    memory = filled(learning_recall="blend")
    memory.lifecycle.retrieve(np.repeat(np.arange(5), retrieved))
    memory._refresh(np.arange(16))
    queries = normal(7, DIM, seed=2)
    values, best = reference(memory, queries.numpy(), top_k)
    found = memory.read(queries, top_k)
    np.testing.assert_allclose(found.values.numpy(), values, atol=1e-5)
    np.testing.assert_allclose(found.scores[:, 0].numpy(), best, atol=1e-6)
    np.testing.assert_allclose(found.weights.sum(-1).numpy(), found.hit.float().numpy(), atol=1e-6)


def test_the_nearest_entry_is_recalled_alone_while_it_is_learning_and_blended_once_it_is_not() -> None:
    memory = filled()
    queries = normal(6, DIM, seed=3)
    found = memory.read(queries, record=False)
    assert found.hit.all()
    torch.testing.assert_close(found.values, memory.values[found.indices[:, 0]])
    memory.lifecycle.retrieve(np.repeat(np.arange(10), 5))
    memory._refresh(np.arange(16))
    later = memory.read(queries, record=False)
    assert (later.weights[:, 0] < 1).any()
    torch.testing.assert_close(later.values, torch.from_numpy(reference(memory, queries.numpy(), 10)[0]).float())


@pytest.mark.parametrize("recall", ["top1", "blend"])
def test_gradients_reach_the_query_and_are_those_of_the_blend(recall: str) -> None:
    memory = filled(learning_recall=recall, threshold=-1.0).double()
    query = normal(3, DIM, seed=4).double().requires_grad_()
    weight = normal(3, WIDTH, seed=5).double()
    (memory.read(query, 4, record=False).values * weight).sum().backward()
    blend = filled(learning_recall="blend", threshold=-1.0).double()
    assert query.grad is not None
    for i in range(DIM):
        step = torch.zeros(3, DIM, dtype=torch.double)
        step[:, i] = 1e-6
        with torch.no_grad():
            up, down = (blend.read(query + s, 4, record=False).values * weight for s in (step, -step))
        torch.testing.assert_close(query.grad[:, i], (up - down).sum(-1) / 2e-6, rtol=1e-4, atol=1e-6)


def test_a_write_between_read_and_backward_leaves_the_gradient_as_it_was() -> None:
    query = normal(2, DIM, seed=6).requires_grad_()
    memory = filled()
    memory.read(query).values.sum().backward()
    expected, query.grad = query.grad, None
    memory = filled()
    total = memory.read(query).values.sum()
    memory.write(normal(3, DIM, seed=7), normal(3, WIDTH), ids=["e0", "e1", "new"])
    memory.remove(["e2"])
    total.backward()
    torch.testing.assert_close(query.grad, expected)


def test_what_is_written_in_inference_mode_can_be_read_with_gradients() -> None:
    memory = filled().eval()
    with torch.inference_mode(), memory.writable():
        memory.write(normal(2, DIM, seed=7), normal(2, WIDTH), ids=["e0", "new"], inputs=["a", "b"])
        memory.read(normal(2, DIM))
        memory.remove(["e3"])
        memory.reencode("other", lambda inputs: normal(len(inputs), DIM, seed=8))
    query = normal(2, DIM, seed=8).requires_grad_()
    memory.train().read(query).values.square().sum().backward()
    assert query.grad is not None
    assert memory.check_integrity() == []


def test_below_the_threshold_nothing_hits_and_the_values_are_zero() -> None:
    memory = memory_of(threshold=0.5)
    memory.write(torch.eye(DIM)[:2], normal(2, WIDTH), ids=["a", "b"])
    found = memory.read(torch.eye(DIM)[[0, 5]])
    assert found.hit.tolist() == [True, False]
    assert found.values[1].eq(0).all()
    assert found.weights[1].eq(0).all()
    assert memory.lifecycle.retrievals.sum() == 1


def test_an_empty_memory_a_short_one_and_a_zero_query_give_padded_rows_of_misses() -> None:
    memory = memory_of()
    found = memory.read(normal(2, 3, DIM), 4)
    assert found.values.shape == (2, 3, WIDTH)
    assert found.indices.eq(-1).all()
    assert not found.hits.any()
    memory.write(normal(2, DIM), normal(2, WIDTH))
    assert memory.read(normal(1, DIM), 4).indices[0, 2:].tolist() == [-1, -1]
    assert not memory.read(torch.zeros(1, DIM)).hit.any()


def test_a_nan_in_a_query_is_seen_in_the_result() -> None:
    query = normal(2, DIM)
    query[1, 3] = torch.nan
    values = filled().read(query).values
    assert values[0].isfinite().all()
    assert values[1].isnan().all()


def test_reads_count_and_move_entries_through_the_stages() -> None:
    memory = memory_of(lifecycle=LifecycleConfig(learning_retrievals=2, mature_retrievals=4, boost=2.0))
    memory.write(torch.eye(DIM)[:1], normal(1, WIDTH), ids=["a"])
    seen, strengths = [], []
    for _ in range(6):
        seen.append(memory.stage("a"))
        strengths.append(float(memory.lifecycle.strength()[0]))
        memory.read(torch.eye(DIM)[:1])
    assert seen == [Stage.LEARNING] * 2 + [Stage.REINFORCEMENT] * 2 + [Stage.MATURE] * 2
    assert strengths == pytest.approx([1.4, 1.4, 1.4, 1.05, 0.7, 0.7])


def test_feedback_moves_confidence_and_the_success_rate_counts_feedbacks_not_retrievals() -> None:
    memory = filled(2)
    for _ in range(5):
        memory.read(memory.keys[:1])
    assert memory.feedback([0], [True]) == 1
    assert memory.lifecycle.confidence[0] == pytest.approx(0.75)
    assert memory.lifecycle.successes[0] / memory.lifecycle.feedbacks[0] == 1.0
    assert memory.feedback([[0, 1], [-1, 0]], [0.0, 1.0]) == 3
    assert memory.lifecycle.confidence[:2] == pytest.approx([0.75, 0.65])
    for _ in range(30):
        memory.feedback([0, 1], [0.0, 1.0])
    assert memory.lifecycle.confidence[:2] == pytest.approx([0.05, 1.0])
    assert memory.check_integrity() == []


def test_feedback_on_an_entry_written_since_the_read_is_passed_over() -> None:
    memory = filled(2, capacity=2)
    found = memory.read(memory.keys[:1], 1)
    memory.remove(["e0"])
    memory.write(normal(1, DIM, seed=9), normal(1, WIDTH), ids=["other"])
    assert memory.slots_of(["other"]) == found.indices[0].tolist()
    assert memory.feedback(found.indices, [False], clock=found.clock) == 0
    assert memory.lifecycle.feedbacks.sum() == 0


@pytest.mark.parametrize(
    ("indices", "success"), [([0, 1], [1.0]), ([0], [1.5]), ([0], [float("nan")]), ([99], [1.0]), ([-2], [1.0]), (0, 1)]
)
def test_feedback_that_does_not_fit_is_refused_and_changes_nothing(indices: object, success: object) -> None:
    memory = filled(2)
    before = memory.digest()
    with pytest.raises(DataError, match="feedback: "):
        memory.feedback(indices, success)
    assert memory.digest() == before


def test_in_evaluation_reads_leave_every_bit_alone_and_writes_raise() -> None:
    memory = filled().eval()
    before = memory.digest()
    memory.read(normal(9, DIM, seed=8))
    for change in (
        lambda: memory.write(normal(1, DIM), normal(1, WIDTH)),
        lambda: memory.feedback([0], [1.0]),
        lambda: memory.remove(["e0"]),
        lambda: memory.prune(1.0),
        lambda: memory.reencode("new", lambda inputs: normal(len(inputs), DIM)),
    ):
        with pytest.raises(StoreError, match="read-only"):
            change()
    assert memory.digest() == before
    with memory.writable():
        memory.write(normal(1, DIM, seed=9), normal(1, WIDTH))
    assert memory.digest() != before
    assert not memory.training


def test_a_read_in_training_and_every_kind_of_change_shows_in_the_digest() -> None:
    seen = {(memory := filled()).digest()}
    for change in (
        lambda: memory.read(memory.keys[:1], 1),
        lambda: memory.feedback([0], [1.0]),
        lambda: memory.write(memory.keys[:1].clone(), normal(1, WIDTH, seed=3), ids=["e0"]),
        lambda: memory.write(memory.keys[:1].clone(), memory.values[:1].clone(), ids=["e0"], metadata=[{"a": 1}]),
        lambda: memory.remove(["e9"]),
    ):
        change()
        assert memory.digest() not in seen
        seen.add(memory.digest())
    assert filled().digest() in seen


def test_a_full_memory_evicts_the_least_useful_mature_entry_and_protected_ones_only_when_none_is_left() -> None:
    memory = filled(4, capacity=4, lifecycle=LifecycleConfig(learning_retrievals=1, mature_retrievals=2))
    memory.lifecycle.retrieve(np.array([0, 0, 1, 1]))
    memory.feedback([0], [1.0])
    written = memory.write(normal(2, DIM, seed=5), normal(2, WIDTH), ids=["e0", "n0"])
    assert (written.evicted, written.evicted_protected, written.replaced) == (["e1"], 0, 1)
    written = memory.write(normal(2, DIM, seed=6), normal(2, WIDTH), ids=["n1", "n2"])
    assert written.evicted == ["e0", "e2"]
    assert written.evicted_protected == 1
    assert sorted(memory.ids) == ["e3", "n0", "n1", "n2"]


def test_utility_is_the_documented_formula() -> None:
    memory = filled(2, lifecycle=LifecycleConfig(recency_half_life=3))
    memory.feedback([0], [1.0])
    for _ in range(3):
        memory.read(memory.keys[1:2], 1)
    expected = 0.3 * 0.75 + 0.3 * 2 / 3 + 0.2 * 0.5 ** (4 / 3) + 0.2 * 0
    assert memory.lifecycle.utility()[0] == pytest.approx(expected)
    assert memory.lifecycle.utility()[1] == pytest.approx(0.3 * 0.7 + 0.3 * 0.5 + 0.2 + 0.2)


def test_prune_removes_mature_entries_below_the_utility_and_no_protected_one() -> None:
    memory = filled(3, lifecycle=LifecycleConfig(learning_retrievals=1, mature_retrievals=2))
    memory.lifecycle.retrieve(np.array([0, 0, 1, 1]))
    memory._refresh(np.arange(2))
    for _ in range(9):
        memory.feedback([0, 2], [0.0, 0.0])
    assert memory.prune(0.6) == ["e0"]  # 0.3 * 0.25 + 0.3 / 11 + 0.2 * 0.99 + 0.2; e1 has 0.76
    assert memory.ids == ["e1", "e2"]
    assert memory.check_integrity() == []


def test_writing_an_id_again_replaces_it_and_keeps_its_standing() -> None:
    memory = filled(3)
    memory.feedback([1], [1.0])
    written = memory.write(normal(2, DIM, seed=4), normal(2, WIDTH, seed=4), ids=["e1", "e1"])
    assert (written.ids, written.slots, written.replaced) == (["e1"], [1], 1)
    torch.testing.assert_close(memory.values[1], normal(2, WIDTH, seed=4)[1])
    assert memory.lifecycle.confidence[1] == pytest.approx(0.75)
    assert len(memory) == 3


def test_default_ids_are_the_same_in_every_process_and_differ_with_the_content() -> None:
    memory = memory_of()
    facts = [{"word": "murngale", "n": 1}, {"word": "murngale", "n": 2}]
    ids = memory.write(normal(2, DIM), normal(2, WIDTH), metadata=facts, inputs=["a", "a"]).ids
    code = "from hsokv_ray.memory.records import stable_id; print(stable_id('a', {'n': 1, 'word': 'murngale'}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert ids[0] == other == stable_id("a", facts[0])
    assert ids[0] != ids[1]
    bare = memory.write(normal(2, DIM), normal(2, WIDTH)).ids
    assert bare == memory_of().write(normal(2, DIM), normal(2, WIDTH)).ids
    assert len({*ids, *bare}) == 4


@pytest.mark.parametrize(
    ("keys", "values", "options", "said"),
    [
        (torch.ones(1, 7), torch.ones(1, WIDTH), {}, "keys: got shape"),
        (torch.ones(DIM), torch.ones(1, WIDTH), {}, "keys: got shape"),
        (torch.ones(2, DIM), torch.ones(1, WIDTH), {}, "values: got 1 for 2"),
        (torch.zeros(1, DIM), torch.ones(1, WIDTH), {}, "row 0 is all zeros"),
        (torch.full((1, DIM), torch.nan), torch.ones(1, WIDTH), {}, "keys: holds NaN"),
        (torch.ones(1, DIM), torch.full((1, WIDTH), torch.inf), {}, "values: holds NaN"),
        (torch.ones(1, DIM), [["x"] * WIDTH], {}, "values: cannot be read"),
        (torch.ones(1, DIM), torch.ones(1, WIDTH), {"ids": [""]}, "ids: got an empty"),
        (torch.ones(1, DIM), torch.ones(1, WIDTH), {"ids": ["a", "b"]}, "ids: got 2 for 1"),
        (torch.ones(1, DIM), torch.ones(1, WIDTH), {"metadata": [{"a": object()}]}, "JSON cannot hold"),
        (normal(17, DIM), normal(17, WIDTH), {}, "the capacity is 16"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_changes_nothing(
    keys: object, values: object, options: dict, said: str
) -> None:
    memory = filled()
    before = memory.digest()
    with pytest.raises(DataError, match=said):
        memory.write(keys, values, **options)
    assert memory.digest() == before


def test_bad_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="mature_retrievals"):
        LifecycleConfig(learning_retrievals=5, mature_retrievals=4)
    with pytest.raises(ConfigError, match="initial_confidence"):
        LifecycleConfig(initial_confidence=0.01)
    with pytest.raises(DataError, match="queries: got"):
        filled().read(torch.ones(2, DIM, dtype=torch.long))
    with pytest.raises(DataError, match="top_k"):
        filled().read(torch.ones(2, DIM), 0)


def test_keys_of_another_encoder_are_counted_left_out_and_encoded_again() -> None:
    memory = memory_of(encoder_id="v1")
    inputs = ["a", "b", {"rich": ["input"]}]
    memory.write(normal(3, DIM), normal(3, WIDTH), ids=["a", "b", "c"], inputs=inputs)
    memory.write(normal(1, DIM, seed=3), normal(1, WIDTH), ids=["bare"])
    seen: list[object] = []

    def encode(batch: list[object]) -> torch.Tensor:
        seen.extend(batch)
        return normal(3, DIM, seed=9)[len(seen) - len(batch) : len(seen)]

    done = memory.reencode("v2", encode, batch_size=2)
    assert seen == inputs
    assert (done.done, done.left) == (3, ["bare"])
    assert memory.num_stale == 1
    torch.testing.assert_close(memory.keys[:3], torch.nn.functional.normalize(normal(3, DIM, seed=9)))
    assert 3 not in memory.read(normal(1, DIM, seed=3), 4).indices.tolist()[0]
    assert memory.check_integrity() == []
    included = memory_of(encoder_id="v2", exclude_stale=False)
    included.write(normal(1, DIM, seed=3), normal(1, WIDTH), encoder_id="v1")
    assert included.num_stale == 1
    assert included.read(normal(1, DIM, seed=3)).hit.all()


@pytest.mark.parametrize("result", [torch.zeros(2, DIM), torch.ones(1, DIM), torch.ones(2, 3), None, "raise"])
def test_an_encoder_that_fails_leaves_the_memory_as_it_was(result: object) -> None:
    memory = memory_of(encoder_id="v1")
    memory.write(normal(2, DIM), normal(2, WIDTH), inputs=["a", "b"])
    before = memory.digest()

    def encode(batch: list[object]) -> object:
        if result == "raise":
            raise DataError("encode_fn: no")
        return result

    with pytest.raises(DataError, match="encode_fn"):
        memory.reencode("v2", encode)
    assert memory.digest() == before


def test_a_saved_memory_reads_back_bit_for_bit_and_goes_on_alike(tmp_path: Path) -> None:
    memory = filled(encoder_id="minilm")
    memory.write(normal(1, DIM, seed=3), normal(1, WIDTH), metadata=[{"wörd": "\u2028"}], inputs=["ein Wort"])
    memory.remove(["e3"])
    memory.read(normal(5, DIM, seed=2))
    memory.feedback([1], [0.25])
    memory.save(tmp_path / "words")
    again = KeyValueMemory.load(tmp_path / "words")
    assert again.digest() == memory.digest()
    for each in (memory, again):
        each.read(normal(2, DIM, seed=4))
        each.write(normal(8, DIM, seed=5), normal(8, WIDTH))
    assert again.digest() == memory.digest()
    assert copy.deepcopy(memory).digest() == memory.digest()


def test_a_damaged_or_foreign_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no saved memory"):
        KeyValueMemory.load(tmp_path)
    path = filled().save(tmp_path)
    values = path / "values.json"
    text = values.read_text()
    values.write_text(text.replace('"e1"', '"eX"'))
    with pytest.raises(CheckpointError, match=r"values\.json is damaged"):
        KeyValueMemory.load(tmp_path)
    values.write_text(text)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["extra"]["kind"] = "episodic"
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="'episodic'"):
        KeyValueMemory.load(tmp_path)


def corruptions() -> dict[str, object]:
    def entry(memory: KeyValueMemory) -> None:
        memory.entries[0] = None

    def twice(memory: KeyValueMemory) -> None:
        memory.entries[1] = memory.entries[0]

    def name(memory: KeyValueMemory) -> None:
        del memory._slots["e4"]

    return {
        "unit length": lambda m: m.keys[2].mul_(1.5),
        "NaN": lambda m: m.values[2].fill_(torch.nan),
        "an empty slot has a value": lambda m: m.values[12].fill_(1),
        "confidence outside": lambda m: m.lifecycle.confidence.__setitem__(3, 7.0),
        "negative count": lambda m: m.lifecycle.retrievals.__setitem__(3, -1),
        "successes that do not fit": lambda m: m.lifecycle.successes.__setitem__(3, 1.0),
        "times out of order": lambda m: m.lifecycle.last_used.__setitem__(3, 10**6),
        "a standing without an entry": entry,
        "an id stands in two slots": twice,
        "the map of ids": name,
        "readable slots": lambda m: m.valid[4].logical_not_(),
        "learning slots": lambda m: m.lifecycle.retrievals.__setitem__(3, 9),
        "strengths": lambda m: m.log_strength[4].add_(0.1),
    }


@pytest.mark.parametrize("said", corruptions())
def test_integrity_finds_what_was_corrupted(said: str) -> None:
    memory = filled()
    assert memory.check_integrity() == []
    corruptions()[said](memory)  # type: ignore[operator]
    assert any(said in problem for problem in memory.check_integrity())


def test_it_moves_with_the_model_around_it_and_stays_out_of_its_weights() -> None:
    model = torch.nn.ModuleDict({"memory": filled(), "gate": GatedRead(WIDTH, WIDTH)})
    assert all(name.startswith("gate.") for name in model.state_dict())
    model.bfloat16().eval()
    found = model["memory"].read(normal(3, DIM).bfloat16())
    assert found.values.dtype == torch.bfloat16
    assert model["memory"].check_integrity() == []
    assert not model["memory"].training


@pytest.mark.parametrize("width", [WIDTH, 12])
def test_the_gate_mixes_where_something_hit_and_passes_the_hidden_state_where_nothing_did(width: int) -> None:
    memory = memory_of(threshold=0.5)
    memory.write(torch.eye(DIM)[:1], normal(1, WIDTH))
    torch.manual_seed(0)
    layer = GatedRead(width, WIDTH)
    hidden, found = normal(2, width, seed=1), memory.read(torch.eye(DIM)[[0, 5]])
    mixed = layer(hidden, found)
    assert mixed.gate[1] == 0
    assert 0 < mixed.gate[0] < 1
    torch.testing.assert_close(mixed.output[1], hidden[1])
    value = layer.value_proj(found.values)
    torch.testing.assert_close(mixed.output[0], mixed.gate[0] * value[0] + (1 - mixed.gate[0]) * hidden[0])
    torch.testing.assert_close(layer(hidden, found, force=0.0).output, hidden)
    torch.testing.assert_close(layer(hidden, found, force=1.0).output[0], value[0])
    mixed.output.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_nothing_draws_from_a_global_generator() -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    memory = filled(16, capacity=16)
    memory.read(normal(4, DIM))
    memory.write(normal(4, DIM, seed=2), normal(4, WIDTH))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


class Life(RuleBasedStateMachine):
    """Random writes, reads, judgements and removals against a dictionary of what should be there."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = memory_of(6, lifecycle=LifecycleConfig(learning_retrievals=1, mature_retrievals=3))
        self.model: dict[str, np.ndarray] = {}
        self.seed = 0

    @rule(names=st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=6))
    def write(self, names: list[str]) -> None:
        self.seed += 1
        keys, values = normal(len(names), DIM, seed=self.seed), normal(len(names), WIDTH, seed=-self.seed % 2**32)
        written = self.memory.write(keys, values, ids=names)
        self.model |= dict(zip(names, values.numpy(), strict=True))
        for gone in written.evicted:
            assert gone not in names
            del self.model[gone]

    @rule(num=st.integers(1, 4))
    def read(self, num: int) -> None:
        self.seed += 1
        self.memory.read(normal(num, DIM, seed=self.seed), 3)

    @rule(slots=st.lists(st.integers(-1, 5), max_size=6), grade=st.floats(0, 1))
    def judge(self, slots: list[int], grade: float) -> None:
        self.memory.feedback(np.array(slots, np.int64), np.full(len(slots), grade))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        assert self.memory.remove([name, "never there", name]) == 1
        del self.model[name]

    @invariant()
    def holds_what_it_should(self) -> None:
        assert self.memory.check_integrity() == []
        assert set(self.memory.ids) == set(self.model)
        for name, value in self.model.items():
            np.testing.assert_array_equal(self.memory.values[self.memory.slots_of([name])[0]].numpy(), value)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
