"""Carry out one order with a learner: what every backend does in its workers."""

import time
import traceback
from typing import Protocol, runtime_checkable

from hsokv_ray.errors import CheckpointError, HsokvError
from hsokv_ray.swarm.learner import Learner, State
from hsokv_ray.swarm.messages import Order, Outcome


@runtime_checkable
class HearsOrders(Protocol):
    """A learner that wants to know whose order it carries out."""

    def begins(self, order: Order) -> None:
        """Hear what is done next, after `configure`."""
        ...


@runtime_checkable
class Closes(Protocol):
    """A learner with something to give back at the end, such as an open store."""

    def close(self) -> None:
        """Give it back."""
        ...


class Execution:
    """A worker's learner, and which order's result it holds.

    Args:
        learner: kept for all orders; its data is read once.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.holds: str | None = None
        """Order whose result the learner's model is; None: unknown."""

    def run(self, order: Order, source: State | None) -> tuple[Outcome, State | None]:
        """Train and evaluate; return what came of it and the model, None where the order failed.

        An error is an outcome too: whatever goes wrong in one order is no reason for the worker to end.

        Args:
            order: what to do.
            source: state of `order.source`; None also where the learner holds it already (see `holds`).
        """
        begun, flops = time.perf_counter(), self.learner.flops
        try:
            metrics, state, failure = *self._train(order, source), ""
        except Exception as error:
            self.holds, metrics, state = None, {}, None
            failure = one_line(error)
        spent, seconds = self.learner.flops - flops, time.perf_counter() - begun
        score = metrics.pop("score", None)
        return Outcome(order.order_id, score, spent, seconds, failure, metrics), state

    def _train(self, order: Order, source: State | None) -> tuple[dict[str, float], State]:
        learner, held = self.learner, self.holds
        self.holds = None
        learner.configure(order.strategy, seed=order.seed)
        if isinstance(learner, HearsOrders):
            learner.begins(order)
        if order.source is None:
            learner.reset()
        elif source is not None:
            learner.load(source)
        elif held != order.source:
            raise CheckpointError(f"order {order.order_id}: got no state of {order.source}, from which it is to begin")
        learner.train(order.num_steps)
        metrics = dict(learner.evaluate())
        state = learner.state()
        self.holds = order.order_id
        return metrics, state


def one_line(error: Exception) -> str:
    """Return the error's own line; where it was not raised on purpose, with its kind and place."""
    if isinstance(error, HsokvError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return " ".join(f"{type(error).__name__}: {error}{place}".split())[:500]
