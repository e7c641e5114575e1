"""A manager decides for its agents. Here is what all managers share, and the one by which all models train to the end.

A manager is told what became of an order (`took`, `failed`) and asked what an agent is to do next (`plan`). It draws
random numbers from its own stream only, so what others' agents do never changes what it draws.
"""

from typing import Any

import numpy as np

from hsokv_ray.swarm.agent import Agent, Plan
from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.diversity import distinct_ancestors, strategy_entropy
from hsokv_ray.swarm.evidence import Evidence
from hsokv_ray.swarm.messages import Order
from hsokv_ray.swarm.space import Space, Strategy


class Manager:
    """Random search: every model trains to its end, then another is drawn.

    Args:
        index: its number, from 0.
        space: what strategies are made of.
        config: the swarm's.
        evidence: shared by all managers.
        seed: the swarm's.
    """

    def __init__(self, index: int, space: Space, config: SwarmConfig, evidence: Evidence, *, seed: int) -> None:
        self.index, self.space, self.config, self.evidence = index, space, config, evidence
        self.rng = np.random.default_rng([seed, index])
        self.agents: dict[int, Agent] = {}
        self.num_outcomes = 0
        self.num_restarts = 0
        self.since_migration = 0
        self.to_resample: set[int] = set()
        """Agents whose next strategy is drawn whatever the rule would be."""

    def plan(self, agent: Agent, others: list["Manager"], *, may_begin: bool) -> Plan | None:
        """Return what `agent` is to do next; None where nothing can be done until something else happens.

        Args:
            agent: one of `agents`, without an order.
            others: the other managers.
            may_begin: whether one more model may be begun.
        """
        if agent.last is not None and agent.step < self.config.max_steps:
            return self.go_on(agent)
        return self.begin(self.draw()) if may_begin else None

    def took(self, agent: Agent, order: Order, score: float) -> None:
        """Note the score of `order`; `agent` holds its model already."""

    def failed(self, agent: Agent, order: Order) -> None:
        """Note that `order` came to nothing; `agent` holds no model."""

    def joined(self, agent: Agent) -> None:
        """Take `agent` over from another manager."""
        agent.manager = self.index
        self.agents[agent.index] = agent

    def left(self, agent: Agent) -> None:
        """Let go of `agent`, to another manager or because it ended."""
        del self.agents[agent.index]
        self.to_resample.discard(agent.index)

    def needed(self) -> set[str]:
        """Return the orders whose states this manager may still ask for."""
        return set()

    def restart(self) -> None:
        """Begin anew: all agents failed."""
        self.num_restarts += 1

    def strong(self) -> list[int]:
        """Return the agents that need no new strategy when the manager has collapsed."""
        return []

    def diversity(self) -> dict[str, float]:
        """Return the entropy of the agents' strategies and the share of distinct ancestors, both in [0, 1]."""
        agents = [agent for agent in self.agents.values() if agent.strategy]
        return {
            "entropy": strategy_entropy(self.space, [agent.strategy for agent in agents]),
            "ancestors": distinct_ancestors([agent.ancestor for agent in agents]),
        }

    def collapse(self) -> None:
        """Have strategies drawn anew for all but the strong agents: those in the better half."""
        self.to_resample = self.agents.keys() - set(self.strong())

    def draw(self) -> Strategy:
        """Draw a strategy."""
        return self.space.sample(self.rng)

    def perturb(self, strategy: Strategy) -> Strategy:
        """Return a neighbour of `strategy`."""
        return self.space.perturb(strategy, self.rng, self.config.perturb_factors, self.config.resample_probability)

    def begin(self, strategy: Strategy) -> Plan:
        """Plan a fresh model."""
        return Plan("began", strategy, 0, self.next_step(0))

    def go_on(self, agent: Agent) -> Plan:
        """Plan for the agent's model to train on as before."""
        return Plan("continued", agent.strategy, agent.step, self.next_step(agent.step), agent.last, agent.ancestor)

    def next_step(self, step: int) -> int:
        """Return the step at which a model that has trained `step` steps is looked at next."""
        return min(step + self.config.interval(self.index), self.config.max_steps)

    def to_json(self) -> dict[str, Any]:
        """Return what `load` reads; the agents are the swarm's to store."""
        return {
            "rng": self.rng.bit_generator.state,
            "num_outcomes": self.num_outcomes,
            "num_restarts": self.num_restarts,
            "since_migration": self.since_migration,
            "to_resample": sorted(self.to_resample),
        }

    def load(self, values: dict[str, Any]) -> None:
        """Take over what `to_json` returned."""
        self.rng.bit_generator.state = values["rng"]
        self.num_outcomes = values["num_outcomes"]
        self.num_restarts = values["num_restarts"]
        self.since_migration = values["since_migration"]
        self.to_resample = set(values["to_resample"])
