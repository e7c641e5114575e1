"""Seeds: no episode is both trained on and tested on, and everything random follows from them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.errors import ConfigError
from hsokv_ray.swarm.rollouts import worker as workers
from hsokv_ray.swarm.rollouts.baseline import random_search, returns_on_test
from hsokv_ray.swarm.rollouts.config import RolloutConfig
from hsokv_ray.swarm.rollouts.environment import play
from hsokv_ray.swarm.rollouts.evolution import noise_of
from hsokv_ray.swarm.rollouts.local import LocalBackend
from hsokv_ray.swarm.rollouts.policy import LinearPolicy
from hsokv_ray.swarm.rollouts.seeds import ROLES, Role, episode_seeds, policy_generator, role_of
from hsokv_ray.swarm.rollouts.training import Training


@given(st.integers(0, 2**63), st.integers(0, 10**6), st.sampled_from(ROLES))
def test_a_seed_tells_what_its_episode_is_for(run_seed: int, number: int, role: Role):
    seeds = episode_seeds(run_seed, number, 5, role)
    assert {role_of(seed) for seed in seeds} == {role}
    assert seeds == episode_seeds(run_seed, number, 5, role)
    assert len(set(seeds)) == 5


def test_orders_have_different_noise_and_episodes_and_runs_do():
    noises = {noise_of(seed, number, 2, 3).tobytes() for seed in range(4) for number in range(4)}
    episodes = {tuple(episode_seeds(seed, number, 3, "training")) for seed in range(4) for number in range(4)}
    assert len(noises) == len(episodes) == 16
    assert noise_of(1, 2, 2, 3).tolist() == noise_of(1, 2, 2, 3).tolist()


@pytest.mark.parametrize("algorithm", ["es", "reinforce"])
def test_returns_of_training_evaluation_and_test_come_from_different_episodes(
    monkeypatch: pytest.MonkeyPatch, algorithm: str
):
    played: list[list[int]] = []
    real = workers.play
    monkeypatch.setattr(workers, "play", lambda *args, **kwargs: played.append(args[2]) or real(*args, **kwargs))
    config = RolloutConfig(algorithm=algorithm, max_training_steps=20_000, evaluation_episodes=20)
    report = Training(config, LocalBackend(config, 5), seed=5).run()
    by_role: dict[str, set[int]] = {role: set() for role in ROLES}
    for seeds in played:
        roles = {role_of(seed) for seed in seeds}
        assert len(roles) == 1
        by_role[roles.pop()].update(seeds)
    num_evaluations = sum(role_of(seeds[0]) == "evaluation" for seeds in played)
    assert num_evaluations >= len(report.curve) > 0
    assert len(by_role["evaluation"]) == 20 * num_evaluations  # every evaluation has its own
    assert not by_role["test"]
    assert by_role["training"]


def test_random_search_keeps_the_best_of_its_policies_and_tests_it_on_other_episodes():
    config, policy = RolloutConfig(random_episodes=2), LinearPolicy()
    search = random_search(config, seed=3, num_episodes=9)
    assert (search.num_policies, search.episodes) == (4, 8)
    policies, seeds = policy_generator(3).standard_normal((4, 4)), episode_seeds(3, 0, 8, "training")
    plays = [play(policy, policies[i : i + 1], seeds[2 * i : 2 * i + 2], num_envs=1) for i in range(4)]
    means = [float(each.returns_E.mean()) for each in plays]
    assert search.best_return == max(means)
    assert search.mean_return.mean == pytest.approx(np.mean(means))
    assert search.steps == sum(each.num_steps for each in plays)
    best = policies[int(np.argmax(means))]
    tested = play(policy, best[None], episode_seeds(3, 0, 100, "test"), num_envs=100).returns_E
    assert search.best_test_return.mean == pytest.approx(tested.mean())
    assert (search.best_test_return.n, search.best_test_return.seeds) == (100, 1)
    np.testing.assert_array_equal(returns_on_test(config, policy, best, seed=3), tested)


def test_random_search_says_after_how_many_steps_it_had_a_solution():
    config, policy = RolloutConfig(random_episodes=1), LinearPolicy()
    search = random_search(config, seed=0, num_episodes=300)
    policies, seeds = policy_generator(0).standard_normal((300, 4)), episode_seeds(0, 0, 300, "training")
    lengths = play(policy, policies, seeds, num_envs=300).lengths_E
    first = int(np.flatnonzero(lengths >= 475)[0])
    assert search.steps_to_target == lengths[: first + 1].sum()
    assert search.solved.mean == pytest.approx((lengths >= 475).mean())


def test_too_few_episodes_for_one_random_policy_are_refused():
    with pytest.raises(ConfigError, match="at most the 9 episodes"):
        random_search(RolloutConfig(random_episodes=10), seed=0, num_episodes=9)
