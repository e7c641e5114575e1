"""The swarm in Ray Tune: the same decisions as the swarm alone, real copies, restore, failures, reuse of processes."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler

import hsokv_ray.swarm.tune
from hsokv_ray.config import parse
from hsokv_ray.models.presets import count_parameters, model_shape
from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.learner import State
from hsokv_ray.swarm.messages import Event, Order, Outcome
from hsokv_ray.swarm.space import Choice, Float, LogFloat, Space
from hsokv_ray.swarm.swarm import Swarm
from hsokv_ray.swarm.tune import SwarmScheduler, SwarmSearcher, hmst_trainable, task_trainable
from hsokv_ray.training.config import TrainHMSTConfig

pytestmark = pytest.mark.usefixtures("ray_cluster")

SPACE = Space({"lr": LogFloat(1e-4, 1.0), "decay": Float(0.0, 1.0), "kind": Choice(("a", "b", "c"))})
COPY = SwarmConfig(
    num_managers=1, agents_per_manager=4, max_steps=6, interval_steps=2, exploit="copy", quantile=0.25, min_diversity=0
)
MADE = {"began", "continued", "copied", "migrated", "promoted", "resampled"}
HALVING = SwarmConfig(
    num_managers=1, agents_per_manager=3, max_steps=9, min_steps=1, eta=3, exploit="restart", num_trials=9
)


def gain(strategy: dict[str, Any]) -> float:
    """What one step under a strategy adds to a model's score; above 0."""
    return 4 - abs(math.log10(strategy["lr"]) + 2) - strategy["decay"] + "abc".index(strategy["kind"]) / 10


class Adder(tune.Trainable):
    """A model is a sum over its steps, with the history of strategies that made it: a copy carries both."""

    def setup(self, config: dict[str, Any]) -> None:
        self.model: dict[str, Any] = {"score": 0.0, "history": []}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.model = {"score": 0.0, "history": []}
        return True

    def step(self) -> dict[str, Any]:
        strategy = {name: self.config[name] for name in ("lr", "decay", "kind")}
        self.model["score"] += gain(strategy)
        self.model["history"].append(strategy)
        if self.config.get("fails_at") == self.iteration + 1 and strategy["kind"] == "a":
            raise ValueError("no model of kind a may come so far")
        if self.config.get("dies_once_at") == self.iteration + 1 and not os.path.exists(self.config["marker"]):
            Path(self.config["marker"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.config.get("seconds", 0))
        score = self.model["score"] * self.config.get("sign", 1)
        return {"score": score, "history": json.dumps(self.model["history"]), "process": os.getpid()}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        Path(checkpoint_dir, "model.json").write_text(json.dumps(self.model))

    def load_checkpoint(self, checkpoint: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.model = json.loads(Path(checkpoint, "model.json").read_text())


def driven_alone(config: SwarmConfig, *, seed: int) -> Swarm:
    """Return a swarm driven by hand to its end, one order at a time, first come, first served."""
    swarm = Swarm(SPACE, config, seed=seed)
    scores: dict[str | None, float] = {None: 0.0}
    orders = deque(swarm.ask())
    while orders:
        order: Order = orders.popleft()
        score = scores[order.source]
        for _ in range(order.num_steps):
            score += gain(order.strategy)
        scores[order.order_id] = score
        orders.extend(swarm.tell(Outcome(order.order_id, score, order.num_steps, 0.0)))
    return swarm


def fit(
    folder: Path, searcher: SwarmSearcher, *, name: str = "run", constants: dict | None = None, **changes: Any
) -> Any:
    options: dict[str, Any] = {"metric": "score", "mode": "max", "max_concurrent_trials": 1, "reuse_actors": True}
    options |= {"scheduler": SwarmScheduler(), "num_samples": -1}
    run = {key: changes.pop(key) for key in ("failure_config", "stop", "checkpoint_config") if key in changes}
    trainable = changes.pop("trainable", Adder)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"CPU": 0.2}),
        param_space=constants or {},
        tune_config=tune.TuneConfig(search_alg=searcher, **(options | changes)),
        run_config=tune.RunConfig(name=name, storage_path=str(folder), verbose=0, **run),
    )
    return tuner.fit()


def ordered(swarm: Swarm) -> list[tuple[Any, ...]]:
    """Return what became of all orders' models, as order, strategy and steps, in the order the swarm decided it."""
    made = (event for event in swarm.events() if event.what in MADE)
    return [(e.what, e.order_id, e.details["source"], e.details["strategy"], e.details["end_step"]) for e in made]


def lineage(made: dict[Any, Event], order_id: str | None) -> list[dict[str, Any]]:
    """Return the strategy of each step that made the model `order_id` left."""
    if order_id is None:
        return []
    details = made[order_id].details
    steps = details["end_step"] - details["begin_step"]
    return lineage(made, details["source"]) + [details["strategy"]] * steps


