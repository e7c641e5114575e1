"""The asynchronous loop: hands out orders, takes results as they come, and waits for none in particular.

Every worker always has `in_flight_per_worker` orders, so none waits for another or for the driver. A result is used
whichever version of the parameters it is about, if that is at most `max_staleness` versions old. With one worker the
order of results is that of the orders, so a run repeats exactly, on any backend.
"""

import math
import time
from collections.abc import Callable

import numpy as np

from hsokv_ray.errors import RunError
from hsokv_ray.swarm.rollouts.account import Account
from hsokv_ray.swarm.rollouts.algorithms import make_algorithm
from hsokv_ray.swarm.rollouts.config import RolloutConfig
from hsokv_ray.swarm.rollouts.messages import Backend, Done, Kind, Lost, Order, Result
from hsokv_ray.swarm.rollouts.reports import Evaluation, Loss, TrainingReport

_DRAIN_S = 30
"""Seconds to wait, after a run, for what is still under way; only to count it."""
_VICTIM = 0
"""The worker that `kill_after` kills."""


class Training:
    """One run, until the target return, a limit, or, with `num_orders`, a fixed amount of work.

    Args:
        config: what to train.
        backend: who plays.
        seed: the run's; the backend's workers must have the same.
        parameters_P: to begin with; None: drawn.
        num_orders: play exactly these many orders of training and learn nothing, so that every run of one seed does the
            very same work.
        kill_after: results after which worker 0 is killed; None: never.
        clock: seconds.
    """

    def __init__(
        self,
        config: RolloutConfig,
        backend: Backend,
        *,
        seed: int,
        parameters_P: np.ndarray | None = None,
        num_orders: int | None = None,
        kill_after: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._backend, self._seed, self._clock = config, backend, seed, clock
        self._algorithm = make_algorithm(config, seed)
        if parameters_P is not None:
            self._algorithm.parameters_P = parameters_P
        self._num_orders, self._kill_after = num_orders, kill_after
        self.account = Account()
        self._parameters: dict[int, np.ndarray] = {}
        self._version, self._next = 0, 0
        self._returns: list[float] = []
        self._curve: list[Evaluation] = []
        self._best_P: np.ndarray | None = None
        self._evaluate_next = False
        self._ordered_at: dict[int, tuple[int, int]] = {}
        self._losses: list[Loss] = []
        self._killed_s: float | None = None

    def run(self) -> TrainingReport:
        """Run to the end.

        Raises:
            RunError: no sign of any worker for `worker_timeout_s`, or a worker failed.
        """
        self._begun = self._heard_s = self._clock()
        cpu_s = time.process_time()
        self._fill()
        while not self._finished():
            for happened in self._wait(1.0):
                self._hear(happened)
        seconds, cpu_s = self._since(), time.process_time() - cpu_s
        return self._report(seconds, cpu_s, unanswered=self._drain())

    def _since(self) -> float:
        return self._clock() - self._begun

    def _wait(self, timeout_s: float) -> list[Done | Lost]:
        happened = self._backend.wait(timeout_s)
        if happened:
            self._heard_s = self._clock()
        elif self._clock() - self._heard_s > self._config.worker_timeout_s:
            raise RunError(
                f"rollouts: no sign of any worker for {self._config.worker_timeout_s:g} s (worker_timeout_s); see "
                "whether they run, or raise it"
            )
        return happened

    def _finished(self) -> bool:
        return self._ended() if self._num_orders is None else not self.account.outstanding

    def _ended(self) -> bool:
        """Whether nothing more is wanted of a run without a fixed amount of work."""
        if self._num_orders is not None:
            return False
        trained = self._trained()
        return (
            self._reached() is not None
            or trained >= self._config.max_training_steps
            or (self._since() >= self._config.max_seconds)
        )

    def _reached(self) -> Evaluation | None:
        return next((each for each in self._curve if each.mean_return >= self._config.target_return), None)

    def _trained(self) -> int:
        return self.account.steps["used"] + self.account.steps["stale"]

    def _fill(self) -> None:
        room = self._backend.num_workers * self._config.in_flight_per_worker
        while len(self.account.outstanding) < room and self._next != self._num_orders and not self._ended():
            self._order("evaluation" if self._evaluate_next else "training")

    def _order(self, kind: Kind) -> None:
        order = Order(self._next, kind, self._version)
        self._next += 1
        if kind == "evaluation":
            self._evaluate_next = False
            self._ordered_at[order.number] = self._trained(), self.account.num_episodes
        self.account.handed_out(order)
        self._parameters[order.number] = self._algorithm.parameters_P
        self._backend.submit(order, self._algorithm.parameters_P)

    def _hear(self, happened: Done | Lost) -> None:
        if isinstance(happened, Lost):
            self._again(happened)
            return
        order = self.account.take(happened.result)
        if order is None:
            return
        parameters_P = self._parameters.pop(order.number)
        if self._ended():  # it came together with the result that ended the run
            self.account.spend(happened.result, "left_over")
            return
        self._use(order, happened.result, parameters_P)
        for loss in self._losses:
            loss.answered(order.number, self._since())
        self._kill_if_due()
        self._fill()

    def _use(self, order: Order, result: Result, parameters_P: np.ndarray) -> None:
        if order.kind == "evaluation":
            self.account.spend(result, "evaluation")
            self._evaluated(order, float(np.mean(result.returns)), parameters_P)
        elif self._version - order.version > self._config.max_staleness:
            self.account.spend(result, "stale")
        else:
            self.account.spend(result, "used")
            self._returns += result.returns
            if self._num_orders is None and self._algorithm.tell(result):
                self._version += 1
                self._evaluate_next |= self._version % self._config.evaluate_every == 0

    def _evaluated(self, order: Order, mean_return: float, parameters_P: np.ndarray) -> None:
        if mean_return > max((each.mean_return for each in self._curve), default=-np.inf):
            self._best_P = parameters_P
        at = self._ordered_at.pop(order.number)
        self._curve.append(Evaluation(order.version, self._since(), *at, mean_return))

    def _again(self, lost: Lost) -> None:
        """Hand the dead worker's orders out again, before any new one."""
        now = self._since()
        orders = [order for order in lost.orders if order.number in self.account.outstanding]
        died = now
        if lost.worker == _VICTIM and self._killed_s is not None:
            died, self._killed_s = self._killed_s, None
        self._losses.append(Loss(lost.worker, lost.why, tuple(o.number for o in orders), died, now))
        for order in orders:
            again = self.account.outstanding[order.number].again()
            self.account.handed_out(again)
            self._backend.submit(again, self._parameters[order.number])

    def _kill_if_due(self) -> None:
        if self.account.num_orders == self._kill_after:
            self._killed_s = self._since()
            self._backend.kill(_VICTIM)

    def _drain(self) -> int:
        """Count what was under way as left over; return how many orders gave no result in time."""
        end, num_lost = self._clock() + _DRAIN_S, 0
        while len(self.account.outstanding) > num_lost and self._clock() < end:
            for happened in self._backend.wait(1.0):
                if isinstance(happened, Lost):
                    num_lost += len(happened.orders)
                elif self.account.take(happened.result) is not None:
                    self.account.spend(happened.result, "left_over")
        return len(self.account.outstanding)

    def _report(self, seconds: float, cpu_s: float, *, unanswered: int) -> TrainingReport:
        parameters_P = self._algorithm.parameters_P if self._best_P is None else self._best_P
        return TrainingReport(
            num_workers=self._backend.num_workers,
            seed=self._seed,
            seconds=seconds,
            steps=self.account.total(),
            orders=self.account.num_orders,
            episodes=self.account.num_episodes,
            updates=self._version,
            curve=tuple(self._curve),
            reached=self._reached(),
            recoveries=tuple(loss.recovery() for loss in self._losses),
            unanswered=unanswered,
            driver_cpu_s=cpu_s,
            returns_sum=math.fsum(self._returns),
            parameters=tuple(parameters_P.tolist()),
        )
