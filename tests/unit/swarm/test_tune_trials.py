"""Trials and searcher without a cluster: whatever Tune does in whatever order, nothing is lost or counted twice."""

import json
from collections import deque
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from ray import tune
from ray.tune.search import Searcher

from hsokv_ray.errors import CheckpointError, ConfigError, RunError
from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.messages import Outcome
from hsokv_ray.swarm.space import Float, Space
from hsokv_ray.swarm.swarm import Swarm
from hsokv_ray.swarm.tune import SwarmSearcher
from hsokv_ray.swarm.tune.trials import Fate, Report, Trials

SPACE = Space({"x": Float(0.0, 1.0)})
CONFIGS = {
    "copy": SwarmConfig(num_managers=2, agents_per_manager=3, max_steps=12, interval_steps=2, interval_factor=2),
    "restart": SwarmConfig(num_managers=2, agents_per_manager=2, max_steps=9, exploit="restart", num_trials=12),
    "none": SwarmConfig(num_managers=1, agents_per_manager=3, max_steps=4, exploit="none", num_trials=6),
}


class Tune:
    """Does to `Trials` what Tune's controller does, in an order drawn by `rng`; keeps its own account of the work."""

    def __init__(self, trials: Trials, rng: np.random.Generator) -> None:
        self.trials, self.rng = trials, rng
        self.running: dict[str, float] = {}
        """Trial -> steps its model has trained."""
        self.paused: dict[str, float] = {}
        self.saved: dict[str, float] = {}
        self.num_begun = 0
        self.steps_done = 0

    def start(self) -> None:
        trial = f"t{self.num_begun}"
        order = self.trials.begin(trial)
        if order is not None:
            self.num_begun += 1
            self.running[trial] = self.saved[trial] = order.begin_step
            return
        paused = self.trials.next_paused()
        if paused in self.paused:
            self.trials.resume()
            order = self.trials.seats[paused].order
            assert order is not None
            self.running[paused] = self.saved[paused] = order.begin_step
            del self.paused[paused]

    def step(self, *, is_lost: bool = False) -> None:
        trial = sorted(self.running)[int(self.rng.integers(len(self.running)))]
        if is_lost:
            self.running[trial] = self.saved[trial]
            return
        self.running[trial] += 1
        self.steps_done += 1
        time = self.running[trial]
        score = float(np.cos(sum(trial.encode()) + time))
        fate = self.trials.report(trial, Report(time, score, None, 0.0, float(self.steps_done)))
        order = self.trials.seats[trial].order
        if fate is Fate.GO_ON:
            if order and order.begin_step == time:
                self.saved[trial] = time
            return
        del self.running[trial]
        if fate is Fate.STOP:
            self.trials.ended(trial, None)
        else:
            self.paused[trial] = time

    def fail(self) -> None:
        trial = sorted(self.running)[int(self.rng.integers(len(self.running)))]
        del self.running[trial]
        self.trials.failed(trial, "told to")

    def clean(self) -> None:
        for trial in self.trials.done_with():
            self.paused.pop(trial)
            self.trials.ended(trial, None)


@hypothesis.given(
    exploit=st.sampled_from(sorted(CONFIGS)),
    seed=st.integers(0, 1000),
    room=st.one_of(st.none(), st.integers(1, 4)),
    accidents=st.booleans(),
)
@hypothesis.example(exploit="copy", seed=409, room=None, accidents=True)  # one order is lost until it has failed
@hypothesis.settings(max_examples=60)
def test_every_order_is_done_in_the_end_and_all_work_is_charged_once(
    exploit: str, seed: int, room: int | None, accidents: bool
) -> None:
    rng = np.random.default_rng(seed)
    config = CONFIGS[exploit]
    here = Tune(Trials(Swarm(SPACE, config, seed=seed)), rng)
    here.trials.max_concurrent = room
    for _ in range(5000):
        if here.trials.is_finished:
            break
        chance = rng.random()
        if not here.running or chance < 0.3:
            here.start()
        elif accidents and chance < 0.33:
            here.fail()
        else:
            here.step(is_lost=accidents and chance < 0.36)
        here.clean()
        assert room is None or len(here.running) <= room
        if chance > 0.9:
            here.trials = reloaded(here.trials, seed)
    assert here.trials.is_finished
    assert here.trials.swarm.is_finished
    assert not here.running
    here.clean()
    assert not here.paused
    totals = here.trials.swarm.ledger.totals
    assert sum(totals.values()) == here.steps_done
    assert accidents or totals["useful"] == here.steps_done


