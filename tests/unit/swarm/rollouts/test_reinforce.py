"""REINFORCE's gradient against torch's autograd, its advantages against the definition."""

import numpy as np
import pytest
import torch

from hsokv_ray.swarm.rollouts import reinforce
from hsokv_ray.swarm.rollouts.environment import Recording, play
from hsokv_ray.swarm.rollouts.policy import LinearPolicy, MLPPolicy, Policy
from hsokv_ray.swarm.rollouts.seeds import episode_seeds

GAMMA = 0.9


def plain_advantage(rewards: list[list[float]], episode: int, time: int) -> float:
    """Discounted rewards from `time` on, minus the mean of those of the other episodes."""

    def value(i: int) -> float:
        return sum(GAMMA ** (t - time) * rewards[i][t] for t in range(time, len(rewards[i])))

    others = [value(i) for i in range(len(rewards)) if i != episode]
    return value(episode) - sum(others) / len(others)


def rewards_of(recording: Recording, num_episodes: int) -> list[list[float]]:
    rewards: list[list[float]] = []
    for i in range(num_episodes):
        mine = recording.episode_N == i
        rewards.append(recording.rewards_N[mine][np.argsort(recording.time_N[mine])].tolist())
    return rewards


def torch_logits(policy: Policy, parameters: torch.Tensor, observations: torch.Tensor) -> torch.Tensor:
    if isinstance(policy, LinearPolicy):
        return observations @ parameters
    assert isinstance(policy, MLPPolicy)
    h = policy.hidden_size
    into, bias, out, last = torch.split(parameters, [4 * h, h, h, 1])
    hidden = torch.tanh(torch.nn.functional.linear(observations, into.reshape(4, h).T, bias))
    return hidden @ out + last


@pytest.mark.parametrize("policy", [LinearPolicy(), MLPPolicy(6)])
def test_the_gradient_is_that_of_autograd(policy: Policy):
    parameters_P = np.random.default_rng(1).standard_normal(policy.num_parameters)
    seeds = episode_seeds(3, 0, 5, "training")
    episodes = play(policy, parameters_P[None], seeds, num_envs=2, sample=True, record=True)
    recording = episodes.recording
    assert recording is not None
    rewards = rewards_of(recording, 5)
    leaf = torch.tensor(parameters_P, requires_grad=True)
    logits = torch_logits(policy, leaf, torch.tensor(recording.observations_ND, dtype=torch.float64))
    chances = torch.distributions.Bernoulli(logits=logits).log_prob(torch.tensor(recording.actions_N).double())
    advantage = [plain_advantage(rewards, *at) for at in zip(recording.episode_N, recording.time_N, strict=True)]
    (chances * torch.tensor(advantage)).sum().div(5).backward()
    assert leaf.grad is not None
    ours = reinforce.gradient(policy, parameters_P, episodes, GAMMA)
    np.testing.assert_allclose(ours, leaf.grad.numpy(), rtol=1e-9, atol=1e-12)
    assert np.abs(ours).min() > 0


def test_the_gradient_points_where_the_expected_return_rises():
    """Over many episodes it agrees with differences of the mean return of sampled policies, which share no code."""
    policy, parameters_P, direction = LinearPolicy(), np.array([0.0, 0.2, 0.5, 0.3]), np.array([0.0, 0.3, 0.3, 0.9])

    def sampled(weights_P: np.ndarray, number: int) -> float:
        seeds = episode_seeds(8, number, 3000, "training")
        return float(play(policy, weights_P[None], seeds, num_envs=500, sample=True).returns_E.mean())

    step = 0.3
    slope = (sampled(parameters_P + step * direction, 0) - sampled(parameters_P - step * direction, 1)) / (2 * step)
    seeds = episode_seeds(8, 2, 3000, "training")
    episodes = play(policy, parameters_P[None], seeds, num_envs=500, sample=True, record=True)
    estimate = float(reinforce.gradient(policy, parameters_P, episodes, 1.0) @ direction)
    assert estimate == pytest.approx(slope, rel=0.2)
