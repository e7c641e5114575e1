"""The learner of rare words: it learns, evaluation changes nothing, states continue bit for bit, FLOPs are torch's."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from learner_states import same
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hsokv_ray.data.tasks import RareWordConfig, RareWords
from hsokv_ray.errors import CheckpointError, ConfigError, DataError, RunError
from hsokv_ray.models import TransformerWithKV
from hsokv_ray.swarm.learner import Learner, State, Task
from hsokv_ray.swarm.learners.lessons import retrieval_loss
from hsokv_ray.swarm.learners.rare_words import RareWordLearner, RareWordTask
from hsokv_ray.swarm.learners.recipe import DEFAULT_STRATEGY

SMALL = DEFAULT_STRATEGY | {"batch_size": 8}


def begun(task: RareWordTask | None = None, *, seed: int = 7, **changes) -> RareWordLearner:
    learner = (task or RareWordTask(total_steps=20)).learner()
    learner.configure(SMALL | changes, seed=seed)
    learner.reset()
    return learner


def test_task_and_learner_are_what_the_swarm_takes() -> None:
    task = RareWordTask()
    assert isinstance(task, Task)
    assert isinstance(task.learner(), Learner)
    task.space.check(DEFAULT_STRATEGY)


@pytest.fixture(scope="module")
def trained() -> RareWordLearner:
    """The default training, shorter; about a minute on one slow core."""
    learner = RareWordTask(total_steps=400).learner()
    learner.configure(DEFAULT_STRATEGY, seed=0)
    learner.reset()
    learner.train(400)
    return learner


def test_it_learns_words_that_it_never_saw_by_30_points_and_only_through_the_memory(trained: RareWordLearner) -> None:
    figures = trained.test()
    assert figures["n"] >= 200
    assert figures["memory_utility"] >= 0.3
    assert figures["accuracy"] == pytest.approx(figures["without_memory"] + figures["memory_utility"])
    # 200 words at a chance of 1 in 20: above 0.125 once in 25,000 runs
    assert all(figures[name] < 0.125 for name in ("gate_0", "without_memory", "shuffled_values", "random_keys"))
    assert figures["gate_1"] > 0.3
    assert 0.125 < figures["retention"] < figures["accuracy"], "distractors cost something, and not everything"
    assert 0 <= figures["gate_mean"] <= 1
    assert figures["hit_rate"] == pytest.approx(figures["gate_1"], abs=0.05), "what is found is what is said"


def test_evaluation_and_test_change_neither_weights_nor_memory(trained: RareWordLearner) -> None:
    before, digest = trained.state(), trained.model.memory.digest()
    assert trained.evaluate() == trained.evaluate()
    trained.test()
    assert trained.model.memory.digest() == digest
    assert same(trained.state(), before)


def test_a_saved_model_answers_as_before(trained: RareWordLearner, tmp_path: Path) -> None:
    trained.save(tmp_path / "best")
    loaded = TransformerWithKV.from_pretrained(tmp_path / "best")
    ids = torch.randint(5, 100, (3, 9), generator=torch.Generator().manual_seed(0))
    trained.model.eval()
    assert torch.equal(loaded(ids).logits, trained.model(ids).logits)
    assert loaded.memory.config.top_k == DEFAULT_STRATEGY["memory_top_k"]
    assert (tmp_path / "best" / "word_tokenizer.json").is_file()


def test_without_a_memory_the_same_encoder_knows_nothing_of_an_episode() -> None:
    learner = begun(RareWordTask(total_steps=20, use_kv=False))
    learner.train(5)
    figures = learner.test()
    assert figures["accuracy"] < 0.125
    assert "hit_rate" not in figures
    assert "memory_top_k" not in RareWordTask(use_kv=False).space.domains


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
@pytest.mark.parametrize("use_kv", [True, False])
def test_ten_steps_are_four_a_state_and_six_bit_for_bit(optimizer: str, use_kv: bool) -> None:
    task = RareWordTask(total_steps=20, use_kv=use_kv, dropout=0.2)
    whole = begun(task, optimizer=optimizer)
    whole.train(10)
    first = begun(task, optimizer=optimizer)
    first.train(4)
    state = first.state()
    kept = State({name: tensor.clone() for name, tensor in state.tensors.items()}, dict(state.values))
    second = task.learner()
    second.configure(SMALL | {"optimizer": optimizer}, seed=7)
    second.load(State(state.tensors, json.loads(json.dumps(state.values))))
    second.train(6)
    assert same(whole.state(), second.state())
    assert same(state, kept), "training on changes nothing that was handed out"


def test_a_held_model_and_a_loaded_one_follow_a_new_strategy_alike() -> None:
    for change in ({"learning_rate": 3e-3, "memory_top_k": 2}, {"optimizer": "sgd"}):
        held = begun()
        held.train(2)
        loaded = RareWordTask(total_steps=20).learner()
        state = held.state()
        for learner in (held, loaded):
            learner.configure(SMALL | change, seed=11)
        loaded.load(state)
        for learner in (held, loaded):
            learner.train(2)
        assert same(held.state(), loaded.state())


def test_the_seed_decides_everything_and_torchs_own_generator_nothing() -> None:
    before = torch.random.get_rng_state()
    first = begun(seed=1)
    first.train(2)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    second, other = begun(seed=1), begun(seed=2)
    second.train(2)
    other.train(2)
    assert same(first.state(), second.state())
    assert not same(first.state(), other.state())


@pytest.mark.parametrize("policy", ["always", "surprise", "novelty"])
@pytest.mark.parametrize("batch_size", [8, 32])
def test_flops_of_training_and_evaluation_are_what_the_counter_of_torch_sees(policy: str, batch_size: int) -> None:
    learner = begun(write_policy=policy, batch_size=batch_size)
    for work in (lambda: learner.train(2), learner.evaluate, learner.test):
        before = learner.flops
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            work()
        assert learner.flops - before == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("use_kv", [True, False])
def test_the_cost_of_a_step_is_what_steps_are_charged(use_kv: bool) -> None:
    task = RareWordTask(total_steps=20, use_kv=use_kv)
    learner = begun(task)
    before = learner.flops
    learner.train(10)
    assert task.cost(SMALL) == pytest.approx((learner.flops - before) / 10, rel=0.1)


def test_the_loss_on_keys_is_infonce_where_labels_differ_and_adds_shares_where_they_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, queries = (F.normalize(torch.randn(n, 6, generator=generator), dim=-1) for n in (4, 3))
    labels = torch.tensor([2, 0, 3])
    expected = F.cross_entropy(queries @ keys.T / 0.1, labels)
    torch.testing.assert_close(retrieval_loss(queries, keys, labels, torch.arange(4), temperature=0.1), expected)
    shares = (queries @ keys.T / 0.1).softmax(-1)
    merged = torch.tensor([0, 0, 1, 1])
    by_hand = -torch.stack([shares[0, 2:].sum(), shares[1, :2].sum(), shares[2, 2:].sum()]).log().mean()
    torch.testing.assert_close(retrieval_loss(queries, keys, torch.tensor([1, 0, 1]), merged, temperature=0.1), by_hand)


def test_a_loss_that_is_no_number_ends_the_training_in_one_line() -> None:
    for use_kv in (True, False):
        learner = begun(RareWordTask(total_steps=20, use_kv=use_kv))
        with torch.no_grad():
            learner.model.encoder.norm.weight[0] = torch.nan
        with pytest.raises(RunError, match="lower the learning rate") as error:
            learner.train(1)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("use_kv", [True, False])
def test_a_learning_rate_that_blows_up_ends_the_training_too(use_kv: bool) -> None:
    learner = begun(RareWordTask(total_steps=20, use_kv=use_kv), learning_rate=1e30, optimizer="sgd")
    with pytest.raises(RunError, match="lower the learning rate"):
        learner.train(10)


def test_a_state_that_does_not_fit_is_refused() -> None:
    learner = begun()
    state = learner.state()
    with pytest.raises(CheckpointError, match="step, is missing|step is missing|missing"):
        learner.load(State(state.tensors, {"optimizer": "adamw"}))
    other = begun(RareWordTask(total_steps=20, num_candidates=10))
    with pytest.raises(CheckpointError, match="does not fit"):
        other.load(state)


def test_asking_too_early_says_what_to_do() -> None:
    learner = RareWordTask().learner()
    with pytest.raises(RunError, match="configure"):
        learner.reset()
    learner.configure(SMALL, seed=0)
    with pytest.raises(RunError, match="reset"):
        learner.train(1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_test_words": 50}, "num_test_words: got 50; at least 200"),
        ({"distractor_factor": 10}, "distractor_factor: got 10"),
        ({"total_steps": 0}, "total_steps 0"),
        ({"retrieval_weight": -1.0}, "retrieval_weight"),
    ],
)
def test_a_task_that_cannot_be_is_one_clear_line(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RareWordTask(**wrong)


def real_folder(folder: Path, num_words: int) -> Path:
    """A folder of real words' form, made from generated episodes."""
    episodes = RareWords(RareWordConfig(), seed=0).episodes("train", num_episodes=num_words // 20, seed=3)
    rows = []
    for episode in episodes:
        for context, label in zip(episode.contexts, episode.labels.tolist(), strict=True):
            word = episode.words[label]
            sense = {"definition": episode.definitions[label], "examples": [context.replace("___", word)]}
            rows.append({"word": word, "senses": [sense]})
    (folder / "rare_words.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_a_folder_of_words_is_learnt_from_in_the_same_way(tmp_path: Path) -> None:
    learner = begun(RareWordTask(data=str(real_folder(tmp_path, 1100)), total_steps=20), batch_size=32)
    before = learner.flops
    learner.train(2)
    assert learner.flops > before
    assert learner.evaluate()["n"] >= 200
    assert learner.test()["n"] >= 200


def test_missing_damaged_or_too_little_data_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rare_words.jsonl") as missing:
        RareWordTask(data=str(tmp_path / "nothing")).learner()
    small = tmp_path / "small"
    small.mkdir()
    with pytest.raises(DataError, match="ask for fewer words") as few:
        RareWordTask(data=str(real_folder(small, 200))).learner()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "rare_words.jsonl").write_text('{"word": "a", "senses": [{"definition": "b"}]}\n')
    with pytest.raises(DataError, match="rare_words.jsonl:1") as damaged:
        RareWordTask(data=str(broken)).learner()
    assert not any("\n" in str(error.value) for error in (missing, few, damaged))


@pytest.mark.real_data
def test_real_words_are_read_trained_on_and_tested(real_data: Path) -> None:
    learner = begun(RareWordTask(data=str(real_data), total_steps=20))
    learner.train(2)
    figures = learner.test()
    assert figures["n"] >= 200
    assert figures["accuracy"] <= 1
