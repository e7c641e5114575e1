"""The supervisor under any sequence of outcomes, repetitions, losses, failures and reloads."""

import json
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hsokv_ray.errors import CheckpointError, ConfigError, RunError
from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.messages import Order, Outcome
from hsokv_ray.swarm.space import Choice, Float, LogFloat, Space
from hsokv_ray.swarm.swarm import Swarm

SPACE = Space({"x": Float(0.0, 1.0), "lr": LogFloat(1e-4, 1.0), "kind": Choice(("a", "b"))})
COST = 7


def cost(strategy: Any) -> int:
    return COST


def make(*, seed: int = 0, exact: bool = True, **options: Any) -> Swarm:
    options = {"num_managers": 2, "agents_per_manager": 3, "max_steps": 20, "interval_steps": 4,
               "interval_factor": 2, **options}  # fmt: skip
    return Swarm(SPACE, SwarmConfig(**options), seed=seed, cost=cost if exact else None)


def reloaded(swarm: Swarm, exact: bool = True) -> Swarm:
    copy = Swarm(SPACE, swarm.config, seed=swarm.seed, cost=cost if exact else None)
    copy.load_state_dict(json.loads(json.dumps(swarm.state_dict(), allow_nan=False)))
    return copy


def told(order: Order, score: float | None = 0.5, failure: str = "") -> Outcome:
    return Outcome(order.order_id, score, COST * order.num_steps, 0.1, failure)


def finish(swarm: Swarm, running: list[Order], seed: int) -> list[Any]:
    """Everything that follows, in an order and with scores that the seed draws."""
    world, trace = random.Random(seed), []
    while running:
        order = running.pop(world.randrange(len(running)))
        new = swarm.tell(told(order, world.random(), "boom" if world.random() < 0.05 else ""))
        trace.append((order, new))
        running += new
    return [*trace, swarm.ledger.totals, swarm.is_finished]


