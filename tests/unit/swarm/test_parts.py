"""Rungs, evidence, diversity, migration, allocation: each against brute force or a case done by hand."""

import json
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.errors import ConfigError
from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.diversity import distinct_ancestors, strategy_entropy
from hsokv_ray.swarm.evidence import MAX_RECORDS, MAX_STEPS, Evidence
from hsokv_ray.swarm.messages import Best, Event, Order, Outcome
from hsokv_ray.swarm.rungs import Paused, Rung
from hsokv_ray.swarm.space import Choice, Float, LogFloat, Space
from hsokv_ray.swarm.swarm import Swarm

SPACE = Space({"x": Float(0.0, 1.0), "y": LogFloat(0.01, 1.0), "kind": Choice(("a", "b", "c"))})


@given(scores=st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=40), eta=st.integers(2, 4))
def test_a_rung_promotes_the_best_of_its_top_and_each_once(scores: list[int | None], eta: int) -> None:
    rung = Rung(3, room=100)
    waiting: list[tuple[int, str]] = []
    for i, score in enumerate(scores):
        if score is None:
            rung.add_failure()
        else:
            rung.add(Paused(score, f"o{i}", {}, ""))
            waiting.append((score, f"o{i}"))
        rung = Rung.from_json(json.loads(json.dumps(rung.to_json(), allow_nan=False)))
        all_scores = [-math.inf if each is None else each for each in scores[: i + 1]]
        gone = {f"o{j}" for j in range(i + 1)} - {name for _, name in waiting}
        ranked = sorted(range(i + 1), key=lambda j: (-all_scores[j], f"o{j}" not in gone, j))
        top = [f"o{j}" for j in ranked[: (i + 1) // eta]]
        expected = next((name for name in top if name in {each for _, each in waiting}), None)
        got = rung.promote(eta)
        assert (got.order_id if got else None) == expected
        waiting = [each for each in waiting if each[1] != expected]


def test_a_rung_keeps_the_best_that_wait_and_all_scores() -> None:
    rung = Rung(1, room=3)
    for i in range(10):
        rung.add(Paused(i % 7, f"o{i}", {}, ""))
    assert [model.order_id for model in rung.paused] == ["o6", "o5", "o4"]
    assert rung.scores == sorted(i % 7 for i in range(10))


def test_density_proposals_gather_where_scores_are_high_and_random_ones_do_not() -> None:
    evidence, rng = Evidence(SPACE), np.random.default_rng(0)
    for _ in range(200):
        strategy = SPACE.sample(rng)
        x, kind = float(strategy["x"]), strategy["kind"]
        evidence.add(strategy, 5, -abs(x - 0.8) + 0.3 * (kind == "b"))
    units = evidence.units(0)
    assert units is not None
    proposed = [evidence.around_good(rng, units) for _ in range(200)]
    drawn = [SPACE.sample(rng) for _ in range(200)]
    near = [np.mean([abs(float(each["x"]) - 0.8) < 0.15 for each in some]) for some in (proposed, drawn)]
    right = [np.mean([each["kind"] == "b" for each in some]) for some in (proposed, drawn)]
    assert near[0] > 0.7 > 0.45 > near[1]
    assert right[0] > 0.7 > 0.5 > right[1]
    for each in proposed:
        SPACE.check(each)


def test_evidence_is_of_the_largest_number_of_steps_that_has_enough() -> None:
    evidence, rng = Evidence(SPACE), np.random.default_rng(0)
    enough = 2 * (len(SPACE) + 1)
    assert evidence.units(0) is None
    for step, num in ((1, 50), (3, enough), (9, enough - 1)):
        for i in range(num):
            evidence.add(SPACE.sample(rng), step, float(i))
    chosen = evidence.units(1)
    assert chosen is not None
    assert len(chosen) == enough
    assert evidence.units(4) is None
    best = {"x": 0.25, "y": 0.5, "kind": "c"}
    evidence.add(best, 9, 1e9)
    top = evidence.units(4)
    assert top is not None
    assert SPACE.from_unit(top[0]) == pytest.approx(best)


def test_evidence_stays_bounded_and_keeps_what_is_best() -> None:
    evidence, rng = Evidence(SPACE), np.random.default_rng(0)
    scores = rng.permutation(2 * MAX_RECORDS).astype(float)
    for score in scores:
        evidence.add(SPACE.sample(rng), 1, score)
    for step in range(2, 2 + 2 * MAX_STEPS):
        evidence.add(SPACE.sample(rng), step, 0.0)
    records = dict(evidence.to_json()["records"])
    assert len(records) == MAX_STEPS
    assert max(records) == 1 + 2 * MAX_STEPS
    one = Evidence(SPACE)
    for score in scores:
        one.add(SPACE.sample(rng), 1, score)
    [[_, kept]] = one.to_json()["records"]
    assert len(kept) == MAX_RECORDS
    assert [-record[0] for record in kept[:100]] == sorted(scores, reverse=True)[:100]


def test_entropy_is_one_where_all_bins_are_as_full_and_zero_where_all_are_the_same() -> None:
    even = [{"x": (i + 0.5) / 5, "y": 0.01 * 100 ** ((i + 0.5) / 5), "kind": "abc"[i % 3]} for i in range(15)]
    even = [{**each, "x": (i % 5 + 0.5) / 5, "y": 0.01 * 100 ** ((i % 5 + 0.5) / 5)} for i, each in enumerate(even)]
    assert strategy_entropy(SPACE, even) == pytest.approx(1.0)
    assert strategy_entropy(SPACE, [even[0]] * 9) == 0.0
    assert strategy_entropy(SPACE, even[:1]) == 1.0
    halves = [{"x": 0.1 if i < 5 else 0.9, "y": 0.5, "kind": "a"} for i in range(10)]
    assert strategy_entropy(SPACE, halves) == pytest.approx(math.log(2) / math.log(5) / 3)
    assert distinct_ancestors(["a", "a", "b", "a"]) == 0.5
    assert distinct_ancestors([]) == 1.0


def populations(**options: Any) -> Swarm:
    """Two managers of four agents; manager 1 decides half as often as manager 0."""
    config = SwarmConfig(num_managers=2, agents_per_manager=4, interval_steps=2, interval_factor=2, max_steps=100,
                         min_diversity=0, **options)  # fmt: skip
    return Swarm(SPACE, config, seed=0)


def tell(swarm: Swarm, order: Order, score: float) -> Order:
    [new] = swarm.tell(Outcome(order.order_id, score, 1, 0.0))
    return new


@pytest.mark.parametrize("migration_every", [0, 1])
def test_a_state_from_the_slower_manager_brings_its_strategy_along(migration_every: int) -> None:
    swarm = populations(migration_every=migration_every)
    first = swarm.ask()
    for order in first[4:]:
        tell(swarm, order, 10.0 + order.agent)
    seconds = [tell(swarm, order, float(order.agent)) for order in first[:4]]
    third_quarter = tell(swarm, seconds[1], 1.0)
    best = first[7]
    if migration_every:
        assert (third_quarter.source, third_quarter.begin_step, third_quarter.strategy) == (
            best.order_id, 4, best.strategy,
        )  # fmt: skip
        [event] = [event for event in swarm.events() if event.what == "migrated" and event.agent == 1]
        assert event.details["from_manager"] == 1
    else:
        assert (third_quarter.source, third_quarter.strategy) == (seconds[1].order_id, first[1].strategy)


def test_a_state_from_the_faster_manager_gets_the_strategy_of_the_best_at_home() -> None:
    swarm = populations()
    first = swarm.ask()
    for order in first[:4]:
        tell(swarm, order, 10.0 + order.agent)
    seconds = [tell(swarm, order, float(order.agent)) for order in first[4:]]
    third_quarter = tell(swarm, seconds[1], 5.0)
    assert (third_quarter.source, third_quarter.begin_step) == (first[3].order_id, 2)
    assert third_quarter.strategy == first[7].strategy


def test_nobody_migrates_where_home_is_better_and_no_state_comes_twice() -> None:
    swarm = populations()
    first = swarm.ask()
    for order in first[4:]:
        tell(swarm, order, -order.agent)
    seconds = [tell(swarm, order, float(order.agent)) for order in first[:4]]
    assert tell(swarm, seconds[1], 1.0).source == seconds[1].order_id
    assert not any(event.what == "migrated" and event.manager == 0 for event in swarm.events())
    swarm = populations()
    first = swarm.ask()
    for order in first[4:]:
        tell(swarm, order, 10.0 + order.agent)
    running = [tell(swarm, order, float(order.agent)) for order in first[:4]]
    sources = [tell(swarm, running[1], 1.0).source]
    sources.append(tell(swarm, running[2], 0.5).source)  # now agent 2 is the second weakest but for agent 1
    taken = [source for source in sources if source and source.startswith(("a4", "a5", "a6", "a7"))]
    assert len(taken) == len(set(taken))


def test_a_collapsed_manager_gets_new_strategies_for_its_weaker_half_and_keeps_its_models() -> None:
    config = SwarmConfig(num_managers=1, agents_per_manager=8, interval_steps=1, max_steps=60, min_diversity=0.6,
                         resample_probability=0, perturb_factors=(1.0,))  # fmt: skip
    swarm, world = Swarm(SPACE, config, seed=3), random.Random(0)
    running = swarm.ask()
    while running:
        order = running.pop(0)
        running += swarm.tell(Outcome(order.order_id, world.random(), 1, 0.0))
    events = swarm.events()
    collapses = [event for event in events if event.what == "collapsed"]
    resampled = [event for event in events if event.what == "resampled"]
    assert collapses
    assert all(len(event.details["resampled"]) == 4 for event in collapses[:-1])
    assert resampled
    assert all(event.details["source"] for event in resampled)
    low = [event.details["entropy"] < 0.6 for event in events if event.what == "diversity"]
    assert sum(low) == len(collapses)


def test_the_manager_that_pays_gets_an_agent_and_none_loses_more_than_half() -> None:
    config = SwarmConfig(num_managers=2, agents_per_manager=6, max_steps=9, interval_steps=9, interval_factor=1,
                         exploit="restart", proposals="random", num_trials=100, allocation_every=10)  # fmt: skip
    swarm, running, num = Swarm(SPACE, config, seed=0), [], 0
    running += swarm.ask()
    while running:
        order = running.pop(0)
        num += 1
        score = float(num) if order.manager == 1 else 0.0
        running += swarm.tell(Outcome(order.order_id, score, order.num_steps, 0.0))
    moved = [event for event in swarm.events(0) if event.what == "moved"]
    assert [event.details["from_manager"] for event in moved] == [0, 0, 0]
    assert {event.manager for event in moved} == {1}


def test_a_copy_mode_agent_that_moves_begins_from_a_strong_one_of_its_new_manager() -> None:
    config = SwarmConfig(num_managers=2, agents_per_manager=4, max_steps=50, interval_steps=1, interval_factor=1,
                         allocation_every=8, min_diversity=0, migration_every=0)  # fmt: skip
    swarm, num = Swarm(SPACE, config, seed=0), 0
    running, given = swarm.ask(), {}
    while running:
        order = running.pop(0)
        given[order.order_id] = order
        num += 1
        score = float(num) if order.manager == 1 else -1.0
        running += swarm.tell(Outcome(order.order_id, score, order.num_steps, 0.0))
    moved = [event for event in swarm.events() if event.what == "moved"]
    assert moved
    for event in moved:
        after = next(e for e in swarm.events(event.number) if e.what == "copied" and e.agent == event.agent)
        assert given[after.details["source"]].manager == 1


@pytest.mark.parametrize(
    "message",
    [
        Order("a0.1", 0, 0, {"x": 1.5}, 0, 5, None, 7),
        Outcome("a0.1", None, 10, 0.5, "boom", {"loss": 1.0}),
        Event(3, "copied", 1, 0, "a1.2", 100, {"source": "a0.1"}),
        Best("a0.1", {"x": 1.5}, 0.5, 5, 0, 0),
    ],
)
def test_messages_survive_json(message: Any) -> None:
    assert type(message).from_json(json.loads(json.dumps(message.to_json()))) == message


def test_events_are_numbered_and_the_newest_are_kept() -> None:
    swarm = Swarm(SPACE, SwarmConfig(num_managers=1, agents_per_manager=1, interval_steps=1, max_steps=5000), seed=0)
    [order] = swarm.ask()
    seen = swarm.events()
    while not swarm.is_finished:
        order = next(iter(swarm.tell(Outcome(order.order_id, 0.0, 1, 0.0))), order)
        seen += swarm.events(since=seen[-1].number + 1)
    assert [event.number for event in seen] == list(range(len(seen)))
    kept = swarm.events()
    assert kept == seen[-len(kept) :]
    assert len(kept) == 1000 + 8


@settings(max_examples=50)
@given(min_steps=st.integers(1, 20), span=st.integers(0, 80), eta=st.integers(2, 4), manager=st.integers(0, 5))
def test_rungs_are_a_factor_apart_and_end_at_the_last_step(min_steps: int, span: int, eta: int, manager: int) -> None:
    config = SwarmConfig(min_steps=min_steps, max_steps=min_steps + span, eta=eta)
    expected = [min_steps * eta**k for k in range(10) if min_steps * eta**k < config.max_steps]
    assert config.rungs(manager) == [*expected[manager:], config.max_steps]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_steps": 50, "max_steps": 20}, "min_steps"),
        ({"perturb_factors": (0.8, 0.0)}, "perturb_factors"),
        ({"quantile": 0.7}, "quantile"),
        ({"exploit": "steal"}, "exploit"),
        ({"agents_per_manager": 0}, "agents-per-manager"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SwarmConfig(**options)
