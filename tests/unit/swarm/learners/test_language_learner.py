"""The language model beside its memory, on this Python's own sources and on a small file."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hsokv_ray.errors import CheckpointError, ConfigError, DataError, RunError
from hsokv_ray.models import TransformerWithKV
from hsokv_ray.swarm.learner import Learner, State, Task
from hsokv_ray.swarm.learners.language import LanguageTask
from hsokv_ray.swarm.learners.language_learner import LanguageLearner
from hsokv_ray.swarm.learners.recipe import DEFAULT_STRATEGY
from hsokv_ray.swarm.space import Strategy

STRATEGY: Strategy = DEFAULT_STRATEGY | {"batch_size": 4, "learning_rate": 3e-3}


@pytest.fixture
def make(corpus: Path):
    def build(**changes) -> LanguageTask:
        small: dict[str, Any] = {
            "seq_len": 10,
            "vocab_size": 320,
            "total_steps": 20,
            "capacity": 40,
            "num_evaluated": 20,
        }
        settings: dict[str, Any] = {"source": str(corpus), "num_tested": 30, "knn_tokens": 600}
        return LanguageTask(**(settings | small | changes))

    return build


def begun(task: LanguageTask, strategy: Strategy = STRATEGY, seed: int = 0) -> LanguageLearner:
    learner = task.learner()
    learner.configure(strategy, seed=seed)
    learner.reset()
    return learner


def assert_same(first: State, second: State) -> None:
    assert first.values == second.values
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name


@pytest.mark.parametrize("policy", ["always", "surprise", "novelty"])
@pytest.mark.parametrize("use_kv", [True, False])
def test_training_in_two_halves_by_two_learners_is_training_at_once(make, use_kv, policy) -> None:
    task, strategy = make(use_kv=use_kv), STRATEGY | {"write_policy": policy}
    whole = begun(task, strategy)
    whole.train(10)
    half = begun(task, strategy)
    half.train(4)
    state = half.state()
    half.train(2)  # what was returned does not change
    other = task.learner()
    other.configure(strategy, seed=99)
    other.load(State(state.tensors, json.loads(json.dumps(state.values))))
    other.train(6)
    assert_same(whole.state(), other.state())
    assert whole.evaluate() == other.evaluate()


def test_evaluation_never_writes_and_the_memory_holds_training_text_only(make) -> None:
    learner = begun(make())
    learner.train(8)
    memory = learner.model.required_memory()
    digest, before = memory.digest(), learner.state()
    assert learner.evaluate() == learner.evaluate()
    learner.test()
    assert memory.digest() == digest
    assert_same(before, learner.state())
    stored = {tuple(row[:length].tolist()) for row in learner.stored for length in range(1, 11)}
    assert 0 < len(memory) <= 40
    assert all(tuple(entry.input["input_ids"]) in stored for entry in memory.entries if entry)
    learnt = {tuple(row.tolist()) for row in learner.learnt}
    assert not learnt & {tuple(row.tolist()) for row in learner.stored}


def test_the_score_is_minus_the_mean_loss_that_the_model_itself_gives(make) -> None:
    learner = begun(make())
    learner.train(5)
    found = learner.evaluate()
    windows = learner.held_out["validation"]
    with torch.no_grad():
        output = learner.model.eval()(windows, torch.ones_like(windows), labels=windows)
    assert found["score"] == pytest.approx(-float(output.loss), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(float(output.loss)), rel=1e-5)
    right = learner.model.required_memory()
    nearest = output.retrieval.indices[:, :-1, 0]
    hits = sum(
        int(hit and right.entries[slot].metadata["label"] == token)
        for slot, hit, token in zip(
            nearest.flatten().tolist(),
            output.retrieval.hits[:, :-1, 0].flatten().tolist(),
            windows[:, 1:].flatten().tolist(),
            strict=True,
        )
    )
    assert found["hit_rate"] == pytest.approx(hits / nearest.numel())
    assert found["gate_mean"] == pytest.approx(float(output.gate[:, :-1].mean()), rel=1e-5)


def test_it_learns_and_perplexity_is_that_of_the_loss(make) -> None:
    learner = begun(make(total_steps=60))
    before = learner.evaluate()["score"]
    assert before == pytest.approx(-math.log(learner.tokenizer.vocab_size), rel=0.2), "nothing is known at first"
    learner.train(60)
    assert learner.evaluate()["score"] > before + 1.0
    found = learner.test()
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["perplexity"] != found["perplexity_without_memory"]
    assert found["num_tokens"] == 10 * len(learner.held_out["test"])


def test_the_knn_lm_stands_beside_the_model_it_is_made_of(make) -> None:
    learner = begun(make(use_kv=False, total_steps=30))
    learner.train(30)
    found = learner.test()
    knn = found["knn_lm"]
    assert knn["perplexity_of_model"] == pytest.approx(found["perplexity"], rel=1e-5)
    assert found["perplexity_without_memory"] == found["perplexity"]
    assert knn["num_entries"] == 600
    assert knn["weight"] > 0
    assert knn["perplexity"] < knn["perplexity_of_model"], "the corpus repeats itself"


@pytest.mark.parametrize("policy", ["always", "surprise", "novelty"])
@pytest.mark.parametrize("use_kv", [True, False])
def test_flops_are_what_the_counter_of_torch_sees(make, use_kv, policy) -> None:
    task = make(use_kv=use_kv, total_steps=500)
    learner = begun(task, STRATEGY | {"write_policy": policy})
    learner.train(5)
    # the counter has no formula for the fused attention of the CPU; this one is made of products it knows
    for act in (lambda: learner.train(1), learner.evaluate):
        before = learner.flops
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            act()
        assert learner.flops - before == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("use_kv", [True, False])
def test_a_step_with_a_full_memory_costs_its_cost(make, use_kv) -> None:
    task = make(use_kv=use_kv)
    learner = begun(task, STRATEGY | {"write_policy": "always"})
    learner.train(1)
    before = learner.flops
    learner.train(1)
    assert learner.flops - before <= task.cost(STRATEGY)
    learner.train(8)
    before = learner.flops
    learner.train(1)
    # the tokenizer may have fewer entries than asked for
    exact = task.step_flops(learner.model.config, learner.recipe, task.capacity)
    assert learner.flops - before == exact
    assert exact <= task.cost(STRATEGY)


def test_another_strategy_goes_on_in_the_same_way_here_and_elsewhere(make) -> None:
    first = begun(make())
    first.train(4)
    state = first.state()
    changed = STRATEGY | {"optimizer": "rmsprop", "memory_top_k": 2, "batch_size": 6}
    first.configure(changed, seed=5)
    second = begun(make())
    second.configure(changed, seed=5)
    second.load(state)
    for learner in (first, second):
        learner.train(3)
        assert learner.model.required_memory().config.top_k == 2
    assert_same(first.state(), second.state())


def test_a_saved_model_is_loaded_with_its_memory_and_says_the_same(make, tmp_path: Path) -> None:
    learner = begun(make())
    learner.train(6)
    learner.save(tmp_path / "lm")
    model = TransformerWithKV.from_pretrained(tmp_path / "lm")
    assert model.memory.digest() == learner.model.required_memory().digest()
    windows = learner.held_out["validation"]
    with torch.no_grad():
        expected = learner.model.eval()(windows, torch.ones_like(windows)).logits
        assert torch.equal(model(windows, torch.ones_like(windows)).logits, expected)
    assert json.loads((tmp_path / "lm" / "learner.json").read_text())["step"] == 6


def test_nan_ends_the_order_and_leaves_the_learner_usable(make) -> None:
    learner = begun(make())
    learner.train(2)
    state = learner.state()
    broken = dict(state.tensors)
    broken["model.encoder.norm.weight"] = torch.full_like(broken["model.encoder.norm.weight"], torch.nan)
    learner.load(State(broken, state.values))
    with pytest.raises(RunError, match="step 2: the loss is nan"):
        learner.train(1)
    with pytest.raises(RunError, match="validation loss is nan"):
        learner.evaluate()
    learner.load(state)
    learner.train(1)
    assert np.isfinite(learner.evaluate()["score"])


def test_it_learns_from_the_standard_library_as_a_task_of_the_swarm() -> None:
    task = LanguageTask(max_bytes=60_000, vocab_size=320, seq_len=16, total_steps=6, capacity=64, num_evaluated=8)
    assert isinstance(task, Task)
    learner = begun(task)
    assert isinstance(learner, Learner)
    learner.train(6)
    assert learner.evaluate()["score"] > -math.log(320) * 1.2
    assert "memory_top_k" not in LanguageTask(use_kv=False).space.domains


def test_what_does_not_fit_is_refused(make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="capacity: got 5"):
        make(capacity=5)
    with pytest.raises(ConfigError, match="stored_share: got 1"):
        make(stored_share=1.0)
    with pytest.raises(DataError, match="nowhere"):
        make(source=str(tmp_path / "nowhere.txt")).learner()
    with pytest.raises(RunError, match="call reset"):
        make().learner().state()
    learner = begun(make())
    with pytest.raises(CheckpointError, match="got one of 'language_model'"):
        learner.load(begun(make(use_kv=False)).state())
    whole = learner.state()
    part = State(whole.tensors, {name: value for name, value in whole.values.items() if name not in ("step", "memory")})
    with pytest.raises(CheckpointError, match="memory, step is missing"):
        learner.load(part)