def reloaded(trials: Trials, seed: int) -> Trials:
    """Return `trials` after a way through JSON."""
    other = Trials(Swarm(SPACE, trials.swarm.config, seed=seed))
    other.load(json.loads(json.dumps(trials.to_json())))
    other.max_concurrent = trials.max_concurrent
    return other


def drive(searcher: SwarmSearcher, *, until: int | None = None, begun: int = 0) -> list[Any]:
    """Do what Tune does with one trial at a time and no scheduler; return the configurations suggested."""
    seen = []
    while until is None or begun + len(seen) < until:
        trial = f"t{begun + len(seen)}"
        config = searcher.suggest(trial)
        if config in (None, Searcher.FINISHED):
            break
        seen.append(config)
        assert isinstance(config, dict)
        for step in range(1, 5):
            searcher.on_trial_result(trial, {"training_iteration": step, "loss": config["x"] + step})
        searcher.on_trial_complete(trial, {"training_iteration": 4, "loss": config["x"] + 4})
    return seen


def test_a_saved_searcher_suggests_what_the_unbroken_one_does(tmp_path: Path) -> None:
    def new() -> SwarmSearcher:
        return SwarmSearcher({"x": tune.uniform(0.0, 1.0)}, CONFIGS["none"], seed=5, metric="loss", mode="min")

    unbroken = new()
    expected = drive(unbroken)
    first = new()
    begun = drive(first, until=3)
    first.save(str(tmp_path / "state.json"))
    again = SwarmSearcher()  # space, rules, seed and metric come with the state
    again.restore(str(tmp_path / "state.json"))
    assert begun + drive(again, begun=3) == expected
    assert len(expected) == 6
    assert again.best() == unbroken.best()
    assert again.best().score == pytest.approx(min(config["x"] for config in expected) + 4)
    assert again.suggest("one more") == Searcher.FINISHED


def test_a_state_of_another_search_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "state.json")
    SwarmSearcher(SPACE, CONFIGS["none"], seed=5).save(path)
    with pytest.raises(CheckpointError, match="seed"):
        SwarmSearcher(SPACE, CONFIGS["none"], seed=6).restore(path)
    Path(path).write_text('{"version": 1, "metric": null, "mode": null, "swarm": {')
    with pytest.raises(CheckpointError, match="cannot be read"):
        SwarmSearcher(SPACE, CONFIGS["none"], seed=5).restore(path)


def test_a_searcher_without_a_space_says_where_to_give_one() -> None:
    with pytest.raises(ConfigError, match="got no search space"):
        SwarmSearcher().suggest("t0")


def test_a_result_without_the_time_attribute_says_which_keys_there_are() -> None:
    searcher = SwarmSearcher(SPACE, CONFIGS["none"], metric="loss", mode="min", time_attr="epoch")
    searcher.suggest("t0")
    with pytest.raises(RunError, match="no 'epoch' among"):
        searcher.on_trial_result("t0", {"loss": 1.0})


def test_orders_wait_first_come_first_served() -> None:
    config = SwarmConfig(num_managers=1, agents_per_manager=3, max_steps=4, interval_steps=2, min_diversity=0)
    trials, alone = Trials(Swarm(SPACE, config, seed=0)), Swarm(SPACE, config, seed=0)
    trials.max_concurrent = 1
    here = Tune(trials, np.random.default_rng(0))
    orders, expected = deque(alone.ask()), []
    while orders:
        order = orders.popleft()
        expected.append(order.order_id)
        orders.extend(alone.tell(Outcome(order.order_id, float(order.agent), 2, 0.0)))
    done = []
    while not trials.is_finished:
        if not here.running:
            here.start()
        (trial,) = here.running
        order = trials.seats[trial].order
        assert order is not None
        done.append(order.order_id)
        for step in (1, 2):
            report = Report(order.begin_step + step, float(order.agent), None, 0.0, float(len(done)))
            fate = trials.report(trial, report)
        if fate is not Fate.GO_ON:  # where it is, its next order was the first in the queue
            here.paused[trial] = here.running.pop(trial)
        here.clean()
    assert done == expected
