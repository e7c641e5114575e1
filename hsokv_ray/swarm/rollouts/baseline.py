"""What CartPole is without learning: linear policies drawn at random, the best of which is kept."""

from dataclasses import dataclass, replace

import numpy as np

from hsokv_ray.errors import ConfigError
from hsokv_ray.evaluation.intervals import Score, over_seeds, wilson
from hsokv_ray.swarm.rollouts.config import RolloutConfig
from hsokv_ray.swarm.rollouts.environment import play
from hsokv_ray.swarm.rollouts.policy import LinearPolicy, Policy
from hsokv_ray.swarm.rollouts.seeds import episode_seeds, policy_generator


@dataclass(frozen=True)
class RandomSearch:
    """n policies of normal weights, judged by `random_episodes` episodes each."""

    num_policies: int
    episodes: int
    """Of all policies together."""
    steps: int
    mean_return: Score
    """Over policies."""
    best_return: float
    """Of the best policy on the episodes it was chosen by, which flatter it."""
    best_test_return: Score
    """Of that policy on test episodes, over episodes."""
    solved: Score
    """Share of policies with the target return on their own episodes."""
    steps_to_target: int | None
    """Steps until the first of those had been judged; None: there was none."""


def random_search(config: RolloutConfig, *, seed: int, num_episodes: int) -> RandomSearch:
    """Draw as many policies as `num_episodes` episodes allow, and test the best.

    Raises:
        ConfigError: not enough episodes for one policy.
    """
    each, num_policies = config.random_episodes, num_episodes // config.random_episodes
    if not num_policies:
        raise ConfigError(f"random_episodes: got {each}; at most the {num_episodes} episodes of the search are allowed")
    policy = LinearPolicy()
    policies_KP = policy_generator(seed).standard_normal((num_policies, policy.num_parameters))
    seeds = episode_seeds(seed, 0, num_policies * each, "training")
    played = play(policy, policies_KP.repeat(each, axis=0), seeds, num_envs=config.num_envs)
    returns_K, steps_K = played.returns_E.reshape(-1, each).mean(-1), played.lengths_E.reshape(-1, each).sum(-1)
    solved = np.flatnonzero(returns_K >= config.target_return)
    return RandomSearch(
        num_policies=num_policies,
        episodes=num_policies * each,
        steps=played.num_steps,
        mean_return=_over(returns_K),
        best_return=float(returns_K.max()),
        best_test_return=_over(returns_on_test(config, policy, policies_KP[returns_K.argmax()], seed=seed)),
        solved=wilson(len(solved), num_policies),
        steps_to_target=int(steps_K[: solved[0] + 1].sum()) if len(solved) else None,
    )


def returns_on_test(config: RolloutConfig, policy: Policy, parameters_P: np.ndarray, *, seed: int) -> np.ndarray:
    """Return the returns of a policy on the test episodes of a seed, which no run has trained or been evaluated on."""
    seeds = episode_seeds(seed, 0, config.evaluation_episodes, "test")
    return play(policy, parameters_P[None], seeds, num_envs=config.num_envs).returns_E


def _over(returns: np.ndarray) -> Score:
    """Return the mean over policies or episodes of one seed, with Student's t interval."""
    return replace(over_seeds(returns.tolist()), seeds=1)