class Life(RuleBasedStateMachine):
    """Two swarms side by side: `swarm` is reloaded from its state now and then, `twin` never."""

    @initialize(
        seed=st.integers(0, 1000),
        exploit=st.sampled_from(["copy", "restart", "none"]),
        proposals=st.sampled_from(["random", "evolve", "density"]),
        budget=st.sampled_from([None, 100, 700, 4000]),
        exact=st.booleans(),
        allocation=st.sampled_from([0, 4]),
        diversity=st.sampled_from([0.0, 0.7]),
    )
    def begin(self, seed, exploit, proposals, budget, exact, allocation, diversity) -> None:
        options = {"exploit": exploit, "proposals": proposals, "flops_budget": budget, "allocation_every": allocation,
                   "min_diversity": diversity, "max_restarts": 50}  # fmt: skip
        self.exact, self.budget = exact, budget
        self.swarm, self.twin = (make(seed=seed, exact=exact, **options) for _ in range(2))
        self.running = {order.order_id: order for order in self.swarm.ask()}
        assert list(self.running.values()) == self.twin.ask()
        self.ids = set(self.running)
        self.old: list[Outcome] = []
        self.flops = 0
        self.lost = 0
        """FLOPs of lost attempts: while others run, these may take the last of the budget."""
        self.states: set[str] = set()

    def take(self, orders: list[Order], twins: list[Order]) -> None:
        assert orders == twins
        for order in orders:
            assert order.order_id not in self.ids, "an order was handed out twice"
            self.ids.add(order.order_id)
            assert order.source is None or order.source in self.states, "it begins from a state that was dropped"
            assert 0 <= order.begin_step < order.end_step <= 20
            assert (order.begin_step == 0) == (order.source is None)
            SPACE.check(order.strategy)
            self.running[order.order_id] = order

    def pick(self, at: int) -> Order:
        return self.running[sorted(self.running)[at % len(self.running)]]

    @precondition(lambda self: self.running)
    @rule(at=st.integers(0, 99), score=st.floats(-5, 5), failure=st.sampled_from(["", "", "", "out of memory"]))
    def an_order_is_told(self, at: int, score: float, failure: str) -> None:
        order = self.pick(at)
        del self.running[order.order_id]
        outcome = told(order, score, failure)
        self.flops += outcome.flops
        self.old.append(outcome)
        if not failure:
            self.states.add(order.order_id)
        self.take(self.swarm.tell(outcome), self.twin.tell(outcome))
        self.take(self.swarm.ask(), self.twin.ask())
        self.states &= self.swarm.needed()

    @precondition(lambda self: self.old)
    @rule(at=st.integers(0, 99))
    def an_outcome_is_told_again(self, at: int) -> None:
        before = self.swarm.state_dict()
        assert self.swarm.tell(self.old[at % len(self.old)]) == []
        assert self.swarm.lost(self.old[at % len(self.old)].order_id, 5) is None
        assert self.swarm.state_dict() == before

    @precondition(lambda self: self.running)
    @rule(at=st.integers(0, 99), flops=st.integers(0, 30))
    def a_worker_is_lost(self, at: int, flops: int) -> None:
        order = self.pick(at)
        del self.running[order.order_id]
        self.flops += flops
        self.lost += flops
        new = self.swarm.lost(order.order_id, flops, attempt=order.attempt)
        assert new == self.twin.lost(order.order_id, flops, attempt=order.attempt)
        if new and new.order_id == order.order_id:
            assert (new.attempt, new.source, new.seed) == (order.attempt + 1, order.source, order.seed)
            self.running[new.order_id] = new
        elif new:
            self.take([new], [new])
        self.take(self.swarm.ask(), self.twin.ask())

    @rule()
    def the_driver_is_killed(self) -> None:
        self.swarm = reloaded(self.swarm, self.exact)
        again = {order.order_id: order for order in self.swarm.ask()}
        assert again == self.running
        assert self.swarm.ask() == []

    @invariant()
    def nothing_overlaps_and_every_flop_is_counted_once(self) -> None:
        agents = [order.agent for order in self.running.values()]
        assert len(agents) == len(set(agents))
        assert self.swarm.ledger.spent == self.flops
        assert self.swarm.ledger.totals == self.twin.ledger.totals
        assert {order.order_id for order in self.swarm.orders} == set(self.running)
        assert self.swarm.is_finished == (not self.running)
        needed = self.swarm.needed()
        assert {order.source for order in self.running.values() if order.source} <= needed
        if self.exact and self.budget:
            going_on = sum(COST * order.num_steps for order in self.running.values())
            assert self.swarm.ledger.spent + going_on <= self.budget + self.lost


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("exploit", ["copy", "restart", "none"])
@pytest.mark.parametrize("cut", [0, 1, 7, 23])
def test_the_continuation_after_a_reload_equals_the_continuation_without(exploit: str, cut: int) -> None:
    for seed in range(5):
        options = {"exploit": exploit, "proposals": "density", "flops_budget": 6000, "seed": seed}
        swarm, world = make(**options), random.Random(seed)
        running = swarm.ask()
        for _ in range(cut):
            if not running:
                break
            order = running.pop(world.randrange(len(running)))
            running += swarm.tell(told(order, world.random()))
        copy = reloaded(swarm)
        assert sorted(copy.ask(), key=str) == sorted(running, key=str)
        assert finish(copy, list(running), seed) == finish(swarm, list(running), seed)
        assert copy.state_dict() == swarm.state_dict()


@pytest.mark.parametrize("exploit", ["copy", "restart", "none"])
@pytest.mark.parametrize("budget", [COST, COST * 3, 1000, 1001])
def test_a_known_cost_is_never_exceeded_and_the_budget_is_used_up(exploit: str, budget: int) -> None:
    swarm = make(exploit=exploit, flops_budget=budget, max_steps=1000, interval_steps=4)
    finish(swarm, swarm.ask(), 0)
    assert budget - COST < swarm.ledger.spent <= budget
    assert {event.details["why"] for event in swarm.events() if event.what == "ended"} == {"the budget is spent"}


def test_an_unknown_cost_is_exceeded_by_no_more_than_the_orders_that_run() -> None:
    swarm, world = make(exact=False, exploit="none", flops_budget=3000), random.Random(0)
    running, most = swarm.ask(), 0
    while running:
        order = running.pop(world.randrange(len(running)))
        flops = world.randrange(1, 3 * COST * order.num_steps)
        most = max(most, 3 * COST * 4 * (len(running) + 1))
        running += swarm.tell(Outcome(order.order_id, world.random(), flops, 0.0))
    assert swarm.ledger.spent <= 3000 + most


def test_a_budget_below_one_step_is_refused_with_the_minimum() -> None:
    with pytest.raises(ConfigError, match=f"got {COST - 1}.*at least {COST}"):
        make(flops_budget=COST - 1)


