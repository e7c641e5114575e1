"""Which Tune trial does which order of the swarm. Pure: no Ray, no clock; its state is JSON.

A model of the swarm is a trial. Orders stand in one queue, first come, first served: those that need a new trial wait
for Tune to ask for one, those for a paused trial wait until it may run again. A trial that reaches the end of its order
is told so to the swarm, and learns what becomes of it (`Fate`).
"""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hsokv_ray.errors import CheckpointError
from hsokv_ray.swarm.messages import Order, Outcome
from hsokv_ray.swarm.swarm import Swarm


class Fate(StrEnum):
    """What becomes of a trial that reported."""

    GO_ON = "go on"
    PAUSE = "pause"
    """It keeps its model and waits: for its turn, or for the swarm to come back to it."""
    MOVE = "move"
    """It gives up its model and takes over another's, when its turn comes."""
    STOP = "stop"


@dataclass
class Seat:
    """A trial and the model in it."""

    order: Order | None = None
    """What it is to do; None: its model waits, or is done."""
    is_active: bool = False
    """Whether the order was handed out: the trial runs, or Tune is about to start it."""
    has_ended: bool = False
    """Whether Tune has ended the trial, which nothing brings back."""
    holds: str | None = None
    """Order whose result its model is; None: none, or it trains on."""
    strategy: dict[str, Any] | None = None
    """What its model was last trained by."""
    time: float | None = None
    """Newest time reported, in units of steps; None: the trial begins from a fresh model and reported nothing."""
    score: float | None = None
    """Newest score reported, higher is better."""
    flops: int = 0
    """Spent on the order's present attempt."""
    seconds: float = 0.0
    """As `flops`."""

    def take(self, report: "Report") -> None:
        """Note what the trial reported."""
        self.flops += round(report.time - (self.time or 0)) if report.flops is None else report.flops
        self.time, self.score = report.time, report.score
        self.seconds += report.seconds

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {**vars(self), "order": self.order.to_json() if self.order else None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Seat":
        """Build from what `to_json` returned."""
        return cls(**{**values, "order": _order(values["order"])})


@dataclass(frozen=True)
class Report:
    """What a trial reported, in the swarm's terms."""

    time: float
    """Steps its model has trained."""
    score: float | None
    """Higher is better; None: the metric is missing."""
    flops: int | None
    """Spent since the last report; None: each step counts 1."""
    seconds: float
    """As `flops`."""
    mark: float
    """By this the state is found among the trial's checkpoints."""


@dataclass(frozen=True)
class Held:
    """Where the state that an order left is to be found."""

    trial: str
    time: float
    mark: float


class Trials:
    """The trials of one swarm.

    Args:
        swarm: new, or restored together with this by `load`.
    """

    def __init__(self, swarm: Swarm) -> None:
        self.swarm = swarm
        self.seats: dict[str, Seat] = {}
        self.states: dict[str, Held] = {}
        """By order, those states that may still be asked for."""
        self.max_concurrent: int | None = None
        self.num_seen_running = 1
        """How many trials ran at the same time so far: there is room for that many."""
        self._of_agent: dict[int, str] = {}
        self._queue: deque[Order] = deque()
        self._enqueue(swarm.ask())

    @property
    def is_finished(self) -> bool:
        """Whether no order is left to be done."""
        return not self._queue and self.num_active == 0

    @property
    def num_active(self) -> int:
        """Trials that run, or that Tune is about to start."""
        return sum(seat.is_active for seat in self.seats.values())

    def begin(self, trial: str) -> Order | None:
        """Give the next order to the new trial `trial`; None where that order is not for a new trial, or no room is."""
        order = self._next()
        if order is None or self._seat_of(order):
            return None
        self._queue.popleft()
        source = self.states.get(order.source) if order.source else None
        self.seats[trial] = Seat(order, True, strategy=order.strategy, time=source.time if source else None)
        self._of_agent[order.agent] = trial
        return order

    def next_paused(self) -> str | None:
        """Return the paused trial whose turn it is; None where it is a new one's, or there is no room."""
        order = self._next()
        return self._seat_of(order) if order else None

    def resume(self) -> None:
        """Hand its order to the trial that `next_paused` names."""
        trial = self.next_paused()
        assert trial is not None
        self._activate(trial)

    def report(self, trial: str, report: Report) -> Fate:
        """Count what `trial` reported, tell the swarm where its order is done, and return what becomes of it.

        Raises:
            RunError: as `Swarm.tell`.
        """
        seat = self.seats[trial]
        if seat.order is None or not seat.is_active:
            return self._without_order(seat, report)
        done = seat.order
        if seat.time is not None and report.time <= seat.time and not self._lost(seat, report):
            return self._fate(trial, seat, done)
        seat.take(report)
        if report.time < done.end_step:
            return Fate.GO_ON
        self._tell(trial, seat, report.mark)
        return self._fate(trial, seat, done)

    def ended(self, trial: str, report: Report | None) -> None:
        """Note that Tune ended `trial`: a stop criterion, another scheduler, or its function returned.

        Its order counts as done, with its last score; so do, at no cost, later orders to train that model on.
        """
        seat = self.seats.get(trial)
        if seat is None or seat.has_ended:
            return
        order, seat.has_ended = seat.order, True
        if order and not seat.is_active:
            self._drop(order)
            seat.order = None
            self._enqueue([order])  # into another trial
        elif order and report and (seat.time is None or report.time > seat.time):
            seat.take(report)
            self._tell(trial, seat, report.mark)
        elif order and report and seat.score is not None:
            self._tell(trial, seat, report.mark)
        elif order:
            self.failed(trial, "its trial ended without a result")

    def failed(self, trial: str, why: str) -> None:
        """Note that `trial` died for good."""
        seat = self.seats[trial]
        order, seat.order, seat.is_active, seat.has_ended, seat.holds = seat.order, None, False, True, None
        if order is None:
            return
        self._drop(order)
        self._enqueue(self.swarm.tell(Outcome(order.order_id, None, seat.flops, seat.seconds, why)))

    def take_over(self, trial: str) -> Held | None:
        """Return the state that the order of `trial` begins from; None: a fresh model, its own, or one that is gone."""
        order = self.seats[trial].order
        return self.states.get(order.source) if order and order.source else None

    def give_up(self, trial: str, why: str) -> Fate:
        """Note that the order of `trial` cannot be done, though the trial lives; return what becomes of the trial."""
        seat = self.seats[trial]
        order = seat.order
        assert order is not None
        self._drop(order)
        seat.order, seat.is_active, seat.holds = None, False, None
        self._enqueue(self.swarm.tell(Outcome(order.order_id, None, 0, 0.0, why)))
        return self._fate(trial, seat, order)

    def recover(self, trial: str) -> None:
        """Note that Tune starts `trial` anew after its actor was lost, whether it is its turn or not."""
        if self.seats[trial].order and not self.seats[trial].is_active:
            self._activate(trial)

    def stop_new(self) -> int:
        """Drop the orders that would need new trials: Tune gives no more. Return how many there were."""
        dropped = [order for order in self._queue if not self._seat_of(order)]
        for order in dropped:
            self._drop(order)
        return len(dropped)

    def done_with(self) -> list[str]:
        """Return the paused trials to which the swarm will not come back."""
        waiting = [trial for trial, seat in self.seats.items() if not (seat.order or seat.has_ended)]
        if not waiting or self.is_finished:
            return waiting
        needed = self.swarm.needed()
        return [trial for trial in waiting if self.seats[trial].holds not in needed]

    def to_json(self) -> dict[str, Any]:
        """Return what `load` reads, the swarm included."""
        return {
            "swarm": self.swarm.state_dict(),
            "seats": {trial: seat.to_json() for trial, seat in self.seats.items()},
            "states": {order_id: vars(held) for order_id, held in self.states.items()},
            "of_agent": list(self._of_agent.items()),
            "queue": [order.to_json() for order in self._queue],
        }

    def load(self, values: dict[str, Any]) -> None:
        """Go on where `to_json` was called. Raises `CheckpointError`: of another swarm, or damaged."""
        try:
            self.swarm.load_state_dict(values["swarm"])
            self.swarm.ask()  # what it hands out again stands in the queue, or runs
            self.seats = {trial: Seat.from_json(seat) for trial, seat in values["seats"].items()}
            self.states = {order_id: Held(**held) for order_id, held in values["states"].items()}
            self._of_agent = dict(values["of_agent"])
            self._queue = deque(Order.from_json(order) for order in values["queue"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"trials: damaged state ({type(error).__name__}: {error}); use another") from None

    def _next(self) -> Order | None:
        has_room = self.max_concurrent is None or self.num_active < self.max_concurrent
        return self._queue[0] if self._queue and has_room else None

    def _activate(self, trial: str) -> None:
        """Hand its order to a trial that has one in the queue."""
        seat = self.seats[trial]
        assert seat.order is not None
        self._drop(seat.order)
        if seat.order.source != seat.holds:
            held = self.states.get(seat.order.source or "")
            seat.time = held.time if held else None
        seat.is_active, seat.holds, seat.strategy = True, None, seat.order.strategy

    def _tell(self, trial: str, seat: Seat, mark: float) -> None:
        """Tell the swarm that the order of `trial` is done."""
        order, time = seat.order, seat.time
        assert order is not None
        assert time is not None
        self._drop(order)
        outcome = Outcome(order.order_id, seat.score, seat.flops, seat.seconds)
        seat.order, seat.is_active, seat.holds, seat.flops, seat.seconds = None, False, order.order_id, 0, 0.0
        self.states[order.order_id] = Held(trial, time, mark)
        self._enqueue(self.swarm.tell(outcome))
        needed = self.swarm.needed()
        self.states = {order_id: held for order_id, held in self.states.items() if order_id in needed}

    def _enqueue(self, orders: list[Order]) -> None:
        """Put orders into the queue; answer at once those that would train a model on whose trial Tune has ended."""
        todo = deque(orders)
        while todo:
            order = todo.popleft()
            home = self._home(order)
            seat = self.seats[home] if home else None
            if home and seat and seat.has_ended:
                held = self.states[order.source or ""]
                seat.holds, self.states[order.order_id] = order.order_id, held
                todo += self.swarm.tell(Outcome(order.order_id, seat.score, 0, 0.0))
                continue
            if seat:
                seat.order = order
            self._queue.append(order)

    def _home(self, order: Order) -> str | None:
        """Return the trial that is to do `order`; None: a new one."""
        if order.source is None:
            return None
        if self.swarm.config.exploit == "restart":
            return next((trial for trial, seat in self.seats.items() if seat.holds == order.source), None)
        trial = self._of_agent.get(order.agent)
        seat = self.seats[trial] if trial else None
        if seat is None or (seat.has_ended and not _goes_on(seat, order)):
            return None
        return trial

    def _fate(self, trial: str, seat: Seat, done: Order) -> Fate:
        if seat.order is None:
            is_over = done.end_step >= self.swarm.config.max_steps or seat.holds not in self.swarm.needed()
            return Fate.STOP if is_over else Fate.PAUSE
        if seat.order.source != seat.holds:
            return Fate.MOVE
        if not _goes_on(seat, seat.order) or not self._may_go_on(seat.order):
            return Fate.PAUSE
        self._activate(trial)
        return Fate.GO_ON

    def _may_go_on(self, order: Order) -> bool:
        """Return whether there is room for `order` beside those who wait for longer."""
        if self.swarm.config.exploit == "none":
            return True
        room = self.max_concurrent or self.num_seen_running
        return self.num_active + self._queue.index(order) < room

    def _without_order(self, seat: Seat, report: Report) -> Fate:
        """Return what becomes of a trial that died while its state was saved: it comes to where it was, no further."""
        if seat.has_ended or seat.holds not in self.swarm.needed():
            return Fate.STOP
        return Fate.GO_ON if seat.time is not None and report.time < seat.time else Fate.PAUSE

    def _lost(self, seat: Seat, report: Report) -> bool:
        """Count the work that a trial begins to repeat; return whether it is to do so."""
        order = seat.order
        assert order is not None
        again = self.swarm.lost(order.order_id, seat.flops, attempt=order.attempt)
        seat.flops, seat.seconds = 0, 0.0
        if again is None or again.order_id != order.order_id:
            # What showed the loss was done for an attempt that there will not be.
            flops = 1 if report.flops is None else report.flops
            self.swarm.ledger.charge(order.order_id, order.attempt + 1, flops, "repeated")
            seat.order, seat.is_active, seat.holds = None, False, None
            self._enqueue([again] if again else [])
        else:
            # Where it began anew is not known; it did one step at least.
            seat.order, seat.time = again, report.time - 1
        self._enqueue(self.swarm.ask())
        return seat.is_active

    def _drop(self, order: Order) -> None:
        self._queue = deque(each for each in self._queue if each.order_id != order.order_id)

    def _seat_of(self, order: Order) -> str | None:
        return next((trial for trial, seat in self.seats.items() if seat.order == order), None)


def _goes_on(seat: Seat, order: Order) -> bool:
    """Return whether `order` trains the seat's own model on, by the same strategy."""
    return order.source == seat.holds and order.strategy == seat.strategy


def _order(values: dict[str, Any] | None) -> Order | None:
    return Order.from_json(values) if values else None
