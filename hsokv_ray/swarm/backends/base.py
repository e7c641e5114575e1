"""What every backend is: a number of workers to which orders are given, and from which reports come back."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

from hsokv_ray import errors
from hsokv_ray.errors import HsokvError, RunError
from hsokv_ray.swarm.learner import Task
from hsokv_ray.swarm.messages import Best, Order, Outcome


@dataclass(frozen=True)
class Done:
    """An order was carried out; its state is on disk, unless it failed."""

    order: Order
    outcome: Outcome
    begun: float
    """Unix seconds."""
    worker: str
    """The host and process that did it: "host:pid"."""


@dataclass(frozen=True)
class Lost:
    """The worker of an order ended before it reported."""

    order: Order
    flops: int
    """Charged for the attempt; see `most_flops`."""
    why: str
    begun: float
    worker: str


@dataclass(frozen=True)
class Conclusion:
    """What the last look at the best model showed."""

    test: dict[str, Any]
    flops: int
    saved: bool
    failure: str = ""


class WorkerLost(Exception):
    """The worker that tested the best model ended before it reported; another one can try again."""


class Backend(Protocol):
    """Carries out orders, several at a time. Workers start with the first order."""

    @property
    def num_workers(self) -> int:
        """Orders that can be carried out at a time."""
        ...

    def submit(self, order: Order) -> None:
        """Take an order; it waits where all workers are busy. A repeated attempt comes before first ones."""
        ...

    def running(self) -> dict[str, float]:
        """Return the orders in workers, and when each was begun (Unix seconds)."""
        ...

    def wait(self, timeout_s: float) -> list[Done | Lost]:
        """Return all reports there are as soon as there is one; none after `timeout_s`, or where `running` changed.

        Raises:
            DataError, ConfigError, RunError: no worker can be made; more orders would fare no better.
        """
        ...

    def forget(self, order_ids: Collection[str]) -> None:
        """These orders' states will not be asked for any more; what is on disk is for others to remove."""
        ...

    def conclude(self, best: Best, *, seed: int, folder: str) -> Conclusion:
        """Have a worker test the best model, and save it to `folder`, as far as its learner can. No order may run.

        Raises:
            WorkerLost: the worker ended meanwhile; nothing is concluded.
        """
        ...

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        ...


def most_flops(task: Task, order: Order) -> int:
    """Return what an attempt that never reported is charged: the cost of all its steps.

    How far it got died with it. The most it can have spent on training is what was set aside for it; to charge less
    would let a search whose workers are killed train more than others on the same budget.
    """
    return task.cost(order.strategy) * order.num_steps


def refusal(message: dict[str, Any]) -> HsokvError:
    """Return the error with which a worker could not begin, as what it was.

    Args:
        message: "refused", the error's line, and "kind", its class.
    """
    kinds = (errors.ConfigError, errors.DataError, errors.CheckpointError, errors.StoreError)
    kind = next((each for each in kinds if each.__name__ == message["kind"]), RunError)
    return kind(message["refused"])
