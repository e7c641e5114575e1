"""Search spaces: what is drawn, perturbed or mapped stays inside, and JSON brings back the same space."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.errors import ConfigError
from hsokv_ray.swarm.space import Choice, Domain, Float, Int, LogFloat, LogInt, Space
from hsokv_ray.swarm.strategy import KV_SPACE

DOMAINS: list[Domain] = [
    Float(-3, 2),
    LogFloat(1e-5, 1e-1),
    Int(1, 5),
    LogInt(16, 512),
    Choice(("a", "b", "c")),
    Int(-2, 0),
]


@pytest.mark.parametrize("domain", DOMAINS, ids=str)
@given(seed=st.integers(0, 2**32 - 1), unit=st.floats(-1, 2))
def test_whatever_a_domain_returns_is_inside_it(domain: Domain, seed: int, unit: float) -> None:
    rng = np.random.default_rng(seed)
    value = domain.sample(rng)
    assert domain.allows(value)
    assert domain.allows(domain.perturb(value, rng, (0.8, 1.2)))
    assert domain.allows(domain.from_unit(unit))
    assert 0 <= domain.to_unit(value) <= 1
    assert domain.from_unit(domain.to_unit(value)) == pytest.approx(value)


def test_log_domains_are_even_in_the_logarithm() -> None:
    rng = np.random.default_rng(0)
    values = np.array([LogFloat(1e-4, 1e0).sample(rng) for _ in range(20_000)])
    shares = np.histogram(np.log10(values), bins=4, range=(-4, 0))[0] / len(values)
    np.testing.assert_allclose(shares, 0.25, atol=4 * math.sqrt(0.25 * 0.75 / len(values)))


@pytest.mark.parametrize("domain", [Int(1, 5), Choice((1, 2, 3, 4, 5))])
def test_each_whole_number_is_as_likely(domain: Domain) -> None:
    rng = np.random.default_rng(0)
    drawn = [domain.sample(rng) for _ in range(20_000)]
    shares = np.bincount(drawn, minlength=6)[1:] / len(drawn)
    np.testing.assert_allclose(shares, 0.2, atol=4 * math.sqrt(0.2 * 0.8 / len(drawn)))


def test_a_perturbed_number_is_multiplied_and_clipped_and_a_choice_moves_to_a_neighbour() -> None:
    rng = np.random.default_rng(0)
    assert {LogFloat(1e-4, 1).perturb(0.01, rng, (0.8, 1.2)) for _ in range(50)} == {0.01 * 0.8, 0.01 * 1.2}
    assert {Float(0, 1).perturb(0.9, rng, (0.8, 1.2)) for _ in range(50)} == {0.9 * 0.8, 1.0}
    assert {Int(1, 9).perturb(8, rng, (0.8, 1.2)) for _ in range(50)} == {6, 9}
    assert {Choice("abc").perturb("a", rng, (0.8, 1.2)) for _ in range(50)} == {"a", "b"}


def test_a_space_survives_json() -> None:
    space = Space({str(i): domain for i, domain in enumerate(DOMAINS)})
    back = Space.from_json(json.loads(json.dumps(space.to_json())))
    assert list(back.domains) == list(space.domains)
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    assert [space.sample(first) for _ in range(20)] == [back.sample(second) for _ in range(20)]


def test_a_strategy_with_something_missing_unknown_or_impossible_is_refused() -> None:
    good = KV_SPACE.sample(np.random.default_rng(0))
    KV_SPACE.check(good)
    for bad in ({**good, "learning_rate": 5.0}, {**good, "new": 1}, {k: good[k] for k in list(good)[1:]}):
        with pytest.raises(ConfigError, match="strategy"):
            KV_SPACE.check(bad)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Float(1, 1),
        lambda: LogFloat(0, 1),
        lambda: Int(0.5, 2),
        lambda: Choice(()),
        lambda: Choice((1, 1)),
        lambda: Space({}),
        lambda: Space.from_json({"x": {"kind": "Gauss", "low": 0, "high": 1}}),
        lambda: Space.from_json({"x": {"kind": "Float", "least": 0}}),
        lambda: Float(0, math.inf),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(make) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert "\n" not in str(caught.value)
