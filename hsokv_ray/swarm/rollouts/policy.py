"""Policies in NumPy: a vector of parameters and an observation give the logit of pushing right.

S: environments side by side, N: steps of some episodes, P: parameters, D: numbers of an observation, H: hidden units.
"""

from typing import Protocol

import numpy as np

from hsokv_ray.swarm.rollouts.config import RolloutConfig

OBSERVATION_SIZE = 4


class Policy(Protocol):
    """Maps parameters and observations to logits, and back."""

    num_parameters: int

    def first(self, rng: np.random.Generator) -> np.ndarray:
        """Return the parameters [P] to begin with."""
        ...

    def logits(self, parameters_SP: np.ndarray, observations_SD: np.ndarray) -> np.ndarray:
        """Return one logit per row, each by its own parameters."""
        ...

    def gradient(self, parameters_P: np.ndarray, observations_ND: np.ndarray, weights_N: np.ndarray) -> np.ndarray:
        """Return the gradient [P] of the sum of weights times logits."""
        ...


class LinearPolicy:
    """The logit is the product of four weights and the observation."""

    num_parameters = OBSERVATION_SIZE

    def first(self, rng: np.random.Generator) -> np.ndarray:
        """Return zeros: no direction is preferred."""
        return np.zeros(self.num_parameters)

    def logits(self, parameters_SP: np.ndarray, observations_SD: np.ndarray) -> np.ndarray:
        return (parameters_SP * observations_SD).sum(-1)

    def gradient(self, parameters_P: np.ndarray, observations_ND: np.ndarray, weights_N: np.ndarray) -> np.ndarray:
        return weights_N @ observations_ND


class MLPPolicy:
    """One hidden layer of tanh; parameters are input weights [D, H], their biases, output weights [H], and its bias."""

    def __init__(self, hidden_size: int) -> None:
        self.hidden_size = hidden_size
        self.num_parameters = hidden_size * (OBSERVATION_SIZE + 2) + 1

    def first(self, rng: np.random.Generator) -> np.ndarray:
        """Return weights of variance 1 / inputs, biases of zero."""
        into = rng.standard_normal(OBSERVATION_SIZE * self.hidden_size) / OBSERVATION_SIZE**0.5
        out = rng.standard_normal(self.hidden_size) / self.hidden_size**0.5
        return np.concatenate([into, np.zeros(self.hidden_size), out, [0.0]])

    def logits(self, parameters_SP: np.ndarray, observations_SD: np.ndarray) -> np.ndarray:
        into_SDH, bias_SH, out_SH, last_S = self._parts(parameters_SP)
        hidden_SH = np.tanh((observations_SD[:, :, None] * into_SDH).sum(1) + bias_SH)
        return (hidden_SH * out_SH).sum(-1) + last_S

    def gradient(self, parameters_P: np.ndarray, observations_ND: np.ndarray, weights_N: np.ndarray) -> np.ndarray:
        into_DH, bias_H, out_H, _ = (part[0] for part in self._parts(parameters_P[None]))
        hidden_NH = np.tanh(observations_ND @ into_DH + bias_H)
        inner_NH = weights_N[:, None] * out_H * (1 - hidden_NH**2)
        parts = (observations_ND.T @ inner_NH, inner_NH.sum(0), weights_N @ hidden_NH, weights_N.sum())
        return np.concatenate([np.ravel(part) for part in parts])

    def _parts(self, parameters_SP: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        h, d = self.hidden_size, OBSERVATION_SIZE
        into_SDH = parameters_SP[:, : d * h].reshape(-1, d, h)
        bias_SH, out_SH = parameters_SP[:, d * h : d * h + h], parameters_SP[:, d * h + h : -1]
        return into_SDH, bias_SH, out_SH, parameters_SP[:, -1]


def make_policy(config: RolloutConfig) -> Policy:
    """Return the policy that the configuration names."""
    return LinearPolicy() if config.policy == "linear" else MLPPolicy(config.hidden_size)
