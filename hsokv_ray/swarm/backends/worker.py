"""What a worker does, whichever backend started it: carry out orders, keep their states, test the best model."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from hsokv_ray.errors import CheckpointError, RunError
from hsokv_ray.swarm.backends.base import Conclusion
from hsokv_ray.swarm.execution import Closes, Execution, one_line
from hsokv_ray.swarm.learner import State, Task
from hsokv_ray.swarm.messages import Best, Order, Outcome
from hsokv_ray.swarm.states import States, pack, unpack


class Worker:
    """A learner and the disk.

    Args:
        task: makes the learner, once.
        states: where the results go.

    Raises:
        DataError: as `Task.learner`.
    """

    def __init__(self, task: Task, states: States) -> None:
        self._states = states
        self._execution = Execution(task.learner())

    def close(self) -> None:
        """Let the learner give back what it holds, where it holds something that outlives it."""
        if isinstance(self._execution.learner, Closes):
            self._execution.learner.close()

    @property
    def holds(self) -> str | None:
        """Order whose result the learner's model is; None: unknown."""
        return self._execution.holds

    def run(self, order: Order, source: bytes | None = None) -> tuple[Outcome, bytes | None]:
        """Carry out an order; return what came of it, and its state as `pack` made it, which is on disk by then.

        Args:
            order: what to do.
            source: state of `order.source`; None: the learner holds it, or it is on disk.

        Raises:
            RunError: the disk refuses the state; no other order would fare better.
        """
        try:
            state = self._source(order, source)
        except CheckpointError as error:
            return Outcome(order.order_id, None, 0, 0.0, str(error)), None
        outcome, result = self._execution.run(order, state)
        outcome = _as_json(outcome)
        if result is None or outcome.failure:
            return outcome, None
        try:
            data = pack(result)
        except RunError as error:
            return replace(outcome, failure=str(error), score=None), None
        self._states.write(order.order_id, data)
        return outcome, data

    def conclude(self, best: Best, *, seed: int, folder: str) -> Conclusion:
        """Test the best model and save it to `folder`, each where the learner can; a failure is part of the answer."""
        learner: Any = self._execution.learner
        flops, test, saved, failure = learner.flops, {}, False, ""
        try:
            learner.configure(best.strategy, seed=seed)
            learner.load(self._states.read(best.order_id))
            if hasattr(learner, "test"):
                test = _plain(learner.test())
            if hasattr(learner, "save"):
                Path(folder).mkdir(parents=True, exist_ok=True)
                learner.save(folder)
                saved = True
        except Exception as error:
            failure = one_line(error)
        return Conclusion(test, learner.flops - flops, saved, failure)

    def _source(self, order: Order, data: bytes | None) -> State | None:
        if order.source is None or self._execution.holds == order.source:
            return None
        return self._states.read(order.source) if data is None else unpack(data)


def _as_json(outcome: Outcome) -> Outcome:
    """Return `outcome` with plain numbers; a score that is none makes it a failure."""
    score, failure = outcome.score, outcome.failure
    if not failure and (score is None or not math.isfinite(score)):
        failure = f"its score is {score}; a finite number is needed"
    number = None if failure or score is None else float(score)
    return replace(outcome, score=number, failure=failure, flops=int(outcome.flops), metrics=_plain(outcome.metrics))


def _plain(value: Any) -> Any:
    """Return `value` as JSON; a number that is not finite becomes None, an array a list."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
