"""REINFORCE with a baseline (Williams 1992, Machine Learning 8:229-256) on the recorded steps of some episodes.

N: steps of all episodes, E: episodes, T: steps of the longest, P: parameters, D: numbers of an observation.
"""

import numpy as np

from hsokv_ray.swarm.rollouts.environment import Episodes, Recording, sigmoid
from hsokv_ray.swarm.rollouts.policy import Policy


def returns_to_go(rewards_ET: np.ndarray, gamma: float) -> np.ndarray:
    """Return the discounted sums of rewards from each step on; `rewards_ET` is 0 after an episode's end."""
    sums_ET = np.zeros_like(rewards_ET, dtype=np.float64)
    following = np.zeros(len(rewards_ET))
    for t in range(rewards_ET.shape[1] - 1, -1, -1):
        following = rewards_ET[:, t] + gamma * following
        sums_ET[:, t] = following
    return sums_ET


def advantages(recording: Recording, num_episodes: int, gamma: float) -> np.ndarray:
    """Return, for each step [N], its return minus the mean return of the other episodes at that time.

    What an episode is compared with does not depend on its own actions, so the gradient stays unbiased; an episode that
    has ended returns 0. One that the limit of 500 steps cut counts as ended: what it would still have got is ignored.
    """
    rewards_ET = np.zeros((num_episodes, int(recording.time_N.max()) + 1))
    rewards_ET[recording.episode_N, recording.time_N] = recording.rewards_N
    sums_ET = returns_to_go(rewards_ET, gamma)
    others_ET = (sums_ET.sum(0) - sums_ET) / (num_episodes - 1)
    return (sums_ET - others_ET)[recording.episode_N, recording.time_N]


def gradient(policy: Policy, parameters_P: np.ndarray, episodes: Episodes, gamma: float) -> np.ndarray:
    """Return the gradient [P] of the expected return: the mean over episodes of grad log pi * advantage, summed.

    Args:
        policy: drew the actions.
        parameters_P: with which it did.
        episodes: at least 2, recorded.
        gamma: discount of the returns.
    """
    recording = episodes.recording
    assert recording is not None
    assert len(episodes.returns_E) > 1
    logits_N = policy.logits(
        np.broadcast_to(parameters_P, (len(recording.time_N), len(parameters_P))), recording.observations_ND
    )
    # d log pi(a) / d logit of a coin with probability sigmoid(logit) is a - sigmoid(logit)
    score_N = recording.actions_N - sigmoid(logits_N)
    weights_N = score_N * advantages(recording, len(episodes.returns_E), gamma)
    return policy.gradient(parameters_P, recording.observations_ND.astype(np.float64), weights_N) / len(
        episodes.returns_E
    )
