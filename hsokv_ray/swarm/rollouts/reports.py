"""What a run of rollouts reports."""

from dataclasses import dataclass

from hsokv_ray.swarm.rollouts.account import Steps


@dataclass(frozen=True)
class Evaluation:
    """How good one version of the parameters was, on episodes that nothing was trained on."""

    version: int
    seconds: float
    """Since the run's begin, when the result arrived."""
    steps: int
    """Of training, used and stale, when the evaluation was ordered."""
    episodes: int
    """Of training, likewise."""
    mean_return: float


@dataclass(frozen=True)
class Recovery:
    """The death of a worker, and when the work it took with it had been done again."""

    worker: int
    why: str
    orders: tuple[int, ...]
    died_s: float
    """Seconds since the run's begin; where nobody killed it on purpose, when it was noticed."""
    noticed_s: float
    recovered_s: float | None
    """When the last lost order had been answered; None: the run ended before."""

    @property
    def seconds(self) -> float | None:
        """From death to the last lost order's result."""
        return None if self.recovered_s is None else self.recovered_s - self.died_s


@dataclass(frozen=True)
class TrainingReport:
    """One run."""

    num_workers: int
    seed: int
    seconds: float
    steps: Steps
    orders: int
    episodes: int
    updates: int
    curve: tuple[Evaluation, ...]
    reached: Evaluation | None
    """The first evaluation with the target return."""
    recoveries: tuple[Recovery, ...]
    unanswered: int
    """Orders that had no result when the run was closed; their steps are not known."""
    driver_cpu_s: float
    """CPU seconds of the driver's process; with backend local, the worker's too."""
    returns_sum: float
    """Of all used results of training; equal work has equal sums."""
    parameters: tuple[float, ...]
    """Of the best evaluation; without any, the last."""

    @property
    def steps_per_s(self) -> float:
        """Environment steps used, dropped as stale or evaluated, per second."""
        return (self.steps.used + self.steps.stale + self.steps.evaluation) / self.seconds


class Loss:
    """A death whose orders are being done again."""

    def __init__(self, worker: int, why: str, orders: tuple[int, ...], died_s: float, noticed_s: float) -> None:
        self._worker, self._why, self._orders, self._died_s, self._noticed_s = worker, why, orders, died_s, noticed_s
        self._missing = set(orders)
        self._recovered_s = None if orders else noticed_s

    def answered(self, number: int, now_s: float) -> None:
        """An order was answered; the last missing one ends the recovery."""
        if number in self._missing:
            self._missing.discard(number)
            self._recovered_s = None if self._missing else now_s

    def recovery(self) -> Recovery:
        """Return how it went."""
        return Recovery(self._worker, self._why, self._orders, self._died_s, self._noticed_s, self._recovered_s)