@pytest.mark.parametrize("exploit", ["copy", "restart", "none"])
@pytest.mark.parametrize("score", [math.nan, math.inf, None])
def test_an_agent_without_a_finite_score_starts_anew_and_the_swarm_says_so_and_goes_on(
    exploit: str, score: float | None
) -> None:
    swarm = make(exploit=exploit, flops_budget=5000)
    running = swarm.ask()
    victim = running.pop()
    [new] = swarm.tell(told(victim, score))
    assert (new.agent, new.begin_step, new.source) == (victim.agent, 0, None)
    assert new.strategy != victim.strategy
    [event] = [event for event in swarm.events() if event.what == "failed"]
    assert event.order_id == victim.order_id
    assert str(score) in event.details["failure"]
    assert swarm.ledger.totals["wasted"] == COST * victim.num_steps
    finish(swarm, [*running, new], 0)
    assert math.isfinite(swarm.best().score)


def test_a_failed_agent_of_a_living_population_goes_on_from_one_of_the_strongest() -> None:
    swarm = make(num_managers=1, agents_per_manager=4)
    orders = swarm.ask()
    following = [swarm.tell(told(order, float(order.agent)))[0] for order in orders]
    [new] = swarm.tell(told(following[1], None, "loss is NaN"))
    assert (new.source, new.begin_step) == (orders[3].order_id, 4)


@pytest.mark.parametrize("exploit", ["copy", "restart", "none"])
def test_a_manager_all_of_whose_agents_fail_starts_anew_and_gives_up_in_the_end(exploit: str) -> None:
    swarm = make(exploit=exploit, flops_budget=10**6, max_restarts=2, num_managers=1)
    running = swarm.ask()
    for _ in range(8):
        running += swarm.tell(told(running.pop(0), None, "no such file"))
    with pytest.raises(RunError, match="all 3 agents of manager 0 failed, after 2 restarts.*no such file") as caught:
        swarm.tell(told(running[0], None, "no such file"))
    assert "\n" not in str(caught.value)
    assert sum(event.what == "restarted" for event in swarm.events()) == 2
    assert sum(event.what == "failed" for event in swarm.events()) == 9
    with pytest.raises(RunError, match="no score"):
        swarm.best()


def test_an_agent_that_fails_for_ever_ends_while_others_go_on() -> None:
    swarm = make(exploit="none", num_managers=1, num_trials=200, max_failures=5)
    running = swarm.ask()
    while running:
        order = running.pop(0)
        running += swarm.tell(told(order, 1.0, "broken GPU" if order.agent == 1 else ""))
    ended = [event for event in swarm.events() if event.what == "ended" and event.agent == 1]
    assert ended[0].details["why"] == "failed too often in a row"
    assert swarm.best().score == 1.0


def test_an_order_lost_again_and_again_has_failed() -> None:
    swarm = make(max_restarts=2)
    first = swarm.ask()[0]
    order = swarm.lost(first.order_id, 3, attempt=1)
    assert order
    assert (order.order_id, order.attempt) == (first.order_id, 2)
    assert swarm.lost(first.order_id, 3, attempt=1) == order, "one death reported twice"
    assert swarm.lost(first.order_id, 4)
    other = swarm.lost(first.order_id, 5)
    assert other
    assert other.order_id != first.order_id
    assert swarm.ledger.totals == {"useful": 0, "wasted": 3, "repeated": 4 + 5, "evaluation": 0}


@pytest.mark.parametrize("order_id", ["a99.1", "a0.2", "b0.1", "", "a.1", "a0", "a-1.1", "a0.x"])
def test_an_order_that_was_never_given_is_refused(order_id: str) -> None:
    swarm = make()
    with pytest.raises(RunError, match="never given"):
        swarm.tell(Outcome(order_id, 1.0, 1, 0.0))


def test_a_state_of_another_search_or_a_damaged_one_is_refused() -> None:
    state = make().state_dict()
    with pytest.raises(CheckpointError, match="its seed is 0, here it is 1"):
        make(seed=1).load_state_dict(state)
    with pytest.raises(CheckpointError, match="its config"):
        make(quantile=0.5).load_state_dict(state)
    damaged = {name: value for name, value in state.items() if name != "managers"}
    with pytest.raises(CheckpointError, match="damaged"):
        make().load_state_dict(damaged)


