"""Swarm (H-SOKV): agents train, managers decide about their agents, the supervisor here sees to all of them.

    swarm = Swarm(KV_SPACE, SwarmConfig(max_steps=200, flops_budget=10**15), seed=0, cost=flops_per_step)
    orders = swarm.ask()
    while orders:                                   # any order of execution, any number at a time
        order = orders.pop(0)
        orders += swarm.tell(train(order))          # an Outcome
    swarm.best()

It trains nothing and knows no clock: what it decides depends on the seed, the outcomes and the order in which they are
told. Whatever is told twice counts once. `state_dict` is JSON and holds all of it.
"""

import hashlib
import math
from collections import deque
from dataclasses import replace
from typing import Any

from hsokv_ray.errors import RunError
from hsokv_ray.swarm import swarm_state
from hsokv_ray.swarm.agent import Agent, Plan
from hsokv_ray.swarm.allocation import Allocation
from hsokv_ray.swarm.budget import Budget, Cost
from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.copying import CopyingManager
from hsokv_ray.swarm.diversity import distinct_ancestors, strategy_entropy
from hsokv_ray.swarm.events import EventLog
from hsokv_ray.swarm.evidence import Evidence
from hsokv_ray.swarm.halving import HalvingManager
from hsokv_ray.swarm.ledger import Ledger
from hsokv_ray.swarm.manager import Manager
from hsokv_ray.swarm.messages import Best, Event, Order, Outcome
from hsokv_ray.swarm.space import Space

_MANAGERS: dict[str, type[Manager]] = {"copy": CopyingManager, "restart": HalvingManager, "none": Manager}