def spent(folder: Path) -> int:
    """Return the steps told in the newest state that Tune saved."""
    newest = max(folder.glob("searcher-state-*.json"), default=None)
    return sum(json.loads(newest.read_text())["swarm"]["ledger"]["totals"].values()) if newest else 0


def wait_until(condition: Callable[[], bool], driver: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert driver.poll() is None, "the driver ended by itself"
        assert time.monotonic() < deadline, "nothing happened for 240 s"
        time.sleep(0.2)


@pytest.mark.parametrize("config", [COPY, HALVING], ids=["copy", "restart"])
def test_one_trial_at_a_time_makes_the_decisions_of_the_swarm_alone_in_one_process(
    tmp_path: Path, config: SwarmConfig
) -> None:
    searcher = SwarmSearcher(SPACE, config, seed=3)
    results = fit(tmp_path, searcher)
    alone = driven_alone(config, seed=3)
    assert ordered(searcher.swarm) == ordered(alone)
    assert searcher.best() == alone.best()
    assert searcher.swarm.ledger.totals == alone.ledger.totals
    assert searcher.swarm.is_finished
    assert not results.errors
    processes = {process for result in results for process in result.metrics_dataframe["process"]}
    assert len(processes) < len(ordered(alone)) / 2


def test_a_copy_carries_the_weights_of_all_its_ancestors(tmp_path: Path) -> None:
    config = COPY.model_copy(update={"max_steps": 20})  # so long that some copy some other, in whatever order they come
    searcher = SwarmSearcher(SPACE, config, seed=3)
    results = fit(tmp_path, searcher, max_concurrent_trials=3)
    made = {event.order_id: event for event in searcher.events() if event.what in MADE}
    assert any(event.what == "copied" for event in made.values())
    for result in results:
        trial_id = result.metrics["trial_id"]
        assert json.loads(result.metrics["history"]) == lineage(made, searcher.trials.seats[trial_id].holds)


def test_the_smallest_is_the_best_where_the_mode_is_min(tmp_path: Path) -> None:
    searcher = SwarmSearcher(SPACE, HALVING, seed=3)
    results = fit(tmp_path, searcher, constants={"sign": -1}, mode="min")
    alone = driven_alone(HALVING, seed=3)
    assert ordered(searcher.swarm) == ordered(alone)
    assert searcher.best().score == -alone.best().score == results.get_best_result().metrics["score"]


@pytest.mark.chaos
def test_a_search_whose_driver_was_killed_goes_on_and_counts_nothing_twice(tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    driver = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path), address],
        env={**os.environ, "TUNE_GLOBAL_CHECKPOINT_S": "0", "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(lambda: spent(tmp_path / "killed") >= 9, driver)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    before = spent(tmp_path / "killed")
    tuner = tune.Tuner.restore(str(tmp_path / "killed"), tune.with_resources(Adder, {"CPU": 0.2}))
    tuner.fit()
    searcher = SwarmSearcher()
    searcher.restore_from_dir(str(tmp_path / "killed"))
    alone = driven_alone(COPY, seed=3)
    assert before < alone.ledger.spent, "the driver ended before it was killed"
    assert searcher.swarm.is_finished
    assert ordered(searcher.swarm) == ordered(alone)
    assert searcher.best() == alone.best()
    totals = searcher.swarm.ledger.totals
    # what was repeated after the kill has its own account
    lost = sum(event.details["flops_lost"] for event in searcher.events() if event.what == "lost")
    assert totals["useful"] + totals["repeated"] + totals["wasted"] == alone.ledger.spent + lost


def test_a_trial_that_fails_costs_its_model_not_the_search(tmp_path: Path) -> None:
    searcher = SwarmSearcher(SPACE, COPY, seed=1)
    results = fit(tmp_path, searcher, constants={"fails_at": 3})
    failed = [event for event in searcher.events() if event.what == "failed"]
    assert len(failed) == results.num_errors > 0
    assert searcher.swarm.is_finished
    assert searcher.best().step == COPY.max_steps


@pytest.mark.chaos
def test_a_lost_process_is_replaced_and_its_work_charged_as_repeated(tmp_path: Path) -> None:
    searcher = SwarmSearcher(SPACE, COPY, seed=3)
    constants = {"dies_once_at": 4, "marker": str(tmp_path / "died")}
    results = fit(tmp_path, searcher, constants=constants, failure_config=tune.FailureConfig(max_failures=2))
    alone = driven_alone(COPY, seed=3)
    assert (tmp_path / "died").exists()
    assert not results.errors
    assert ordered(searcher.swarm) == ordered(alone)
    assert searcher.best() == alone.best()
    lost = [event.details["flops_lost"] for event in searcher.events() if event.what == "lost"]
    assert lost == [1]
    assert searcher.swarm.ledger.spent == alone.ledger.spent + 1


def test_another_scheduler_may_stop_trials_of_a_search_that_copies_nothing(tmp_path: Path) -> None:
    config = SwarmConfig(num_managers=1, agents_per_manager=2, max_steps=4, exploit="none", num_trials=5)
    searcher = SwarmSearcher(None, config, seed=0)
    asha = ASHAScheduler(max_t=4, grace_period=1, reduction_factor=2)
    results = fit(
        tmp_path,
        searcher,
        constants={"lr": tune.loguniform(1e-4, 1.0), "decay": tune.uniform(0, 1), "kind": tune.choice(["a", "b"])},
        scheduler=asha,
        max_concurrent_trials=2,
    )
    assert len(results) == 5
    assert searcher.swarm.is_finished
    stopped_early = [result for result in results if result.metrics["training_iteration"] < 4]
    assert stopped_early
    assert searcher.swarm.ledger.spent == sum(result.metrics["training_iteration"] for result in results)


def test_copying_without_the_scheduler_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(tune.TuneError, match=r"exploit is 'copy', which needs scheduler=SwarmScheduler\(\)"):
        fit(tmp_path, SwarmSearcher(SPACE, COPY), scheduler=None)


def test_tunes_stop_criterion_ends_models_and_the_search_goes_on_without_them(tmp_path: Path) -> None:
    searcher = SwarmSearcher(SPACE, HALVING, seed=3)
    results = fit(tmp_path, searcher, stop={"training_iteration": 3})
    assert searcher.swarm.is_finished
    assert max(result.metrics["training_iteration"] for result in results) == 3
    assert searcher.swarm.ledger.spent == sum(result.metrics["training_iteration"] for result in results)


def add_in_a_function(config: dict[str, Any]) -> None:
    """`Adder` as a function."""
    model: dict[str, Any] = {"score": 0.0, "history": []}
    if checkpoint := tune.get_checkpoint():
        with checkpoint.as_directory() as folder:
            model = json.loads(Path(folder, "model.json").read_text())
    while True:
        strategy = {name: config[name] for name in ("lr", "decay", "kind")}
        model["score"] += gain(strategy)
        model["history"].append(strategy)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "model.json").write_text(json.dumps(model))
            given = None if config.get("forgets") else tune.Checkpoint.from_directory(folder)
            tune.report({"score": model["score"], "history": json.dumps(model["history"])}, checkpoint=given)


