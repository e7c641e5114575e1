"""What the swarm becomes when parts are left out: random search, and ASHA; each written out here.

With one agent at a time nothing depends on the order of arrival; with several, the order is drawn.
"""

import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.messages import Order, Outcome
from hsokv_ray.swarm.space import Float, LogFloat, Space, Strategy
from hsokv_ray.swarm.swarm import Swarm

SPACE = Space({"x": Float(0.0, 1.0), "y": LogFloat(0.01, 1.0)})


def value(strategy: Strategy, step: int) -> float:
    """A learning curve whose order changes over time, so that halving errs."""
    return -abs(float(strategy["x"]) - 0.3) * step**0.5 - float(strategy["y"]) / step


def run(
    swarm: Swarm, world: random.Random, score: Callable[[Strategy, int], float] = value
) -> list[tuple[Order, float]]:
    done, running = [], swarm.ask()
    while running:
        order = running.pop(world.randrange(len(running)))
        done.append((order, score(order.strategy, order.end_step)))
        running += swarm.tell(Outcome(order.order_id, done[-1][1], order.num_steps, 0.0))
    assert swarm.is_finished
    return done


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), agents=st.integers(1, 5), trials=st.integers(1, 15), interval=st.integers(1, 9))
def test_without_copying_and_perturbing_it_is_random_search_of_the_same_seed(
    seed: int, agents: int, trials: int, interval: int
) -> None:
    config = SwarmConfig(
        num_managers=1, agents_per_manager=agents, interval_steps=interval, max_steps=9, exploit="none",
        num_trials=max(trials, agents),
    )  # fmt: skip
    swarm = Swarm(SPACE, config, seed=seed)
    done = run(swarm, random.Random(seed))
    rng = np.random.default_rng([seed, 0])
    drawn = [SPACE.sample(rng) for _ in range(max(trials, agents))]
    finals = {tuple(order.strategy.items()): score for order, score in done if order.end_step == 9}
    assert finals == {tuple(strategy.items()): value(strategy, 9) for strategy in drawn}
    begun = [order.strategy for order, _ in done if order.begin_step == 0]
    assert sorted(map(str, begun)) == sorted(map(str, drawn))
    assert all(order.source is None for order, _ in done if order.begin_step == 0)


@pytest.mark.parametrize("budget", [9, 10, 100])
def test_random_search_over_a_budget_spends_all_of_it(budget: int) -> None:
    config = SwarmConfig(num_managers=1, agents_per_manager=1, interval_steps=4, max_steps=9, exploit="none",
                         flops_budget=budget)  # fmt: skip
    swarm = Swarm(SPACE, config, seed=0, cost=lambda strategy: 1)
    done = run(swarm, random.Random(0))
    assert swarm.ledger.spent == budget == sum(order.num_steps for order, _ in done)
    rng = np.random.default_rng([0, 0])
    begun = [order.strategy for order, _ in done if order.begin_step == 0]
    assert begun == [SPACE.sample(rng) for _ in range(-(-budget // 9))]


def plain_asha(seed: int, budget: int, eta: int, rungs: list[int]) -> list[tuple[Strategy, int, int]]:
    """ASHA (arXiv:1810.05934, algorithm 2) with one worker: (strategy, begin, end) of all that is trained."""
    rng = np.random.default_rng([seed, 0])
    results: list[list[tuple[float, int]]] = [[] for _ in rungs]
    promoted: list[set[int]] = [set() for _ in rungs]
    strategies: list[Strategy] = []
    done = []
    while budget:
        chosen = None
        for level in reversed(range(len(rungs) - 1)):
            best_first = sorted(results[level], key=lambda each: -each[0])
            top = [trial for _, trial in best_first[: len(best_first) // eta] if trial not in promoted[level]]
            if top:
                chosen = level, top[0]
                break
        if chosen:
            level, trial = chosen
            promoted[level].add(trial)
            begin, up = rungs[level], level + 1
        else:
            strategies.append(SPACE.sample(rng))
            begin, up, trial = 0, 0, len(strategies) - 1
        end = min(rungs[up], begin + budget)
        budget -= end - begin
        done.append((strategies[trial], begin, end))
        if end == rungs[up]:
            results[up].append((value(strategies[trial], end), trial))
    return done


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), budget=st.integers(1, 500), eta=st.integers(2, 4))
def test_one_agent_that_restarts_on_random_strategies_is_asha_step_by_step(seed: int, budget: int, eta: int) -> None:
    config = SwarmConfig(num_managers=1, agents_per_manager=1, max_steps=30, min_steps=2, eta=eta, exploit="restart",
                         proposals="random", flops_budget=budget)  # fmt: skip
    swarm = Swarm(SPACE, config, seed=seed, cost=lambda strategy: 1)
    done = run(swarm, random.Random(0))
    expected = plain_asha(seed, budget, eta, config.rungs(0))
    assert [(order.strategy, order.begin_step, order.end_step) for order, _ in done] == expected


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), proposals=st.sampled_from(["random", "evolve", "density"]))
def test_a_promoted_model_goes_on_from_its_own_state_and_was_among_the_best_of_its_rung(
    seed: int, proposals: str
) -> None:
    config = SwarmConfig(num_managers=2, agents_per_manager=3, max_steps=27, exploit="restart", proposals=proposals,
                         flops_budget=2000)  # fmt: skip
    swarm = Swarm(SPACE, config, seed=seed, cost=lambda strategy: 1)
    told: dict[str, tuple[Order, float]] = {}
    running, world = swarm.ask(), random.Random(seed)
    while running:
        order = running.pop(world.randrange(len(running)))
        told[order.order_id] = order, value(order.strategy, order.end_step)
        for new in swarm.tell(Outcome(order.order_id, told[order.order_id][1], order.num_steps, 0.0)):
            running.append(new)
            if new.source is None:
                assert new.begin_step == 0
                continue
            before, score = told[new.source]
            assert (new.begin_step, new.strategy, new.manager) == (before.end_step, before.strategy, before.manager)
            rung = [s for o, s in told.values() if (o.manager, o.end_step) == (before.manager, before.end_step)]
            assert sum(each > score for each in rung) < len(rung) // 3
    sources = [order.source for order, _ in told.values() if order.source]
    assert len(sources) == len(set(sources)), "a model was promoted twice"
    first_looks = {m: {o.end_step for o, _ in told.values() if o.manager == m and o.begin_step == 0} for m in (0, 1)}
    assert first_looks[0] - {1} == set() or max(first_looks[0]) <= 1
    assert 3 in first_looks[1]
