"""What a worker of any backend does: an order and a version of the parameters in, returns out."""

import os
import socket
import time

import numpy as np

from hsokv_ray.swarm.rollouts import reinforce
from hsokv_ray.swarm.rollouts.config import RolloutConfig
from hsokv_ray.swarm.rollouts.environment import Episodes, play
from hsokv_ray.swarm.rollouts.evolution import noise_of, perturbed
from hsokv_ray.swarm.rollouts.messages import Order, Place, Result
from hsokv_ray.swarm.rollouts.policy import make_policy
from hsokv_ray.swarm.rollouts.seeds import episode_seeds


class Worker:
    """Plays the episodes of orders.

    Args:
        config: what an order is made of.
        seed: the run's; with an order's number it decides noise, episodes and actions.
    """

    def __init__(self, config: RolloutConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self._policy = make_policy(config)

    def run(self, order: Order, parameters_P: np.ndarray) -> Result:
        """Carry out `order`, whose version of the parameters is given.

        Raises:
            RunError: the parameters are not finite.
        """
        begun = time.perf_counter()
        gradient = None
        if order.kind == "evaluation":
            returns, played = self._evaluate(order, parameters_P)
        elif self._config.algorithm == "es":
            returns, played = self._try_directions(order, parameters_P)
        else:
            returns, played, gradient = self._sample(order, parameters_P)
        return Result(
            order.number,
            returns=tuple(returns.tolist()),
            steps=played.num_steps,
            episodes=len(played.returns_E),
            seconds=time.perf_counter() - begun,
            gradient=None if gradient is None else tuple(gradient.tolist()),
        )

    def _evaluate(self, order: Order, parameters_P: np.ndarray) -> tuple[np.ndarray, Episodes]:
        seeds = episode_seeds(self._seed, order.number, self._config.evaluation_episodes, "evaluation")
        played = play(self._policy, parameters_P[None], seeds, num_envs=self._config.num_envs)
        return played.returns_E, played

    def _try_directions(self, order: Order, parameters_P: np.ndarray) -> tuple[np.ndarray, Episodes]:
        num_pairs, each = self._config.pairs_per_order, self._config.episodes_per_policy
        noise_NP = noise_of(self._seed, order.number, num_pairs, len(parameters_P))
        policies_EP = perturbed(parameters_P, noise_NP, self._config.sigma).repeat(each, axis=0)
        drawn = np.array(episode_seeds(self._seed, order.number, num_pairs * each, "training"))
        # Both signs of a direction begin alike: what differs between their returns is then the direction's doing.
        seeds = drawn.reshape(num_pairs, 1, each).repeat(2, axis=1).ravel().tolist()
        played = play(self._policy, policies_EP, seeds, num_envs=self._config.num_envs)
        return played.returns_E.reshape(-1, each).mean(-1), played

    def _sample(self, order: Order, parameters_P: np.ndarray) -> tuple[np.ndarray, Episodes, np.ndarray]:
        seeds = episode_seeds(self._seed, order.number, self._config.episodes_per_order, "training")
        options = {"num_envs": self._config.num_envs, "sample": True, "record": True}
        played = play(self._policy, parameters_P[None], seeds, **options)
        gradient_P = reinforce.gradient(self._policy, parameters_P, played, self._config.gamma)
        return played.returns_E, played, gradient_P


def here() -> Place:
    """Return the place of this process."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Place(socket.gethostname(), usable, os.getpid())