class Swarm:
    """The supervisor of a search.

    Args:
        space: what is searched.
        config: numbers of the rules.
        seed: reproduces every decision.
        cost: FLOPs of one step under a strategy, so that the budget is never exceeded; None: learned from what is
            reported, and exceeded by no more than the orders that run.

    Raises:
        ConfigError: the budget is below one step of the cheapest of the first strategies, or one of
            `config.first_strategies` is outside the space.
    """

    def __init__(self, space: Space, config: SwarmConfig, *, seed: int, cost: Cost | None = None) -> None:
        for strategy in config.first_strategies:
            space.check(strategy)
        self.space, self.config, self.seed = space, config, seed
        self._evidence = Evidence(space)
        make = _MANAGERS[config.exploit]
        self._managers = [make(m, space, config, self._evidence, seed=seed) for m in range(config.num_managers)]
        self._agents = [Agent(i, i // config.agents_per_manager) for i in range(config.num_agents)]
        for agent in self._agents:
            self._managers[agent.manager].joined(agent)
        self._events = EventLog(room=1000 + 8 * config.num_agents)
        self._allocation = Allocation(config)
        self._best: Best | None = None
        self._num_begun = 0
        self._num_running = 0
        self._to_hand_out: deque[int] = deque()
        self._waiting: deque[int] = deque()
        """Agents whose order the budget does not allow at present."""
        self._idle: list[deque[int]] = [deque() for _ in self._managers]
        """By manager, agents for which there is nothing to do at present."""
        plans = [(agent, self._plan(agent)) for agent in self._agents]
        minimum = min((cost(plan.strategy) for _, plan in plans if plan), default=1) if cost else 1
        self.ledger = Ledger(config.flops_budget, minimum=minimum)
        self._budget = Budget(self.ledger, cost)
        self._to_hand_out.extend(order.agent for agent, plan in plans for order in self._give(agent, plan))
        self._end_if_stuck()

    @property
    def is_finished(self) -> bool:
        """Whether no order is running and none will come."""
        return self._num_running == 0

    @property
    def orders(self) -> list[Order]:
        """Orders that were handed out or may be, and have not been told."""
        return [agent.order for agent in self._agents if agent.order and agent.is_started]

    def ask(self) -> list[Order]:
        """Return the orders that may start and were not handed out: the first ones; after `load_state_dict`, all."""
        agents = [self._agents[index] for index in self._to_hand_out]
        self._to_hand_out.clear()
        return [agent.order for agent in agents if agent.order]

    def tell(self, outcome: Outcome) -> list[Order]:
        """Count `outcome` and return the orders that follow: usually the agent's next one.

        An outcome of an order that was told before changes nothing. A failure, or a score that is no finite number,
        costs the agent its model, not the swarm its life.

        Raises:
            RunError: no such order was ever given; or all agents of a manager failed again and again.
        """
        agent = self._agent_of(outcome.order_id)
        order = agent.order if agent else None
        if agent is None or order is None:
            return []
        failure = _failure(outcome)
        self._account(agent, order, outcome.flops, "wasted" if failure else "useful")
        self._budget.observe(order.strategy, outcome.flops, order.num_steps)
        self._managers[agent.manager].num_outcomes += 1
        if failure:
            self._fail(agent, order, failure)
        else:
            assert outcome.score is not None
            self._succeed(agent, order, float(outcome.score))
        self._oversee(agent)
        return self._advance(agent)

    def lost(self, order_id: str, flops: int, *, attempt: int | None = None, interrupted: bool = False) -> Order | None:
        """Say that the worker of an order died after spending `flops`; return what its agent is to do now.

        That is the same order, next attempt; at loss `max_restarts + 1` the order has failed and another one comes.

        Args:
            attempt: which attempt was lost; one that was reported lost before changes nothing.
            interrupted: the whole search ended, not this worker; does not count towards `max_restarts`.

        Returns:
            None where the order was told already, or the budget allows no further attempt. Whatever else may start
            because of it is returned by `ask`.

        Raises:
            RunError: as `tell`.
        """
        agent = self._agent_of(order_id)
        order = agent.order if agent else None
        if agent is None or order is None:
            return None
        if attempt is not None and attempt != order.attempt:
            return order
        self._account(agent, order, flops, "wasted")
        self._log("lost", order=order, attempt=order.attempt, flops_lost=flops)
        agent.interruptions += interrupted
        losses = order.attempt - agent.interruptions
        if losses > self.config.max_restarts:
            self._fail(agent, order, f"its worker was lost {losses} times")
            started = self._advance(agent)
        else:
            agent.order = replace(order, attempt=order.attempt + 1)
            started = self._wake(self._start_or_wait(agent))
        self._to_hand_out.extend(each.agent for each in started if each.agent != agent.index)
        return next((each for each in started if each.agent == agent.index), None)

    def needed(self) -> set[str]:
        """Return the orders whose resulting states may still be asked for; all others' can be dropped."""
        sources = {agent.order.source for agent in self._agents if agent.order and agent.order.source}
        best = {self._best.order_id} if self._best else set()
        return sources.union(best, *(manager.needed() for manager in self._managers))

    def best(self) -> Best:
        """Return the best outcome so far. Raises `RunError`: there is none."""
        if self._best is None:
            raise RunError(
                f"swarm: got no score from {self._num_begun} models begun; see the failures among its events"
            )
        return self._best

    def regret(self, best_known: float) -> float:
        """Return by how much the best score falls short of `best_known`. Raises `RunError`: there is none."""
        return best_known - self.best().score

    def diversity(self) -> dict[str, Any]:
        """Return the entropy of all agents' strategies, their share of distinct ancestors, and both by manager."""
        agents = [agent for agent in self._agents if agent.strategy and not agent.has_ended]
        return {
            "entropy": strategy_entropy(self.space, [agent.strategy for agent in agents]),
            "ancestors": distinct_ancestors([agent.ancestor for agent in agents]),
            "managers": [manager.diversity() for manager in self._managers],
        }

    def events(self, since: int = 0) -> list[Event]:
        """Return the events from number `since` on; of more than 1,000 + 8 per agent the oldest are gone."""
        return self._events.since(since)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as JSON; grows with the agents, and with the scores at rungs."""
        return swarm_state.dump(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; `ask` then returns all orders that were running.

        Raises:
            CheckpointError: it is of another configuration, space or seed, or damaged.
        """
        swarm_state.fill(self, state)

    def _agent_of(self, order_id: str) -> Agent | None:
        """Return the agent whose order this is; None where the order was told before."""
        name, _, number = order_id.partition(".")
        index = int(name[1:]) if name[:1] == "a" and name[1:].isdigit() else -1
        if not (0 <= index < len(self._agents) and number.isdigit()) or int(number) > self._agents[index].num_orders:
            raise RunError(f"swarm: got an outcome of order {order_id!r}, which was never given; tell those of `ask`")
        agent = self._agents[index]
        return agent if agent.order and agent.order.order_id == order_id else None

    def _account(self, agent: Agent, order: Order, flops: int, kind: Any) -> None:
        self.ledger.charge(order.order_id, order.attempt, flops, kind)
        self._budget.release(agent.reserved)
        self._allocation.charge(agent.manager, flops)
        agent.reserved, agent.is_started = 0, False
        self._num_running -= 1

    def _succeed(self, agent: Agent, order: Order, score: float) -> None:
        agent.order, agent.failures = None, 0
        agent.last, agent.step = order.order_id, order.end_step
        if self._best is None or score > self._best.score:
            gain = score - self._best.score if self._best else 0.0
            self._allocation.gain(agent.manager, gain)
            self._best = Best(order.order_id, order.strategy, score, order.end_step, agent.index, agent.manager)
            self._log("improved", order=order, score=score, step=order.end_step)
        manager = self._managers[agent.manager]
        manager.since_migration += 1
        manager.num_restarts = 0
        manager.took(agent, order, score)

    def _fail(self, agent: Agent, order: Order, failure: str) -> None:
        agent.order, agent.last, agent.step = None, None, 0
        agent.failures += 1
        self._log("failed", order=order, failure=failure, in_a_row=agent.failures)
        manager = self._managers[agent.manager]
        manager.failed(agent, order)
        if all(each.failures for each in manager.agents.values()):
            self._restart(manager, failure)

    def _restart(self, manager: Manager, failure: str) -> None:
        done = [agent for agent in self._agents if agent.manager == manager.index and agent.has_ended]
        if manager.num_restarts >= self.config.max_restarts and any(not agent.failures for agent in done):
            for agent in manager.agents.values():  # others of this manager came to their end: no reason to lose that
                agent.failures = self.config.max_failures
            return
        if manager.num_restarts >= self.config.max_restarts:
            raise RunError(
                f"swarm: all {len(manager.agents)} agents of manager {manager.index} failed, after "
                f"{manager.num_restarts} restarts again; the last failure was: {failure}"
            )
        manager.restart()
        for agent in manager.agents.values():
            agent.failures = 0
        self._log("restarted", manager=manager.index, restarts=manager.num_restarts)

    def _oversee(self, agent: Agent) -> None:
        """Look after diversity once per round of a manager, and after who gets the agents."""
        manager = self._managers[agent.manager]
        if manager.num_outcomes % max(len(manager.agents), 2) == 0 and self.config.exploit != "none":
            diversity = manager.diversity()
            self._log("diversity", manager=manager.index, **diversity)
            if diversity["entropy"] < self.config.min_diversity:
                manager.collapse()
                self._log("collapsed", manager=manager.index, resampled=sorted(manager.to_resample))
        winner = self._allocation.decide(agent.manager, {m.index: len(m.agents) for m in self._managers})
        if winner is not None:
            manager.left(agent)
            self._managers[winner].joined(agent)
            self._log("moved", agent=agent.index, manager=winner, from_manager=manager.index)

    def _advance(self, agent: Agent) -> list[Order]:
        """Give `agent` its next order, and orders to those whom that or the last outcome made free."""
        started: list[Order] = []
        if self._is_over(agent):
            self._end(agent, "trained to its last step" if not agent.failures else "failed too often in a row")
        else:
            started += self._give(agent, self._plan(agent))
        return self._wake(started)

    def _wake(self, started: list[Order]) -> list[Order]:
        for idle in self._idle:
            while idle and (plan := self._plan(self._agents[idle[0]])):
                started += self._give(self._agents[idle.popleft()], plan)
        while self._waiting and (order := self._start(self._agents[self._waiting[0]])):
            self._waiting.popleft()
            started.append(order)
        self._end_if_stuck()
        return started

    def _is_over(self, agent: Agent) -> bool:
        done = self.config.exploit == "copy" and agent.last is not None and agent.step >= self.config.max_steps
        return done or agent.failures >= self.config.max_failures

    def _plan(self, agent: Agent) -> Plan | None:
        manager = self._managers[agent.manager]
        others = [each for each in self._managers if each is not manager]
        plan = manager.plan(agent, others, may_begin=self._may_begin())
        if plan is None or plan.what != "began":
            return plan
        self._num_begun += 1
        given = self.config.first_strategies[self._num_begun - 1 : self._num_begun]
        return replace(plan, strategy=dict(given[0])) if given else plan

    def _may_begin(self) -> bool:
        if self.config.exploit == "copy":
            return True
        unlimited = self.config.flops_budget is not None and self.config.num_trials is None
        return unlimited or self._num_begun < (self.config.num_trials or self.config.num_agents)

    def _give(self, agent: Agent, plan: Plan | None) -> list[Order]:
        """Make an order of `plan`; return it where the budget allows it now."""
        if plan is None:
            self._idle[agent.manager].append(agent.index)
            return []
        agent.num_orders += 1
        agent.interruptions = 0
        order_id = f"a{agent.index}.{agent.num_orders}"
        agent.strategy, agent.ancestor = plan.strategy, plan.ancestor or order_id
        agent.last = agent.last if agent.last == plan.source else None
        agent.order = Order(
            order_id, agent.index, agent.manager, plan.strategy, plan.begin_step, plan.end_step, plan.source,
            seed_of(self.seed, order_id),
        )  # fmt: skip
        self._log(plan.what, order=agent.order, source=plan.source, ancestor=agent.ancestor, begin_step=plan.begin_step,
                  end_step=plan.end_step, strategy=plan.strategy, **plan.details)  # fmt: skip
        return self._start_or_wait(agent)

    def _start_or_wait(self, agent: Agent) -> list[Order]:
        order = self._start(agent)
        if order is None:
            self._waiting.append(agent.index)
        return [order] if order else []

    def _start(self, agent: Agent) -> Order | None:
        """Set aside the order's FLOPs, cutting it to what the budget allows; None where that is nothing."""
        order = agent.order
        assert order is not None
        fitting = self._budget.fitting_steps(order.strategy, order.num_steps)
        if fitting == 0:
            return None
        if fitting < order.num_steps:
            order = agent.order = replace(order, end_step=order.begin_step + fitting)
            self._log("cut", order=order, end_step=order.end_step)
        agent.reserved, agent.is_started = self._budget.reserve(order.strategy, fitting), True
        self._num_running += 1
        return order

    def _end_if_stuck(self) -> None:
        """End all agents once none runs: nothing is left that could free FLOPs or a model."""
        if self._num_running:
            return
        for agent in self._agents:
            if not agent.has_ended:
                self._end(agent, "the budget is spent" if agent.order else "no model may be begun any more")
        self._waiting.clear()
        for idle in self._idle:
            idle.clear()

    def _end(self, agent: Agent, why: str) -> None:
        agent.order, agent.has_ended = None, True
        self._managers[agent.manager].left(agent)
        self._log("ended", agent=agent.index, manager=agent.manager, why=why)

    def _log(self, what: str, **details: Any) -> None:
        self._events.add(what, flops=self.ledger.spent, **details)


def _failure(outcome: Outcome) -> str:
    if outcome.failure:
        return outcome.failure
    if outcome.score is None or not math.isfinite(outcome.score):
        return f"its score is {outcome.score}; a finite number is needed"
    return ""


def seed_of(seed: int, order_id: str) -> int:
    """Return the seed of an order, in [0, 2**32), of a swarm with `seed`."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{order_id}".encode(), digest_size=4).digest(), "big")