def test_a_function_is_searched_like_a_class(tmp_path: Path) -> None:
    searcher = SwarmSearcher(SPACE, COPY, seed=3)
    results = fit(tmp_path, searcher, trainable=add_in_a_function)
    assert ordered(searcher.swarm) == ordered(driven_alone(COPY, seed=3))
    made = {event.order_id: event for event in searcher.events() if event.what in MADE}
    for result in results:
        trial_id = result.metrics["trial_id"]
        assert json.loads(result.metrics["history"]) == lineage(made, searcher.trials.seats[trial_id].holds)


def test_a_function_without_checkpoints_is_refused_where_models_are_copied(tmp_path: Path) -> None:
    with pytest.raises(tune.TuneError, match="came without a checkpoint"):
        fit(tmp_path, SwarmSearcher(SPACE, COPY), trainable=add_in_a_function, constants={"forgets": True})


class Counter:
    """A learner whose model is a vector of two numbers: steps trained, and the sum of rates it was trained by."""

    def __init__(self) -> None:
        self.model = torch.zeros(2, dtype=torch.float64)
        self.rate, self.seed, self.flops = 0.0, 0, 0

    def configure(self, strategy: dict[str, Any], *, seed: int) -> None:
        self.rate, self.seed = strategy["rate"], seed

    def reset(self) -> None:
        self.model = torch.zeros(2, dtype=torch.float64)

    def load(self, state: State) -> None:
        self.model = state.tensors["model"].clone()
        assert state.values == {"steps": int(self.model[0])}

    def train(self, num_steps: int) -> None:
        self.model += torch.tensor([num_steps, num_steps * self.rate])
        self.flops += 100 * num_steps

    def evaluate(self) -> dict[str, float]:
        return {"score": self.model[1].item(), "steps": self.model[0].item(), "process": os.getpid()}

    def state(self) -> State:
        return State({"model": self.model.clone()}, {"steps": int(self.model[0])})


@dataclass(frozen=True)
class CounterTask:
    name: str = "counter"
    space: Space = field(default_factory=lambda: Space({"rate": Float(0.0, 1.0)}))

    def learner(self) -> Counter:
        return Counter()

    def cost(self, strategy: dict[str, Any]) -> int:
        return 100


