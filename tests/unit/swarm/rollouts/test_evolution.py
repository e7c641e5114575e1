"""Evolution strategies against their definition, and Adam against torch's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hsokv_ray.swarm.rollouts.adam import Adam
from hsokv_ray.swarm.rollouts.algorithms import EvolutionStrategy
from hsokv_ray.swarm.rollouts.config import RolloutConfig
from hsokv_ray.swarm.rollouts.evolution import centred_ranks, gradient, noise_of, perturbed
from hsokv_ray.swarm.rollouts.messages import Result


def test_the_gradient_is_the_mean_over_all_policies_of_utility_times_noise_over_sigma():
    rng = np.random.default_rng(0)
    noise_NP, utilities_N2, sigma = rng.standard_normal((7, 3)), rng.standard_normal((7, 2)), 0.2
    total = np.zeros(3)
    for pair in range(7):
        for sign, utility in zip((1, -1), utilities_N2[pair], strict=True):
            total += utility * sign * noise_NP[pair] / sigma
    np.testing.assert_allclose(gradient(noise_NP, utilities_N2, sigma), total / 14, rtol=1e-12)


def test_on_a_linear_function_the_estimate_approaches_its_slope():
    slope, noise_NP = np.array([1.0, -2.0, 0.5]), noise_of(0, 0, 20_000, 3)
    utilities = (perturbed(np.ones(3), noise_NP, 0.1) @ slope).reshape(-1, 2)
    np.testing.assert_allclose(gradient(noise_NP, utilities, 0.1), slope, atol=0.08)  # 4 standard errors


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=30))
def test_centred_ranks_count_what_is_smaller_and_equal_values_share_a_rank(values: list[int]):
    ranks = centred_ranks(np.array(values, float))
    for value, rank in zip(values, ranks, strict=True):
        smaller, equal = sum(v < value for v in values), sum(v == value for v in values)
        assert rank == pytest.approx((smaller + (equal - 1) / 2) / (len(values) - 1) - 0.5)
    np.testing.assert_allclose(ranks, (stats.rankdata(values) - 1) / (len(values) - 1) - 0.5)
    assert ranks.sum() == pytest.approx(0, abs=1e-9)


def test_where_all_policies_are_equally_good_no_direction_is_preferred():
    returns_N2 = np.full((6, 2), 500.0)
    assert gradient(noise_of(0, 0, 6, 4), centred_ranks(returns_N2), 0.3).tolist() == [0, 0, 0, 0]


def test_evolution_reaches_the_optimum_of_a_quadratic():
    config = RolloutConfig(sigma=0.05, learning_rate=0.02, pairs_per_order=8, orders_per_update=2)
    optimum, algorithm = np.array([1.0, -0.5, 0.25, 2.0]), EvolutionStrategy(config, seed=4)
    begin = algorithm.parameters_P
    for number in range(800):
        policies = perturbed(algorithm.parameters_P, noise_of(4, number, 8, 4), config.sigma)
        returns = -((policies - optimum) ** 2).sum(-1)
        assert algorithm.tell(Result(number, tuple(returns), steps=1, episodes=16, seconds=0.0)) == (number % 2 == 1)
    assert np.abs(begin - optimum).max() > 1
    np.testing.assert_allclose(algorithm.parameters_P, optimum, atol=0.1)


def test_adam_takes_the_steps_of_torch():
    rng = np.random.default_rng(2)
    theirs = torch.nn.Parameter(torch.tensor(rng.standard_normal(5)))
    optimizer, ours = torch.optim.Adam([theirs], lr=0.03, maximize=True), theirs.detach().numpy().copy()
    adam = Adam(5, 0.03)
    for _ in range(20):
        slope = rng.standard_normal(5)
        theirs.grad = torch.tensor(slope)
        optimizer.step()
        ours = adam.ascend(ours, slope)
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-9)
