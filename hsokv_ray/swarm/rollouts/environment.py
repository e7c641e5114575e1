"""Whole batches of CartPole-v1 episodes, each of which is the episode `gymnasium.make` would play.

Gymnasium's vectorised CartPole advances all environments in one expression, but draws their starts from one generator,
and in the step after an episode's end it begins another and ignores the action. Here every episode begins from a seed
of its own, and a finished environment is given its next start before the next step, so that neither happens to an
episode that counts.

S: environments side by side, E: episodes, N: steps of all episodes, P: parameters, D: numbers of an observation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.utils import seeding

from hsokv_ray.errors import RunError
from hsokv_ray.swarm.rollouts.policy import Policy
from hsokv_ray.swarm.rollouts.seeds import action_draws

MAX_EPISODE_STEPS = 500
_START = 0.05
"""Each of the four numbers of a start is uniform within plus and minus this, as in CartPoleEnv.reset."""


class CartPoles:
    """Environments side by side; an episode begins in the one, and from the seed, that `begin` names.

    Args:
        num_envs: how many.
    """

    def __init__(self, num_envs: int) -> None:
        envs = gymnasium.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="vector_entry_point")
        envs.reset(seed=0)
        self._envs = cast(Any, envs.unwrapped)  # its arrays of states and step counts are written by `begin`
        assert self._envs.max_episode_steps == MAX_EPISODE_STEPS
        assert self._envs.state.shape == (4, num_envs)

    def begin(self, slots: Sequence[int] | np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """Begin an episode in each of `slots`; return the observations [S, D] of all environments."""
        for slot, seed in zip(slots, seeds, strict=True):
            self._envs.state[:, slot] = seeding.np_random(seed)[0].uniform(-_START, _START, size=4)
            self._envs.steps[slot] = 0
            self._envs.prev_done[slot] = False  # else the next step would replace the start and give no reward
        return self._envs.state.T.astype(np.float32)

    def step(self, actions_S: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return observations [S, D], rewards, whether each terminated, and whether it was truncated."""
        observations_SD, rewards, terminated, truncated, _ = self._envs.step(actions_S)
        return observations_SD, rewards, terminated, truncated


@dataclass(frozen=True)
class Recording:
    """Every step of some episodes, in any order."""

    observations_ND: np.ndarray
    actions_N: np.ndarray
    rewards_N: np.ndarray
    episode_N: np.ndarray
    """Which episode a step belongs to."""
    time_N: np.ndarray
    """Its number within the episode, from 0."""


@dataclass(frozen=True)
class Episodes:
    """What came of a batch of episodes."""

    returns_E: np.ndarray
    """Undiscounted sums of rewards."""
    lengths_E: np.ndarray
    truncated_E: np.ndarray
    """Whether the limit of 500 steps ended it."""
    recording: Recording | None

    @property
    def num_steps(self) -> int:
        """Environment steps of all episodes."""
        return int(self.lengths_E.sum())


def play(
    policy: Policy,
    parameters_EP: np.ndarray,
    seeds: Sequence[int],
    *,
    num_envs: int,
    sample: bool = False,
    record: bool = False,
) -> Episodes:
    """Play one episode per seed, at most `num_envs` at a time; what an episode is does not depend on the others.

    Args:
        policy: gives logits.
        parameters_EP: each episode's parameters; one row [1, P] is for all.
        seeds: one per episode, decides its start and its drawn actions.
        num_envs: environments stepped together; one that has finished begins the next episode.
        sample: draw actions by their probability instead of taking the likelier one.
        record: keep every step.

    Raises:
        RunError: a logit is no finite number.
    """
    batch = _Batch(np.broadcast_to(parameters_EP, (len(seeds), parameters_EP.shape[1])), seeds, num_envs, sample)
    while batch.active_S.any():
        logits_S = policy.logits(batch.parameters_SP, batch.observations_SD)
        if not np.isfinite(logits_S).all():
            raise RunError("rollout: a policy's logit is no finite number; lower learning_rate or sigma")
        batch.step(logits_S, record=record)
    return batch.episodes(record=record)


class _Batch:
    """Episodes under way: which environment plays which, and what has been counted."""

    def __init__(self, parameters_EP: np.ndarray, seeds: Sequence[int], num_envs: int, sample: bool) -> None:
        num_envs, num_episodes = min(num_envs, len(seeds)), len(seeds)
        self._parameters_EP, self._seeds = parameters_EP, seeds
        self._draws = np.stack([action_draws(seed, MAX_EPISODE_STEPS) for seed in seeds]) if sample else None
        self._envs = CartPoles(num_envs)
        self._episode_S = np.arange(num_envs)
        self._num_begun = num_envs
        self.active_S = np.ones(num_envs, bool)
        self.parameters_SP = parameters_EP[:num_envs].copy()
        self.observations_SD = self._envs.begin(self._episode_S, seeds[:num_envs])
        self._returns_E = np.zeros(num_episodes)
        self._lengths_E = np.zeros(num_episodes, int)
        self._truncated_E = np.zeros(num_episodes, bool)
        self._rows: list[tuple[np.ndarray, ...]] = []

    def step(self, logits_S: np.ndarray, *, record: bool) -> None:
        """Act in all environments, count in those that play, and begin episodes where others ended."""
        actions_S = self._actions(logits_S)
        before_SD, active_S = self.observations_SD, self.active_S
        self.observations_SD, rewards_S, terminated_S, truncated_S = self._envs.step(actions_S)
        playing = self._episode_S[active_S]
        if record:
            row = (before_SD[active_S], actions_S[active_S], rewards_S[active_S], playing, self._lengths_E[playing])
            self._rows.append(row)
        self._returns_E[playing] += rewards_S[active_S]
        self._lengths_E[playing] += 1
        ended = np.flatnonzero(active_S & (terminated_S | truncated_S))
        self._truncated_E[self._episode_S[ended]] = ~terminated_S[ended]
        if len(ended):
            self._begin_next(ended)

    def episodes(self, *, record: bool) -> Episodes:
        recording = Recording(*(np.concatenate(part) for part in zip(*self._rows, strict=True))) if record else None
        return Episodes(self._returns_E, self._lengths_E, self._truncated_E, recording)

    def _actions(self, logits_S: np.ndarray) -> np.ndarray:
        if self._draws is None:
            return (logits_S > 0).astype(np.int64)
        # An environment that has ended for good stays at its last episode's last step: its action counts nowhere.
        time_S = np.minimum(self._lengths_E[self._episode_S], MAX_EPISODE_STEPS - 1)
        return (self._draws[self._episode_S, time_S] < sigmoid(logits_S)).astype(np.int64)

    def _begin_next(self, ended: np.ndarray) -> None:
        again = ended[: len(self._seeds) - self._num_begun]
        self.active_S = self.active_S.copy()
        self.active_S[ended[len(again) :]] = False
        episodes = np.arange(self._num_begun, self._num_begun + len(again))
        self._num_begun += len(again)
        self._episode_S[again] = episodes
        self.parameters_SP[again] = self._parameters_EP[episodes]
        self.observations_SD = self._envs.begin(again, [self._seeds[episode] for episode in episodes.tolist()])


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)), also for large x of either sign."""
    return 0.5 * (1 + np.tanh(0.5 * x))
