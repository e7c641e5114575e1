"""Population based training (arXiv:1711.09846) without barriers, and migration between managers (MF-PBT, 2506.03225).

At each outcome the agents of a manager stand in order of their last scores. One of the weakest quarter takes over state
and strategy of a random one of the strongest quarter and perturbs the strategy: the rule of Ray Tune's asynchronous
PopulationBasedTraining, ties, rounding and donors without a checkpoint included.

One of the next weakest quarter may take over the state of the best agent of the other managers, where that is better.
What strategy it gets is asymmetric: the stranger's where the stranger's manager has the longer interval, that of the
best agent at home where it has the shorter one, since what is best in the short run is not to spread.
"""

import math
from bisect import bisect_left, insort
from typing import Any

from hsokv_ray.swarm.agent import Agent, Plan
from hsokv_ray.swarm.manager import Manager
from hsokv_ray.swarm.messages import Order
from hsokv_ray.swarm.space import Strategy


class CopyingManager(Manager):
    """Truncation selection within a population of living models."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ranking: list[tuple[float, int]] = []
        """(score, agent), ascending, of agents that have reached a decision and not ended."""
        self.immigrants: dict[int, str] = {}
        """Agent -> the order whose state it took over from elsewhere, last time."""

    def plan(self, agent: Agent, others: list[Manager], *, may_begin: bool) -> Plan | None:
        if agent.index in self.to_resample:
            return self._resample(agent)
        if agent.last is None:
            donor = self._donor(with_state=True)
            return self._copy(donor) if donor else self.begin(self.draw())
        num = self._num_in_quantile()
        rank = self._rank(agent)
        if rank is not None and rank < num:
            donor = self._donor()
            return self._copy(donor) if donor and donor.last else self.go_on(agent)
        is_next = rank is not None and num <= rank < min(2 * num, len(self.ranking) - num)
        stranger = self._stranger(agent, others) if is_next else None
        return self._migrate(agent, stranger) if stranger else self.go_on(agent)

    def took(self, agent: Agent, order: Order, score: float) -> None:
        if order.end_step < self.config.min_steps:
            return
        self._forget(agent)
        agent.score = score
        if self.config.proposals == "density":
            self.evidence.add(order.strategy, order.end_step, score)
        if order.end_step < self.config.max_steps:
            insort(self.ranking, (score, agent.index))

    def failed(self, agent: Agent, order: Order) -> None:
        self._forget(agent)

    def joined(self, agent: Agent) -> None:
        super().joined(agent)
        agent.last = None  # so that it begins from one of the strongest here

    def left(self, agent: Agent) -> None:
        self._forget(agent)
        self.immigrants.pop(agent.index, None)
        super().left(agent)

    def needed(self) -> set[str]:
        return {agent.last for agent in self.agents.values() if agent.last is not None}

    def restart(self) -> None:
        super().restart()
        self.ranking.clear()
        self.immigrants.clear()

    def strong(self) -> list[int]:
        return [index for _, index in self.ranking[len(self.ranking) // 2 :]]

    def best(self, *, but_not: set[str]) -> Agent | None:
        """Return the agent with the best score whose state is not among `but_not`."""
        ranked = (self.agents[index] for _, index in reversed(self.ranking))
        return next((agent for agent in ranked if agent.last and agent.last not in but_not), None)

    def next_step(self, step: int) -> int:
        return min(max(step + self.config.interval(self.index), self.config.min_steps), self.config.max_steps)

    def to_json(self) -> dict[str, Any]:
        ranking = [index for _, index in self.ranking]
        return {**super().to_json(), "ranking": ranking, "immigrants": list(self.immigrants.items())}

    def load(self, values: dict[str, Any]) -> None:
        super().load(values)
        self.ranking = [(self._score(self.agents[index]), index) for index in values["ranking"]]
        self.immigrants = dict(values["immigrants"])

    def _resample(self, agent: Agent) -> Plan:
        self.to_resample.discard(agent.index)
        rank = self._rank(agent)
        is_weak = agent.last is None or (rank is not None and rank < self._num_in_quantile())
        state = (self._donor(with_state=True) if is_weak else None) or agent
        if state.last is None:
            return self.begin(self.draw())
        return Plan(
            "resampled", self.draw(), state.step, self.next_step(state.step), state.last, state.ancestor,
            {"from_agent": state.index},
        )  # fmt: skip

    def _copy(self, donor: Agent) -> Plan:
        details = {"from_agent": donor.index, "from_strategy": donor.strategy}
        end_step = self.next_step(donor.step)
        return Plan("copied", self._explore(donor), donor.step, end_step, donor.last, donor.ancestor, details)

    def _explore(self, donor: Agent) -> Strategy:
        if self.config.proposals == "evolve":
            return self.perturb(donor.strategy)
        units = None if self.config.proposals == "random" else self.evidence.units(0)
        return self.draw() if units is None else self.evidence.around_good(self.rng, units)

    def _migrate(self, agent: Agent, stranger: Agent) -> Plan:
        self.since_migration = 0
        assert stranger.last is not None
        self.immigrants[agent.index] = stranger.last
        here, there = self.config.interval(self.index), self.config.interval(stranger.manager)
        at_home = agent if here == there else self.agents[self.ranking[-1][1]]
        strategy = stranger.strategy if here < there else at_home.strategy
        details = {"from_agent": stranger.index, "from_manager": stranger.manager}
        end_step = self.next_step(stranger.step)
        return Plan("migrated", strategy, stranger.step, end_step, stranger.last, stranger.ancestor, details)

    def _stranger(self, agent: Agent, others: list[Manager]) -> Agent | None:
        """Return the best agent elsewhere whose state is not here yet, where it is better than `agent`."""
        if not self.config.migration_every or self.since_migration < self.config.migration_every:
            return None
        here = set(self.immigrants.values())
        best = [found for other in others if isinstance(other, CopyingManager) and (found := other.best(but_not=here))]
        stranger = max(best, key=self._score, default=None)
        return stranger if stranger and self._score(stranger) > self._score(agent) else None

    def _donor(self, *, with_state: bool = False) -> Agent | None:
        """Return a random one of the strongest agents; None where fewer than two are ranked.

        Args:
            with_state: only those that still hold the model they were scored for; one that has since taken over
                another's has nothing to give.
        """
        upper = [self.agents[index] for _, index in self.ranking[len(self.ranking) - self._num_in_quantile() :]]
        if with_state:
            upper = [agent for agent in upper if agent.last]
        return upper[int(self.rng.integers(len(upper)))] if upper else None

    def _num_in_quantile(self) -> int:
        if len(self.ranking) < 2:
            return 0
        return min(math.ceil(len(self.ranking) * self.config.quantile), len(self.ranking) // 2)

    def _rank(self, agent: Agent) -> int | None:
        if agent.score is None:
            return None
        at = bisect_left(self.ranking, (agent.score, agent.index))
        return at if at < len(self.ranking) and self.ranking[at][1] == agent.index else None

    def _forget(self, agent: Agent) -> None:
        at = self._rank(agent)
        if at is not None:
            del self.ranking[at]
        agent.score = None

    def _score(self, agent: Agent) -> float:
        assert agent.score is not None
        return agent.score
