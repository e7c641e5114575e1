"""Seeds of episodes and noise, from a run's seed and an order's number; nothing random travels but these.

Whether an episode is for training, for evaluation or for the last test is the remainder of its seed modulo 4: the three
can share none.
"""

from typing import Literal

import numpy as np

Role = Literal["training", "evaluation", "test"]
ROLES: tuple[Role, ...] = ("training", "evaluation", "test")
_NOISE, _ACTIONS, _POLICY = 10, 11, 12


def episode_seeds(run_seed: int, number: int, num_episodes: int, role: Role) -> list[int]:
    """Return the seeds of the episodes of one order, below 2**63."""
    kind = ROLES.index(role)
    rng = np.random.default_rng([run_seed, kind, number])
    return [4 * int(drawn) + kind for drawn in rng.integers(2**61, size=num_episodes)]


def role_of(episode_seed: int) -> Role:
    """Return what an episode is for."""
    return ROLES[episode_seed % 4]


def noise_generator(run_seed: int, number: int) -> np.random.Generator:
    """Return the generator of the perturbations of one order: the same wherever it is made."""
    return np.random.default_rng([run_seed, _NOISE, number])


def policy_generator(run_seed: int) -> np.random.Generator:
    """Return the generator of a run's first parameters."""
    return np.random.default_rng([run_seed, _POLICY])


def action_draws(episode_seed: int, num_steps: int) -> np.ndarray:
    """Return the uniform numbers in [0, 1) by which an episode's actions are drawn, one per step."""
    return np.random.default_rng([episode_seed, _ACTIONS]).random(num_steps)
