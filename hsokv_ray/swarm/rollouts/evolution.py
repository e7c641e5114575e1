"""Evolution strategies (Salimans et al. 2017, arXiv:1703.03864): antithetic noise, centred ranks.

N: directions, P: parameters. A direction's two policies are parameters + sigma * noise and parameters - sigma * noise.
"""

import numpy as np

from hsokv_ray.swarm.rollouts.seeds import noise_generator


def noise_of(run_seed: int, number: int, num_pairs: int, num_parameters: int) -> np.ndarray:
    """Return the directions [N, P] of an order, standard normal; worker and driver each make them from its number."""
    return noise_generator(run_seed, number).standard_normal((num_pairs, num_parameters))


def perturbed(parameters_P: np.ndarray, noise_NP: np.ndarray, sigma: float) -> np.ndarray:
    """Return the policies [2N, P] of the directions: forwards, backwards, forwards, ..."""
    both_N2P = np.stack([parameters_P + sigma * noise_NP, parameters_P - sigma * noise_NP], axis=1)
    return both_N2P.reshape(-1, len(parameters_P))


def centred_ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks scaled to [-0.5, 0.5], in the shape of `values`; equal values share the mean of their ranks.

    The paper's code ranks equal values by their position, which on CartPole, where good policies all return 500, would
    make a direction of nothing.
    """
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(sizes) - (sizes + 1) / 2
    return mean_ranks[group].reshape(np.shape(values)) / max(np.size(values) - 1, 1) - 0.5


def gradient(noise_NP: np.ndarray, utilities_N2: np.ndarray, sigma: float) -> np.ndarray:
    """Return the estimated gradient [P] of the expected utility (section 2 of the paper, antithetic).

    It is the mean over the 2N policies of utility * (their noise) / sigma.
    """
    return (utilities_N2[:, 0] - utilities_N2[:, 1]) @ noise_NP / (2 * len(noise_NP) * sigma)
