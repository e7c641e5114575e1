"""Tune's search spaces as the swarm's; compared with Tune's own draws. Needs Ray installed, but no cluster."""

from typing import Any

import numpy as np
import pytest
from ray import tune

from hsokv_ray.errors import ConfigError
from hsokv_ray.swarm.space import Choice, Float, Int, LogFloat, LogInt
from hsokv_ray.swarm.tune.space import has_domains, nested, space_of


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        (tune.uniform(0.5, 2.0), Float(0.5, 2.0)),
        (tune.loguniform(1e-5, 1e-2), LogFloat(1e-5, 1e-2)),
        (tune.randint(1, 5), Int(1, 4)),
        (tune.lograndint(1, 65), LogInt(1, 64)),
        (tune.randint(3, 4), Choice([3])),
        (tune.qrandint(1, 5, 1), Int(1, 4)),
        (tune.choice(["sgd", "adamw", 3, True]), Choice(["sgd", "adamw", 3, True])),
    ],
)
def test_a_domain_of_tune_becomes_its_counterpart(domain: Any, expected: Any) -> None:
    assert space_of({"x": domain}).domains["x"] == expected


@pytest.mark.parametrize(
    "domain",
    [
        tune.uniform(0.5, 2.0),
        tune.loguniform(1e-5, 1e-2),
        tune.randint(1, 5),
        tune.lograndint(1, 65),
        tune.choice([8, 16, 32]),
        tune.quniform(0.0, 1.0, 0.1),
        tune.qrandint(3, 20, 4),
        tune.qrandint(0, 5, 1),
    ],
)
def test_both_draw_the_same_values_in_the_long_run(domain: Any) -> None:
    space, rng = space_of({"x": domain}), np.random.default_rng(0)
    ours: list[Any] = [space.sample(rng)["x"] for _ in range(2000)]
    theirs = domain.sample(size=2000, random_state=1)
    assert all(domain.is_valid(value) for value in ours)
    if len(set(theirs)) < 100:
        assert set(ours) == set(theirs)
    if not isinstance(space.domains["x"], LogInt):  # Tune rounds those down, the swarm to the nearest
        assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.1)


@pytest.mark.parametrize(
    ("domain", "what"),
    [
        (tune.randn(0, 1), "drawn by Normal"),
        (tune.qrandn(0, 1, 0.5), "drawn by Normal"),
        (tune.qloguniform(1e-3, 1, 1e-3), "drawn by LogUniform"),
        (tune.qlograndint(2, 64, 2), "drawn by LogUniform"),
        (tune.sample_from(lambda spec: 1), "is a Function"),
        (tune.grid_search([1, 2]), "is a grid_search"),
        (tune.choice([1, [2]]), r"has the option \[2\]"),
        (tune.choice([1, None]), "has the option None"),
        (tune.quniform(0, 1, 1e-5), "has 100001 values"),
        (tune.qrandint(5, 7, 4), "has 0 values"),
    ],
)
def test_what_the_swarm_cannot_take_is_refused_by_name_in_one_line(domain: Any, what: str) -> None:
    with pytest.raises(ConfigError, match=f"param_space: head/x .*{what}|param_space: head/x {what}") as error:
        space_of({"head": {"x": domain}})
    assert "\n" not in str(error.value)


def test_neighbours_of_a_quantised_value_are_one_step_apart() -> None:
    domain = space_of({"x": tune.quniform(0.0, 1.0, 0.25)}).domains["x"]
    near = {domain.perturb(0.5, np.random.default_rng(seed), (0.8, 1.2)) for seed in range(20)}
    assert near == {0.25, 0.75}


def test_nested_names_go_there_and_back() -> None:
    param_space = {"seed": 7, "head": {"layers": tune.randint(1, 5), "deep": {"lr": tune.uniform(0, 1)}}}
    space = space_of(param_space)
    assert list(space.domains) == ["head/layers", "head/deep/lr"]
    assert nested({"head/layers": 2, "head/deep/lr": 0.5}) == {"head": {"layers": 2, "deep": {"lr": 0.5}}}
    assert has_domains(param_space)
    assert not has_domains({"seed": 7, "head": {"layers": 2}})


def test_a_space_without_a_domain_is_refused() -> None:
    with pytest.raises(ConfigError, match="no domain among"):
        space_of({"lr": 0.1})
