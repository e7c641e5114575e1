"""What the driver of rollouts and its workers say to each other, and who carries it. Plain JSON on the wire."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, Self

import numpy as np

Kind = Literal["training", "evaluation"]


@dataclass(frozen=True)
class Order:
    """Play one batch of episodes. Its number decides them, so that doing it twice does the same."""

    number: int
    """Counts the orders of a run from 0."""
    kind: Kind
    version: int
    """Of the parameters it is about."""
    attempt: int = 1
    """How often it was handed out because a worker was lost, plus 1."""

    def again(self) -> "Order":
        """Return the next attempt."""
        return replace(self, attempt=self.attempt + 1)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from what `to_json` returned."""
        return cls(**values)


@dataclass(frozen=True)
class Result:
    """What came of an order."""

    number: int
    returns: tuple[float, ...]
    """Evaluation, and training by reinforce: one per episode. By es: one per policy, the mean over its episodes, in
    the order of `evolution.perturbed`."""
    steps: int
    """Environment steps of all its episodes."""
    episodes: int
    seconds: float
    gradient: tuple[float, ...] | None = None
    """By reinforce: of the expected return."""

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from what `to_json` returned; lists become tuples."""
        gradient = values["gradient"]
        known = {"returns": tuple(values["returns"]), "gradient": None if gradient is None else tuple(gradient)}
        return cls(**{**values, **known})


@dataclass(frozen=True)
class Done:
    """A worker has carried out an order."""

    result: Result
    worker: int


@dataclass(frozen=True)
class Lost:
    """A worker has died, and with it these orders."""

    orders: tuple[Order, ...]
    worker: int
    why: str


@dataclass(frozen=True)
class Place:
    """Where a worker runs."""

    host: str
    num_cpus: int
    """CPUs of that machine that the worker may use, shared with its other workers there."""
    pid: int


class Backend(Protocol):
    """Carries orders to workers and results back."""

    num_workers: int

    @property
    def places(self) -> tuple[Place, ...]:
        """Where the workers were when they were started."""
        ...

    def submit(self, order: Order, parameters_P: np.ndarray) -> None:
        """Hand out an order; it waits where no worker lives. A worker carries out its orders one after the other."""
        ...

    def wait(self, timeout_s: float) -> list[Done | Lost]:
        """Return what has happened, at once where something has; after `timeout_s` seconds possibly nothing.

        Raises:
            RunError: a worker met an error of its own, or none can be kept alive.
        """
        ...

    def kill(self, worker: int) -> None:
        """End a worker the hard way, for drills. Raises `RunError` where there is none to kill."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...