def test_a_task_of_the_swarm_is_searched_by_tune_and_its_models_are_copied_whole(tmp_path: Path) -> None:
    task = CounterTask()
    searcher = SwarmSearcher(task.space, COPY, seed=3)
    results = fit(tmp_path, searcher, trainable=task_trainable(task, steps=5))
    made = {event.order_id: event for event in searcher.events() if event.what in MADE}
    assert any(event.what == "copied" for event in made.values())
    for result in results:
        steps = lineage(made, searcher.trials.seats[result.metrics["trial_id"]].holds)
        assert result.metrics["steps"] == 5 * len(steps)
        assert result.metrics["score"] == pytest.approx(sum(5 * step["rate"] for step in steps))
    iterations = sum(event.details["end_step"] - event.details["begin_step"] for event in made.values())
    assert searcher.swarm.ledger.spent == 500 * iterations
    checkpoints = list((tmp_path / "run").rglob("checkpoint_*/*"))
    assert {path.name for path in checkpoints} == {"state.safetensors"}


def test_hmst_is_trained_in_trials_and_a_copy_goes_on_from_the_weights_of_another(tmp_path: Path) -> None:
    flags = ["--vocab-size", "300", "--seq-len", "16", "--num-experts", "2", "--batch-size", "2", "--max-steps", "4"]
    flags += ["--eval-tokens", "64", "--tokenizer-sample-bytes", "10000", "--val-split", "0.01", "--warmup-steps", "0"]
    flags += ["--source", "python://stdlib", "--output-dir", str(tmp_path), "--name", "hmst"]
    trainable = hmst_trainable(parse(TrainHMSTConfig, flags), report_every=2)
    standing, walking = 1e-12, 3e-3
    space = {"optim": {"learning_rate": tune.choice([standing, walking])}}
    config = SwarmConfig(num_managers=1, agents_per_manager=2, max_steps=4, interval_steps=2, quantile=0.5)
    # agent 0 walks, agent 1 stands, copies agent 0 and stands there: its loss is agent 0's when it was copied
    searcher = SwarmSearcher(space, config, seed=2, time_attr="step")
    results = fit(tmp_path, searcher, trainable=trainable, metric="val_loss", mode="min")
    assert not results.errors
    assert searcher.swarm.is_finished
    by_agent = {str(searcher.trials.seats[r.metrics["trial_id"]].holds)[:2]: r for r in results}
    (copied,) = [event for event in searcher.events() if event.what == "copied"]
    assert (copied.agent, copied.details["from_agent"]) == (1, 0)
    assert by_agent["a1"].config["optim"] == {"learning_rate": standing}
    frames = [by_agent[agent].metrics_dataframe for agent in ("a0", "a1")]
    donor, copier = (dict(zip(frame["step"], frame["val_loss"], strict=True)) for frame in frames)
    assert donor[4] != pytest.approx(donor[2], abs=1e-3)
    assert copier[4] == pytest.approx(donor[2], abs=1e-5), "it stands where the donor was when it was copied"
    # Tune does not always keep the row before a trial took over another's checkpoint.
    assert copier.get(2, math.inf) > donor[2]
    weights = count_parameters(model_shape(parse(TrainHMSTConfig, flags).model, vocab_size=300, seq_len=16)).active
    tokens = 2 * 16 * 8  # of 2 trials of 4 steps each
    assert searcher.swarm.ledger.spent == pytest.approx(6 * weights * tokens, rel=0.2)


def test_a_search_that_may_begin_no_more_trials_ends_with_those_it_has(tmp_path: Path) -> None:
    searcher = SwarmSearcher(SPACE, HALVING, seed=3)
    with pytest.warns(UserWarning, match="num_samples is used up"):
        results = fit(tmp_path, searcher, num_samples=3)
    assert len(results) == 3
    assert not results.errors
    assert max(result.metrics["training_iteration"] for result in results) > 1


def test_the_example_of_the_package_runs_as_it_stands(tmp_path: Path) -> None:
    found = re.search(r"```python\n(.*?)```", hsokv_ray.swarm.tune.__doc__ or "", flags=re.DOTALL)
    assert found
    example = found[1]
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert example in readme or "SwarmSearcher" not in readme
    script = tmp_path / "example.py"
    script.write_text(example)
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "RAY_ADDRESS": address, "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    last = done.stdout.splitlines()[-1]
    assert re.match(r"\d+\.\d+ Best\(order_id='a\d\.\d'", last)
    assert float(last.split()[0]) == float(re.search(r"score=([\d.]+)", last)[1])  # type: ignore[index]
    assert list((tmp_path / "ray_results").rglob("events.out.tfevents*")), "Tune's own TensorBoard files"


if __name__ == "__main__":
    ray.init(address=sys.argv[2], namespace="hsokv", log_to_driver=False)
    fit(Path(sys.argv[1]), SwarmSearcher(SPACE, COPY, seed=3), name="killed", constants={"seconds": 0.1})
