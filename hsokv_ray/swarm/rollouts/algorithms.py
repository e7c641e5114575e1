"""From results to parameters: what the driver does with the returns of a batch. Pure."""

from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np

from hsokv_ray.swarm.rollouts.adam import Adam
from hsokv_ray.swarm.rollouts.config import RolloutConfig
from hsokv_ray.swarm.rollouts.evolution import centred_ranks, gradient, noise_of
from hsokv_ray.swarm.rollouts.messages import Result
from hsokv_ray.swarm.rollouts.policy import Policy, make_policy
from hsokv_ray.swarm.rollouts.seeds import policy_generator


class Algorithm(Protocol):
    """Gathers results, then moves the parameters."""

    parameters_P: np.ndarray

    def tell(self, result: Result) -> bool:
        """Take a result of training; return whether it was the last one for a new version of the parameters.

        Stale results are taken like fresh ones: their gradient is of parameters a few versions back, as in any
        asynchronous ascent. How stale they may be is the driver's to decide.
        """
        ...


class _Ascent(ABC):
    """`orders_per_update` results, then one step of Adam up their gradient."""

    def __init__(self, config: RolloutConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.policy: Policy = make_policy(config)
        self.parameters_P = self.policy.first(policy_generator(seed))
        self._adam = Adam(self.policy.num_parameters, config.learning_rate)
        self._results: list[Result] = []

    def tell(self, result: Result) -> bool:
        self._results.append(result)
        if len(self._results) < self.config.orders_per_update:
            return False
        self.parameters_P = self._adam.ascend(self.parameters_P, self.gradient(self._results))
        self._results = []
        return True

    @abstractmethod
    def gradient(self, results: list[Result]) -> np.ndarray:
        """Return the estimate [P] from the results of one update."""


class EvolutionStrategy(_Ascent):
    """Ranks the policies of all results together; their noise is made again from the orders' numbers."""

    def gradient(self, results: list[Result]) -> np.ndarray:
        size = self.config.pairs_per_order, self.policy.num_parameters
        noise_NP = np.concatenate([noise_of(self.seed, result.number, *size) for result in results])
        returns_N2 = np.concatenate([np.array(result.returns).reshape(-1, 2) for result in results])
        return gradient(noise_NP, centred_ranks(returns_N2), self.config.sigma)


class Reinforce(_Ascent):
    """Averages the workers' gradients."""

    def gradient(self, results: list[Result]) -> np.ndarray:
        return np.mean([result.gradient for result in results if result.gradient is not None], axis=0)


def make_algorithm(config: RolloutConfig, seed: int) -> Algorithm:
    """Return the algorithm that the configuration names."""
    return EvolutionStrategy(config, seed) if config.algorithm == "es" else Reinforce(config, seed)
