"""Configuration of distributed rollouts. Imports neither torch nor ray, so `--help` answers at once.

RolloutConfig(algorithm="es", policy="linear", num_workers=(1, 2), seed=3)
"""

from typing import Literal

import pydantic

from hsokv_ray.config import Config
from hsokv_ray.errors import ConfigError


class RolloutConfig(Config):
    """How policies for CartPole-v1 are trained by workers that play whole batches of episodes."""

    algorithm: Literal["es", "reinforce"] = "es"
    """es: evolution strategies (arXiv:1703.03864). reinforce: policy gradient with a baseline (Williams 1992)."""
    policy: Literal["linear", "mlp"] = "linear"
    """linear: 4 weights. mlp: one hidden layer of tanh."""
    hidden_size: int = pydantic.Field(default=8, ge=1)
    """Units of the hidden layer of `mlp`."""
    learning_rate: float = pydantic.Field(default=0.1, gt=0)
    """Of Adam."""
    sigma: float = pydantic.Field(default=0.3, gt=0)
    """es: standard deviation of the noise on the parameters."""
    pairs_per_order: int = pydantic.Field(default=8, ge=1)
    """es: directions of one order, each tried forwards and backwards."""
    episodes_per_policy: int = pydantic.Field(default=1, ge=1)
    """es: episodes of each perturbed policy; both signs of a direction play the same ones."""
    episodes_per_order: int = pydantic.Field(default=16, ge=2)
    """reinforce: episodes of one order; the baseline of each is the mean of the others."""
    gamma: float = pydantic.Field(default=0.99, gt=0, le=1)
    """reinforce: discount of the return from a step on; es and all reported returns are undiscounted."""
    num_envs: int = pydantic.Field(default=64, ge=1)
    """Environments that a worker steps together at most; a finished one begins the order's next episode."""
    orders_per_update: int = pydantic.Field(default=4, ge=1)
    """Results from which one new version of the parameters is made."""
    in_flight_per_worker: int = pydantic.Field(default=2, ge=1)
    """Orders that a worker has at a time, so that it never waits for the driver."""
    max_staleness: int = pydantic.Field(default=2, ge=0)
    """Versions by which a result may lag behind; older ones are dropped and count as wasted."""
    target_return: float = pydantic.Field(default=475.0, gt=0)
    """Mean return over the evaluation episodes at which CartPole-v1 counts as solved."""
    evaluation_episodes: int = pydantic.Field(default=100, ge=2)
    """Episodes of each evaluation; none of them is ever trained on, and every evaluation has its own."""
    evaluate_every: int = pydantic.Field(default=2, ge=1)
    """Versions from one evaluation to the next."""
    max_training_steps: int = pydantic.Field(default=3_000_000, ge=1)
    """Environment steps of training after which a run ends without having reached the target."""
    max_seconds: float = pydantic.Field(default=120.0, gt=0)
    """Seconds after which it does."""
    num_workers: tuple[int, ...] | None = pydantic.Field(default=None, min_length=1)
    """Worker counts to compare. None: 1, 2 and 4, as far as the machine has that many CPUs."""
    cpus_per_worker: float = pydantic.Field(default=1.0, gt=0)
    """CPUs that each worker reserves of Ray."""
    num_seeds: int = pydantic.Field(default=3, ge=1)
    """Repetitions of every figure, each with its own seed; intervals are over them."""
    random_episodes: int = pydantic.Field(default=10, ge=1)
    """Episodes by which random search judges one of its policies."""
    scaling_orders: int = pydantic.Field(default=100, ge=1)
    """Orders of the runs that measure speed-up: the very same ones for every worker count."""
    kill_after: int = pydantic.Field(default=10, ge=1)
    """Results after which the run that measures recovery kills a worker."""
    worker_timeout_s: float = pydantic.Field(default=120.0, gt=0)
    """Seconds without any sign of a worker after which a run fails."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Decides parameters, noise and episodes of the first repetition; the others count on from it."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "RolloutConfig":
        if self.num_workers is not None and (
            min(self.num_workers) < 1 or sorted(set(self.num_workers)) != [*self.num_workers]
        ):
            raise ValueError(f"num_workers: got {list(self.num_workers)}; rising numbers of at least 1 are needed")
        return self

    @property
    def episodes_of_training(self) -> int:
        """Episodes of one order of training."""
        if self.algorithm == "reinforce":
            return self.episodes_per_order
        return 2 * self.pairs_per_order * self.episodes_per_policy

    def check_staleness(self, num_workers: int) -> None:
        """Refuse what would drop most work: more orders under way than `max_staleness` allows.

        Raises:
            ConfigError: a result would usually be older than that.
        """
        lag = num_workers * self.in_flight_per_worker // self.orders_per_update
        if lag > self.max_staleness:
            raise ConfigError(
                f"max_staleness: got {self.max_staleness}; with {num_workers} workers of {self.in_flight_per_worker} "
                f"orders each and {self.orders_per_update} orders per update results lag {lag} versions: raise it or "
                "orders_per_update"
            )
