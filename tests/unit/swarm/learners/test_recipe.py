"""What a strategy becomes: the schedule by its formula, optimisers by torch's own, and a change on the way."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.errors import ConfigError
from hsokv_ray.swarm.learners.recipe import DEFAULT_STRATEGY, PLAIN_SPACE, Recipe, space_of
from hsokv_ray.swarm.strategy import KV_SPACE


def weights() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3)), torch.nn.Parameter(torch.ones(3))]


def walk(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], num_steps: int = 3) -> None:
    for step in range(num_steps):
        for i, parameter in enumerate(parameters):
            parameter.grad = torch.sin(parameter.detach() * (step + 2) + i)
        optimizer.step()


def strategy(**changes) -> dict:
    return DEFAULT_STRATEGY | changes


def test_warm_up_takes_a_twentieth_of_all_steps_and_ends_at_the_peak() -> None:
    recipe = Recipe(strategy(schedule="constant", learning_rate=0.01), total_steps=200)
    assert [recipe.rate(step) for step in (0, 4, 9, 10, 199)] == pytest.approx([0.001, 0.005, 0.01, 0.01, 0.01])


@given(total=st.integers(1, 500), share=st.floats(0, 1))
def test_a_line_and_half_a_cosine_fall_from_the_peak_to_nothing_at_the_end(total: int, share: float) -> None:
    warmup = math.ceil(total / 20)
    step = warmup + round(share * (total - warmup))
    done = 1.0 if total == warmup and step == total and warmup > 0 else (step - warmup) / max(total - warmup, 1)
    done = done if total > warmup else 0.0
    line, cosine = (Recipe(strategy(schedule=kind, learning_rate=1.0), total) for kind in ("linear", "cosine"))
    assert line.rate(step) == pytest.approx(1 - done)
    assert cosine.rate(step) == pytest.approx(math.cos(math.pi * done / 2) ** 2, abs=1e-12)
    assert all(line.rate(s) > 0 for s in range(total)), "no step is trained at a rate of 0"


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("adamw", lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)),
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1)),
        ("rmsprop", lambda p: torch.optim.RMSprop(p, lr=0.01, weight_decay=0.1)),
    ],
)
def test_each_optimizer_steps_as_torchs_own(kind: str, make) -> None:
    recipe = Recipe(strategy(optimizer=kind, learning_rate=0.01, weight_decay=0.1, schedule="constant"), 20)
    ours, theirs = weights(), weights()
    walk(recipe.optimizer(ours), ours)
    walk(make(theirs), theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_frozen_parameter_is_left_out() -> None:
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = Recipe(DEFAULT_STRATEGY, 10).optimizer([*weights(), frozen])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_taking_over_keeps_the_moments_of_the_same_kind_and_sets_rate_and_decay() -> None:
    recipe, parameters = Recipe(strategy(), 100), weights()
    optimizer = recipe.optimizer(parameters)
    walk(optimizer, parameters)
    moment = optimizer.state[parameters[0]]["exp_avg"].clone()
    after = recipe.take_over(optimizer, strategy(learning_rate=0.005, weight_decay=0.07, batch_size=8))
    assert after is optimizer
    assert torch.equal(after.state[parameters[0]]["exp_avg"], moment)
    assert {group["weight_decay"] for group in after.param_groups} == {0.07}
    assert recipe.batch_size == 8
    recipe.set_rate(after, 4)
    assert after.param_groups[0]["lr"] == pytest.approx(0.005)


def test_taking_over_another_kind_begins_anew_with_the_same_parameters() -> None:
    recipe, parameters = Recipe(strategy(), 100), weights()
    optimizer = recipe.optimizer(parameters)
    walk(optimizer, parameters)
    after = recipe.take_over(optimizer, strategy(optimizer="sgd"))
    assert isinstance(after, torch.optim.SGD)
    assert not after.state
    assert [id(p) for p in after.param_groups[0]["params"]] == [id(p) for p in parameters]


@given(seed=st.integers(0, 10_000), use_kv=st.booleans())
def test_every_strategy_of_the_spaces_is_a_recipe(seed: int, use_kv: bool) -> None:
    drawn = space_of(use_kv=use_kv).sample(np.random.default_rng(seed))
    recipe = Recipe(drawn, 50)
    assert recipe.rate(10) > 0
    assert recipe.policy.name == drawn.get("write_policy", "always")
    assert recipe.top_k == drawn.get("memory_top_k", DEFAULT_STRATEGY["memory_top_k"])


def test_the_default_strategy_is_one_of_the_whole_space() -> None:
    KV_SPACE.check(DEFAULT_STRATEGY)
    PLAIN_SPACE.check({name: DEFAULT_STRATEGY[name] for name in PLAIN_SPACE.domains})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": "lion"}, "optimizer is 'lion'; one of adamw"),
        ({"schedule": "wsd"}, "schedule is 'wsd'"),
        ({"write_policy": "often"}, "often"),
        ({"learning_rate": math.nan}, "learning_rate is nan; a finite"),
        ({"batch_size": 0}, "batch_size is 0; at least 1"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"momentum": 0.5}, r"\['momentum'\]"),
    ],
)
def test_a_setting_that_cannot_be_is_one_clear_line(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        Recipe(strategy(**wrong), 10)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="total_steps: got 0"):
        Recipe(DEFAULT_STRATEGY, 0)
