"""Asynchronous successive halving (arXiv:1810.05934) inside a manager, with new strategies proposed from evidence.

An agent without a model first looks, from the highest rung down, for a waiting model that may train on; where there is
none it begins a new one. Managers are brackets: manager m looks at models for the first time at rung m, so that one
manager is quick to drop what starts badly and the next gives slow starters time (as Hyperband, arXiv:1603.06560).

What managers learn reaches others one way: a proposal rests on scores of any manager, but only at the proposer's own
first rung or later. So what looks good after a few steps never steers a manager that waits longer.
"""

from typing import Any

from hsokv_ray.swarm.agent import Agent, Plan
from hsokv_ray.swarm.manager import Manager
from hsokv_ray.swarm.messages import Order
from hsokv_ray.swarm.rungs import Paused, Rung
from hsokv_ray.swarm.space import Strategy

MIN_ROOM = 16


class HalvingManager(Manager):
    """Models that wait at rungs until they may train on, or are dropped."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        room = max(self.config.agents_per_manager, MIN_ROOM)
        self.rungs = [Rung(step, room) for step in self.config.rungs(self.index)]

    def plan(self, agent: Agent, others: list[Manager], *, may_begin: bool) -> Plan | None:
        for rung in reversed(self.rungs[:-1]):
            model = rung.promote(self.config.eta)
            if model:
                end_step = self.next_step(rung.step)
                return Plan("promoted", model.strategy, rung.step, end_step, model.order_id, model.ancestor)
        return self.begin(self._propose(agent)) if may_begin else None

    def took(self, agent: Agent, order: Order, score: float) -> None:
        self.evidence.add(order.strategy, order.end_step, score)
        for rung in self.rungs:
            if rung.step == order.end_step:
                rung.add(Paused(score, order.order_id, agent.strategy, agent.ancestor))
        agent.last = None  # the model waits at its rung, for whichever agent is free when its turn comes

    def failed(self, agent: Agent, order: Order) -> None:
        for rung in self.rungs:
            if rung.step == order.end_step:
                rung.add_failure()

    def needed(self) -> set[str]:
        return {model.order_id for rung in self.rungs[:-1] for model in rung.paused}

    def next_step(self, step: int) -> int:
        return next(rung.step for rung in self.rungs if rung.step > step)

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "rungs": [rung.to_json() for rung in self.rungs]}

    def load(self, values: dict[str, Any]) -> None:
        super().load(values)
        self.rungs = [Rung.from_json(rung) for rung in values["rungs"]]

    def _propose(self, agent: Agent) -> Strategy:
        anew = agent.index in self.to_resample
        self.to_resample.discard(agent.index)
        if anew or self.config.proposals == "random" or self.rng.random() < self.config.random_share:
            return self.draw()
        units = self.evidence.units(self.rungs[0].step)
        if units is None:
            return self.draw()
        if self.config.proposals == "density":
            return self.evidence.around_good(self.rng, units)
        num_good = max(int(len(units) * self.config.quantile), 1)
        return self.perturb(self.space.from_unit(units[int(self.rng.integers(num_good))]))
