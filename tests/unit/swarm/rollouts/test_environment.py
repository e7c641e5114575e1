"""Batches of CartPole against `gymnasium.make`, episode by episode and step by step."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.errors import RunError
from hsokv_ray.swarm.rollouts.environment import CartPoles, play, sigmoid
from hsokv_ray.swarm.rollouts.policy import LinearPolicy, MLPPolicy, Policy
from hsokv_ray.swarm.rollouts.seeds import action_draws, episode_seeds

BALANCES = np.array([0.1, 0.5, 1.0, 1.0])
"""Weights that hold the pole for 500 steps; found by hand, checked below."""


def single(policy: Policy, parameters_P: np.ndarray, seed: int, *, sample: bool = False) -> list[tuple[Any, ...]]:
    """Play one episode in one environment; return (observation, action, reward, terminated, truncated) of each step."""
    env = gymnasium.make("CartPole-v1")
    observation, _ = env.reset(seed=seed)
    draws, steps, over = action_draws(seed, 500), [], False
    while not over:
        logit = policy.logits(parameters_P[None], observation[None])
        chance = sigmoid(logit)[0]
        action = int(draws[len(steps)] < chance) if sample else int(logit[0] > 0)
        following, reward, terminated, truncated, _ = env.step(action)
        steps.append((observation, action, reward, terminated, truncated))
        observation, over = following, terminated or truncated
    return steps


def some_policies(policy: Policy, num: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    drawn = rng.standard_normal((num, policy.num_parameters))
    if isinstance(policy, LinearPolicy):
        drawn[::3] = BALANCES + 0.05 * rng.standard_normal(BALANCES.shape)
    return drawn


@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("policy", [LinearPolicy(), MLPPolicy(5)])
def test_every_episode_of_a_batch_is_the_episode_of_a_single_environment(policy: Policy, sample: bool):
    parameters_EP, seeds = some_policies(policy, 20), episode_seeds(7, 0, 20, "training")
    batch = play(policy, parameters_EP, seeds, num_envs=6, sample=sample, record=True)
    recording = batch.recording
    assert recording is not None
    for i, (parameters_P, seed) in enumerate(zip(parameters_EP, seeds, strict=True)):
        steps = single(policy, parameters_P, seed, sample=sample)
        mine = np.flatnonzero(recording.episode_N == i)
        assert recording.time_N[mine].tolist() == list(range(len(steps)))
        np.testing.assert_array_equal(recording.observations_ND[mine], np.stack([step[0] for step in steps]))
        assert recording.actions_N[mine].tolist() == [step[1] for step in steps]
        assert recording.rewards_N[mine].tolist() == [step[2] for step in steps]
        assert batch.returns_E[i] == sum(step[2] for step in steps)
        assert batch.lengths_E[i] == len(steps)
        assert batch.truncated_E[i] == steps[-1][4]
    assert batch.num_steps == len(recording.time_N)


def test_episodes_end_by_termination_and_are_truncated_at_500():
    policy = LinearPolicy()
    parameters_EP = np.stack([BALANCES, -BALANCES, np.array([0.0, 0.0, 1.0, 0.0])])
    batch = play(policy, parameters_EP, [1, 2, 3], num_envs=3)
    assert batch.lengths_E[0] == 500
    assert batch.truncated_E.tolist() == [True, False, False]
    assert batch.lengths_E[1:].max() < 500
    assert batch.returns_E.tolist() == batch.lengths_E.tolist()


def test_the_same_actions_lead_to_the_same_observations_rewards_and_ends():
    seeds, rng = [11, 12, 13, 14], np.random.default_rng(0)
    envs, singles = CartPoles(4), [gymnasium.make("CartPole-v1") for _ in seeds]
    first = envs.begin(range(4), seeds)
    np.testing.assert_array_equal(first, [env.reset(seed=seed)[0] for env, seed in zip(singles, seeds, strict=True)])
    running = [True] * 4
    while any(running):
        actions = rng.integers(2, size=4)
        observations, rewards, terminated, truncated = envs.step(actions)
        for i in np.flatnonzero(running):
            step = singles[i].step(int(actions[i]))
            np.testing.assert_array_equal(observations[i], step[0])
            assert (rewards[i], terminated[i], truncated[i]) == step[1:4]
            running[i] = not (step[2] or step[3])


def test_the_first_step_after_an_end_belongs_to_the_new_episode():
    envs = CartPoles(2)
    envs.begin([0, 1], [5, 6])
    over = np.zeros(2, bool)
    while not over[0]:
        _, _, terminated, truncated = envs.step(np.ones(2, int))
        over = terminated | truncated
    envs.begin([0], [99])
    observations, rewards, terminated, _ = envs.step(np.array([1, 0]))
    env = gymnasium.make("CartPole-v1")
    env.reset(seed=99)
    expected = env.step(1)
    np.testing.assert_array_equal(observations[0], expected[0])
    assert (rewards[0], terminated[0]) == (1.0, False)


@settings(max_examples=15)
@given(num_envs=st.integers(1, 12), num_episodes=st.integers(1, 12), sample=st.booleans())
def test_an_episode_does_not_depend_on_what_is_played_beside_it(num_envs: int, num_episodes: int, sample: bool):
    policy = LinearPolicy()
    parameters_EP, seeds = np.random.default_rng(5).standard_normal((12, 4)), episode_seeds(1, 0, 12, "training")
    whole = play(policy, parameters_EP, seeds, num_envs=12, sample=sample)
    part = play(policy, parameters_EP[:num_episodes], seeds[:num_episodes], num_envs=num_envs, sample=sample)
    assert part.returns_E.tolist() == whole.returns_E[:num_episodes].tolist()


def test_parameters_that_are_no_numbers_are_refused():
    with pytest.raises(RunError, match="lower learning_rate"):
        play(LinearPolicy(), np.full((1, 4), np.nan), [0, 1], num_envs=2)
