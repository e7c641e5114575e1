"""Adam in NumPy: a driver of small policies needs no torch (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1)."""

import numpy as np


class Adam:
    """Moments of one vector of parameters.

    Args:
        num_parameters: its length.
        learning_rate: step size.
    """

    def __init__(
        self, num_parameters: int, learning_rate: float, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self._learning_rate, self._betas, self._eps = learning_rate, betas, eps
        self._mean, self._square, self._steps = np.zeros(num_parameters), np.zeros(num_parameters), 0

    def ascend(self, parameters_P: np.ndarray, gradient_P: np.ndarray) -> np.ndarray:
        """Return new parameters, one step up the gradient."""
        first, second = self._betas
        self._steps += 1
        self._mean = first * self._mean + (1 - first) * gradient_P
        self._square = second * self._square + (1 - second) * gradient_P**2
        mean, square = self._mean / (1 - first**self._steps), self._square / (1 - second**self._steps)
        return parameters_P + self._learning_rate * mean / (np.sqrt(square) + self._eps)
