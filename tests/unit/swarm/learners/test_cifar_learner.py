"""Split-CIFAR-10 in every variant, on small generated images in CIFAR's own binary form."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generated_data import write_cifar
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from hsokv_ray.errors import CheckpointError, ConfigError, DataError, RunError
from hsokv_ray.evaluation.continual import continual_metrics
from hsokv_ray.memory.key_value import KeyValueMemory
from hsokv_ray.swarm.learner import Learner, State, Task
from hsokv_ray.swarm.learners.cifar import CifarTask
from hsokv_ray.swarm.learners.cifar_learner import CifarLearner, Totals
from hsokv_ray.swarm.learners.fixed_keys import FixedKeys, KeyTable
from hsokv_ray.swarm.learners.recipe import DEFAULT_STRATEGY
from hsokv_ray.swarm.learners.stream import Order, figures
from hsokv_ray.swarm.space import Strategy

VARIANTS = ("hsokv", "fine_tune", "kv_only", "experience_replay")
CASES = [(variant, features) for variant in VARIANTS for features in ("live", "fixed")]
PER_CLASS, TEST_PER_CLASS = 30, 6
STRATEGY: Strategy = DEFAULT_STRATEGY | {"batch_size": 8, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cifar(tmp_path_factory.mktemp("cifar"), per_class=PER_CLASS, test_per_class=TEST_PER_CLASS)


@pytest.fixture
def make(folder: Path):
    def build(variant: Any = "hsokv", key_features: Any = "fixed", **changes) -> CifarTask:
        small: dict[str, Any] = {
            "key_dim": 12,
            "num_filters": 6,
            "image_size": 8,
            "total_steps": 15,
            "memory_bytes": 40_000,
        }
        return CifarTask(str(folder), variant=variant, key_features=key_features, **(small | changes))

    return build


def begun(task: CifarTask, strategy: Strategy = STRATEGY, seed: int = 0) -> CifarLearner:
    learner = task.learner()
    learner.configure(strategy, seed=seed)
    learner.reset()
    return learner


def assert_same(first: State, second: State) -> None:
    assert first.values == second.values
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name


@pytest.mark.parametrize(("variant", "features"), CASES)
def test_training_in_two_halves_by_two_learners_is_training_at_once(make, variant, features) -> None:
    task = make(variant, features, record_test=True)
    whole = begun(task)
    whole.train(15)
    half = begun(task)
    half.train(4)  # in the middle of a task
    state = half.state()
    wire = State({name: tensor.clone() for name, tensor in state.tensors.items()}, json.loads(json.dumps(state.values)))
    other = task.learner()
    other.configure(STRATEGY, seed=99)
    other.load(wire)
    other.train(11)
    assert_same(whole.state(), other.state())
    assert whole.evaluate() == other.evaluate()
    assert whole.test() == other.test()


def test_a_state_is_not_changed_by_what_comes_later(make) -> None:
    for variant in VARIANTS:
        learner = begun(make(variant))
        learner.train(3)
        state = learner.state()
        values, tensors = json.dumps(state.values), {name: tensor.clone() for name, tensor in state.tensors.items()}
        learner.train(6)
        assert json.dumps(state.values) == values
        assert all(torch.equal(tensor, state.tensors[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize(("variant", "features"), CASES)
def test_evaluation_changes_nothing(make, variant, features) -> None:
    learner = begun(make(variant, features))
    learner.train(5)
    before = learner.state()
    assert learner.evaluate() == learner.evaluate()
    assert_same(before, learner.state())


@pytest.mark.parametrize("policy", ["always", "surprise", "novelty"])
@pytest.mark.parametrize(("variant", "features"), CASES)
def test_flops_of_a_step_are_what_the_counter_of_torch_sees(make, variant, features, policy) -> None:
    """Fixed keys are made by numpy, which the counter does not see: charged on top, by their number."""
    task = make(variant, features, total_steps=500)
    learner = begun(task, STRATEGY | {"write_policy": policy})
    learner.train(4)
    num_rehearsed = 8 if variant == "experience_replay" else 0
    unseen = task.key_flops(8 + num_rehearsed) if features == "fixed" else 0
    before = learner.flops
    with FlopCounterMode(display=False) as counter:
        learner.train(1)
    assert learner.flops - before - unseen == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(("variant", "features"), CASES)
def test_flops_of_an_evaluation_are_what_the_counter_of_torch_sees(make, variant, features) -> None:
    task = make(variant, features, total_steps=500)
    learner = begun(task)
    learner.train(4)
    num_images = sum(len(each.splits.validation) for each in learner.stream)
    before = learner.flops
    with FlopCounterMode(display=False) as counter:
        learner.evaluate()
    unseen = task.key_flops(num_images) if features == "fixed" else 0
    assert learner.flops - before - unseen == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(("variant", "features"), CASES)
def test_a_step_never_costs_more_than_its_cost_and_as_much_when_the_memory_is_full(make, variant, features) -> None:
    task = make(variant, features, memory_bytes=30_000, total_steps=50)
    learner = begun(task)
    learner.train(9)
    before = learner.flops
    learner.train(1)
    early = learner.flops - before - _row_flops(learner)
    learner.train(10)
    assert learner.model.num_entries < task.num_entries or not task.has_memory
    assert early <= task.cost(STRATEGY)
    small = make(variant, features, memory_bytes=3100, total_steps=500)  # one raw image, or some 35 entries
    learner = begun(small)
    learner.train(20)
    before = learner.flops
    learner.train(1)
    expected = small.cost(STRATEGY) if variant != "experience_replay" else small.step_flops(learner.recipe, 8, 1, 0)
    assert learner.flops - before == expected


def _row_flops(learner: CifarLearner) -> int:
    """The tenth step ends a task, whose row is charged too."""
    num = sum(len(each.splits.validation) for each in learner.stream)
    return learner.task.evaluation_flops(learner.recipe, num, learner.model.num_entries)


def test_the_matrix_is_what_evaluating_by_hand_at_each_end_of_a_task_gives(make) -> None:
    task = make("hsokv", total_steps=12)  # tasks of 3, 2, 3, 2 and 2 steps
    at_once, by_hand = begun(task), begun(task)
    at_once.train(12)
    scores = [by_hand.evaluate()]
    for num_steps in (3, 2, 3, 2, 2):
        by_hand.train(num_steps)
        scores.append(by_hand.evaluate())
    rows = at_once.model.rows["validation"]
    assert [np.mean(row["class_il"]) for row in rows] == pytest.approx([each["score"] for each in scores])
    assert [np.mean(row["task_il"]) for row in rows] == pytest.approx([each["task_il"] for each in scores])
    found = at_once.test()["validation"]["task_il"]
    expected = continual_metrics([row["task_il"] for row in rows[1:]], untrained=rows[0]["task_il"])
    assert found["backward_transfer"] == expected.backward_transfer
    assert found["forward_transfer"] == expected.forward_transfer
    assert np.isfinite(found["forward_transfer"])
    assert scores[2]["seen_class_il"] == pytest.approx(np.mean(rows[2]["class_il"][:2]))


@pytest.mark.parametrize("variant", ["hsokv", "kv_only"])
def test_retention_is_the_share_of_right_answers_on_the_tasks_before_the_current_one(make, variant) -> None:
    learner = begun(make(variant, total_steps=20))  # tasks of 4 steps
    kept = []
    for step in range(0, 21, 2):
        figures = learner.evaluate()
        earlier = learner.stream[: max(step - 1, 0) // 4]
        right = []
        for each in earlier:
            logits_nL = learner._scores(each.index, "validation", Totals())
            right += (logits_nL.argmax(axis=1) == each.splits.validation.labels).tolist()
        assert figures.get("retention") == (pytest.approx(np.mean(right)) if earlier else None)
        assert ("retention" in figures) == (step > 4)
        kept += right
        learner.train(2)
    assert 0 < np.mean(kept) < 1


@pytest.mark.parametrize("variant", ["hsokv", "fine_tune"])
def test_the_test_has_the_retention_of_its_own_images(make, variant) -> None:
    learner = begun(make(variant, total_steps=20))  # tasks of 4 steps
    for step in (4, 10, 20):
        learner.train(step - learner.model.step)
        found, right = learner.test(), []
        for each in learner.stream[: (step - 1) // 4]:
            logits_nL = learner._scores(each.index, "test", Totals())
            right += (logits_nL.argmax(axis=1) == each.splits.test.labels).tolist()
        assert found.get("retention") == (pytest.approx(np.mean(right)) if right else None)
        assert found["n"] == 10 * TEST_PER_CLASS


@pytest.mark.parametrize("features", ["live", "fixed"])
def test_what_the_memory_is_worth_is_the_test_less_that_of_the_same_net_at_gate_0(make, features) -> None:
    learner = begun(make("hsokv", features, total_steps=30))
    learner.train(30)
    found = learner.test()
    read = learner.model.net.gated_read
    assert read is not None
    with torch.no_grad():  # a gate that is shut whatever is read
        read.gate[-1].weight.zero_()
        read.gate[-1].bias.fill_(-1e9)
    shut = learner.test()
    assert found["without_memory"] == np.mean(shut["final_test"]["class_il"]) == shut["without_memory"]
    assert found["memory_utility"] == np.mean(found["final_test"]["class_il"]) - found["without_memory"] != 0
    assert shut["memory_utility"] == 0


@pytest.mark.parametrize("variant", ["fine_tune", "kv_only", "experience_replay"])
def test_where_only_one_of_net_and_memory_answers_there_is_nothing_to_compare(make, variant) -> None:
    learner = begun(make(variant))
    learner.train(15)
    assert not {"without_memory", "memory_utility"} & learner.test().keys()


@pytest.mark.parametrize(("variant", "features"), CASES)
def test_flops_of_a_test_are_what_the_counter_of_torch_sees(make, variant, features) -> None:
    learner = begun(make(variant, features))
    learner.train(4)
    before = learner.flops
    with FlopCounterMode(display=False) as counter:
        learner.test()
    num_asked = 10 * TEST_PER_CLASS * (2 if variant == "hsokv" else 1)
    unseen = learner.task.key_flops(num_asked) if features == "fixed" else 0
    assert learner.flops - before - unseen == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_test_images_are_judged_at_the_ends_of_tasks_only_where_the_task_says_so(make) -> None:
    quiet, recorded = begun(make("fine_tune")), begun(make("fine_tune", record_test=True))
    for learner in (quiet, recorded):
        learner.train(15)
    assert quiet.state().values["rows"]["test"] == []
    assert "test" not in quiet.test()
    found = recorded.test()
    assert found["test"]["class_il"]["matrix_TT"][-1] == found["final_test"]["class_il"]
    assert quiet.flops < recorded.flops


def test_before_the_end_of_the_stream_there_is_no_matrix(make) -> None:
    learner = begun(make())
    learner.train(14)
    assert "validation" not in learner.test()
    assert len(learner.test()["final_test"]["class_il"]) == 5
    with pytest.raises(RunError, match="the stream has not ended"):
        figures([])


def test_every_step_belongs_to_its_task_and_every_image_is_new_once() -> None:
    order = Order((7, 4, 4, 4, 9), 23)
    assert [order.task_of(step) for step in range(23)] == [step * 5 // 23 for step in range(23)]
    assert order.task_of(1000) == 4
    ends = [order.ended_by(step) for step in range(30)]
    assert [task for task in ends if task is not None] == [0, 1, 2, 3, 4]
    assert order.ended_by(23) == 4
    shown = [order.show(0, begin, 5, seed=3) for begin in range(0, 35, 5)]
    rows = np.concatenate([each.rows_B for each in shown])
    is_new = np.concatenate([each.is_new_B for each in shown])
    assert all(sorted(rows[begin : begin + 7]) == list(range(7)) for begin in range(0, 35, 7))
    assert is_new.tolist() == [True] * 7 + [False] * 28
    assert (rows[:7] != rows[7:14]).any()
    whole = order.show(0, 0, 35, seed=3).rows_B
    assert (whole == rows).all(), "the order does not depend on the size of the batches"


def test_images_are_learnt_and_what_is_kept_saves_what_fine_tuning_forgets(make) -> None:
    found = {}
    for case in (("fine_tune", "fixed"), ("fine_tune", "live"), ("hsokv", "fixed"), ("kv_only", "fixed"),
                 ("experience_replay", "live")):  # fmt: skip
        learner = begun(make(*case, total_steps=100))
        learner.train(100)
        found[case] = learner.evaluate()["score"], learner.test()["validation"]["class_il"]["backward_transfer"]
        assert learner.evaluate()["task_il"] > 0.6, case
    for kept, plain in (("hsokv", "fixed"), ("kv_only", "fixed"), ("experience_replay", "live")):
        score, transfer = found[kept, plain]
        assert score > found["fine_tune", plain][0] + 0.15
        assert transfer > found["fine_tune", plain][1] + 0.15


@pytest.mark.parametrize("variant", ["hsokv", "kv_only", "experience_replay"])
def test_what_is_kept_stays_within_its_bytes_and_every_task_keeps_its_share(make, variant) -> None:
    learner = begun(make(variant, total_steps=40, memory_bytes=31_000))
    learner.train(40)
    assert 0 < learner.evaluate()["memory_bytes"] <= 31_000
    model = learner.model
    if model.memory is not None:
        assert model.memory.entries.check_integrity() == []
        kept = model.memory.labels()[: len(model.memory)].numpy()
        assert set(kept.tolist()) == set(range(10))
    else:
        assert model.replay is not None
        assert len(model.replay) == 31_000 // (32 * 32 * 3 + 1)


def test_fixed_keys_do_not_move_and_a_table_gives_the_same_in_any_order(make) -> None:
    learner = begun(make("hsokv", "fixed"))
    images = learner.stream[0].splits.train.inputs
    assert learner.fixed is not None
    direct = learner.fixed(images)
    np.testing.assert_allclose(np.linalg.norm(direct, axis=1), 1, rtol=1e-5)
    table = KeyTable(learner.fixed, images)
    rows = np.random.default_rng(0).permutation(len(images))
    np.testing.assert_allclose(np.concatenate([table.at(rows[:9]), table.at(rows)]), direct[np.append(rows[:9], rows)])
    again = FixedKeys.fit(images, key_dim=12, num_filters=6)
    np.testing.assert_allclose(again(images), direct, atol=1e-5)


def test_nan_ends_the_order_and_leaves_the_learner_usable(make) -> None:
    learner = begun(make("fine_tune", "live"))
    learner.train(2)
    state = learner.state()
    broken = {
        name: torch.full_like(tensor, torch.nan) if name.startswith("net.body") else tensor
        for name, tensor in state.tensors.items()
    }
    learner.load(State(broken, state.values))
    with pytest.raises(RunError, match="step 2: the loss is nan"):
        learner.train(1)
    with pytest.raises(RunError, match="scores are not finite"):
        learner.evaluate()
    learner.load(state)
    learner.train(1)
    assert np.isfinite(learner.evaluate()["score"])


def test_another_optimizer_takes_the_weights_and_leaves_the_moments(make) -> None:
    first = begun(make("hsokv"))
    first.train(4)
    state = first.state()
    changed = STRATEGY | {"optimizer": "sgd", "memory_top_k": 2}
    first.configure(changed, seed=5)  # goes on with its own model
    second = begun(make("hsokv"))
    second.configure(changed, seed=5)
    second.load(state)
    for learner in (first, second):
        learner.train(3)
    assert_same(first.state(), second.state())


def test_a_saved_learner_is_weights_and_memory_that_others_read(make, tmp_path: Path) -> None:
    learner = begun(make("hsokv"))
    learner.train(5)
    learner.save(tmp_path / "net")
    weights = load_file(tmp_path / "net" / "net.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in learner.state().tensors.items() if "net." in name)
    memory = learner.model.memory
    assert memory is not None
    assert KeyValueMemory.load(tmp_path / "net" / "memory").digest() == memory.entries.digest()
    assert json.loads((tmp_path / "net" / "learner.json").read_text())["strategy"] == STRATEGY


def test_it_is_a_task_with_a_learner_and_each_variant_has_the_settings_that_move_it(make) -> None:
    assert isinstance(make(), Task)
    assert isinstance(make().learner(), Learner)
    assert "gate_init" in make("hsokv").space.domains
    assert "memory_top_k" not in make("fine_tune").space.domains
    assert "learning_rate" not in make("kv_only").space.domains


def test_what_does_not_fit_is_refused(make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="variant: got 'none'"):
        make("none")
    with pytest.raises(ConfigError, match="total_steps: got 4"):
        make(total_steps=4)
    with pytest.raises(ConfigError, match="key_dim: got 400"):
        make(key_dim=400).learner()
    with pytest.raises(ConfigError, match="batch norm needs 2"):
        begun(make("hsokv", "live"), STRATEGY | {"batch_size": 1})
    with pytest.raises(DataError, match="there is no folder"):
        CifarTask(str(tmp_path / "nowhere")).learner()
    with pytest.raises(RunError, match="call reset"):
        make().learner().state()
    learner = begun(make("hsokv"))
    with pytest.raises(CheckpointError, match="got one of 'split_cifar10_fine_tune_fixed'"):
        learner.load(begun(make("fine_tune")).state())
    whole = learner.state()
    part = State(whole.tensors, {name: value for name, value in whole.values.items() if name not in ("step", "memory")})
    with pytest.raises(CheckpointError, match="memory, step is missing"):
        learner.load(part)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        learner.load(begun(make("hsokv", size="base")).state())


@pytest.mark.real_data
def test_on_cifar_fine_tuning_forgets_and_the_memory_keeps_more(real_data: Path) -> None:
    """Published, with a ResNet-18: plain SGD 19.6 class-IL, 61 task-IL; chance is 10 and 50."""
    size: dict[str, Any] = {"train_per_class": 400, "test_per_class": 50, "total_steps": 250, "num_filters": 16}
    scores = {}
    for variant in ("fine_tune", "hsokv"):
        learner = begun(CifarTask(str(real_data / "cifar10"), variant=variant, **size), DEFAULT_STRATEGY)
        learner.train(250)
        scores[variant] = learner.evaluate()["score"]
    assert 0.15 < scores["fine_tune"] < 0.27
    assert scores["hsokv"] > scores["fine_tune"] + 0.08