def test_seeds_decide_everything_and_differ() -> None:
    traces = []
    for seed in (0, 0, 1):
        swarm = make(seed=seed)
        traces.append(finish(swarm, swarm.ask(), 5))
    assert traces[0] == traces[1]
    assert traces[0] != traces[2]
    assert len({order.seed for order, _ in traces[0][:-2]}) == len(traces[0]) - 2


@pytest.mark.parametrize("exploit", ["copy", "restart"])
def test_the_state_grows_at_most_linearly_with_the_agents(exploit: str) -> None:
    sizes = []
    for agents in (20, 200):
        swarm = make(exploit=exploit, agents_per_manager=agents, num_trials=4 * agents)
        finish(swarm, swarm.ask(), 0)
        state = swarm.state_dict()
        del state["events"]  # bounded by themselves: 1,000 and 8 per agent
        sizes.append(len(json.dumps(state)))
    assert sizes[1] < 11 * sizes[0]


def test_regret_is_the_distance_to_the_best_known() -> None:
    swarm = make()
    order = swarm.ask()[0]
    swarm.tell(told(order, 0.75))
    assert swarm.regret(1.0) == 0.25
    assert (swarm.best().order_id, swarm.best().step) == (order.order_id, order.end_step)


def test_given_strategies_begin_the_first_models_and_change_nothing_else() -> None:
    given = ({"x": 0.25, "lr": 0.01, "kind": "b"}, {"x": 0.75, "lr": 0.5, "kind": "a"})
    plain, led = make(exploit="none", num_trials=9), make(exploit="none", num_trials=9, first_strategies=given)
    drawn, strategies = [order.strategy for order in plain.ask()], [order.strategy for order in led.ask()]
    assert strategies == [*given, *drawn[2:]]
    later = [finish(swarm, swarm.orders, seed=3) for swarm in (reloaded(plain), reloaded(led))]
    begun = [
        [order.strategy for order, _ in trace[:-2] if order.source is None and order.strategy not in given]
        for trace in later
    ]
    assert begun[1] == [strategy for strategy in begun[0] if strategy not in drawn[:2]]


def test_a_given_strategy_outside_the_space_is_refused() -> None:
    with pytest.raises(ConfigError, match="x is 3.0"):
        make(first_strategies=({"x": 3.0, "lr": 0.01, "kind": "b"},))


def test_interruptions_of_the_whole_search_are_held_against_nobody() -> None:
    swarm = make(num_managers=1, agents_per_manager=1, max_restarts=2, exploit="none", num_trials=1)
    [order] = swarm.ask()
    for attempt in range(1, 9):
        again = swarm.lost(order.order_id, COST, attempt=attempt, interrupted=True)
        assert again is not None
        assert (again.order_id, again.attempt) == (order.order_id, attempt + 1)
        swarm = reloaded(swarm)
    assert sum(swarm.ledger.totals.values()) == 8 * COST
    for attempt in (9, 10):
        assert swarm.lost(order.order_id, COST, attempt=attempt) is not None
    swarm.lost(order.order_id, COST, attempt=11)
    assert [event.what for event in swarm.events()][-1] != "lost"
    assert any(event.what == "failed" for event in swarm.events())


def test_one_agent_that_fails_at_last_does_not_take_the_others_models_with_it() -> None:
    swarm = make(num_managers=1, agents_per_manager=3, max_restarts=1, max_failures=50)
    orders = swarm.ask()
    while orders:
        order = orders.pop(0)
        orders += swarm.tell(told(order, failure="boom") if order.agent == 2 else told(order, 0.5 + order.agent / 10))
    assert swarm.is_finished
    assert swarm.best().agent == 1


def test_copies_are_proposed_where_good_strategies_lie_dense() -> None:
    swarm = make(num_managers=1, agents_per_manager=8, proposals="density", max_steps=80, interval_steps=4)
    orders = swarm.ask()
    while orders:
        order = orders.pop(0)
        orders += swarm.tell(told(order, 1 - abs(order.strategy["x"] - 0.3)))
    explored = [e.details["strategy"]["x"] for e in swarm.events() if e.what == "copied"][-12:]
    drawn = sum(abs(x - 0.3) for x in np.random.default_rng(0).random(1000)) / 1000
    assert sum(abs(x - 0.3) for x in explored) / len(explored) < 0.7 * drawn
