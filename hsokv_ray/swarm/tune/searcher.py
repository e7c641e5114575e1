"""The swarm as a search algorithm of Ray Tune. All state of a search is here, saved by Tune as JSON.

    searcher = SwarmSearcher({"lr": tune.loguniform(1e-4, 1e-1)}, SwarmConfig(max_steps=50, interval_steps=5), seed=0)
    tuner = tune.Tuner(
        train,
        tune_config=tune.TuneConfig(
            metric="accuracy", mode="max", search_alg=searcher, scheduler=SwarmScheduler(), num_samples=-1
        ),
    )
    tuner.fit().get_best_result()

Alone, or with another scheduler, it is a random search whose trials report to the swarm (exploit `none`); copying and
halving need `SwarmScheduler` beside it, which pauses, moves and stops trials.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ray.tune.result import TIME_THIS_ITER_S, TIME_TOTAL_S, TRAINING_ITERATION
from ray.tune.search import Searcher

from hsokv_ray.errors import CheckpointError, ConfigError, RunError
from hsokv_ray.swarm.budget import Cost
from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.messages import Best, Event
from hsokv_ray.swarm.space import Space
from hsokv_ray.swarm.swarm import Swarm
from hsokv_ray.swarm.tune.space import has_domains, nested, space_of
from hsokv_ray.swarm.tune.trials import Report, Trials

VERSION = 1


class SwarmSearcher(Searcher):
    """Asks a swarm what to train.

    Args:
        space: what is searched: a `Space`, or a dictionary of Tune's domains; None: the domains in the Tuner's
            `param_space`, or, where a state is restored, that state's.
        config: the swarm's rules; its steps are units of `time_attr`.
        seed: reproduces every decision, given the same results in the same order.
        metric, mode: as everywhere in Tune; None: those of `TuneConfig`.
        time_attr: key of the results that counts the steps a model has trained.
        flops_attr: key of the results with the FLOPs spent since the last result; where it is missing a step counts 1.
        cost: FLOPs of one step under a strategy, so that the budget is never exceeded; see `Swarm`.

    Raises:
        ConfigError: the space has a domain the swarm cannot take, or the budget is below one step.
    """

    CKPT_FILE_TMPL = "searcher-state-{}.json"

    def __init__(
        self,
        space: Space | Mapping[str, Any] | None = None,
        config: SwarmConfig | None = None,
        *,
        seed: int = 0,
        metric: str | None = None,
        mode: str | None = None,
        time_attr: str = TRAINING_ITERATION,
        flops_attr: str = "flops",
        cost: Cost | None = None,
    ) -> None:
        _check_mode(mode)
        super().__init__(metric=metric, mode=mode)
        self.config = config or SwarmConfig()
        self.seed, self.time_attr, self.flops_attr, self.cost = seed, time_attr, flops_attr, cost
        self.has_scheduler = False
        """Whether a `SwarmScheduler` carries out what the swarm decides."""
        self._max_concurrent: int | None = None
        self._trials: Trials | None = None
        if space is not None:
            self._build(space if isinstance(space, Space) else space_of(space))

    @property
    def trials(self) -> Trials:
        """Which trial does what. Raises `ConfigError`: there is no space."""
        if self._trials is None:
            raise ConfigError("SwarmSearcher: got no search space; give it one, or the Tuner's param_space domains")
        return self._trials

    @property
    def swarm(self) -> Swarm:
        """The swarm; ask it for ledger, events and diversity."""
        return self.trials.swarm

    def best(self) -> Best:
        """Return the best outcome so far, its score in the metric's own sign. Raises `RunError`: there is none."""
        best = self.swarm.best()
        return replace(best, score=self._sign * best.score)

    def events(self, since: int = 0) -> list[Event]:
        """Return the swarm's events, as `Swarm.events`; scores in them are higher-is-better."""
        return self.swarm.events(since)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        """Take metric, mode and, where none was given, the space from the Tuner."""
        if has_domains(config):
            if self._trials is not None:
                return False
            self._build(space_of(config))
        self.connect(metric, mode)
        return True

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Note how many trials may run at once; paused ones do not count, as they would for Tune's own limiter."""
        self._max_concurrent = max_concurrent
        if self._trials:
            self._trials.max_concurrent = max_concurrent
        return True

    def connect(self, metric: str | None, mode: str | None) -> None:
        """Take metric and mode where none were given. Raises `ConfigError`: unknown mode."""
        _check_mode(mode)
        self._metric = self._metric or metric
        self._mode = self._mode or mode

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the configuration of a new trial, None where the next order is not for one, or FINISHED."""
        order = self.trials.begin(trial_id) if self._has_room() else None
        if order is not None:
            return nested(order.strategy)
        return Searcher.FINISHED if self.trials.is_finished else None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Count a result; does nothing where the scheduler has done so."""
        if self.has_scheduler:
            return
        if self.config.exploit != "none":
            raise ConfigError(
                f"SwarmSearcher: exploit is {self.config.exploit!r}, which needs scheduler=SwarmScheduler(); give the "
                "TuneConfig one, or use exploit 'none'"
            )
        self.trials.report(trial_id, self.read(result))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Note that a trial has ended, or died for good. Raises `RunError`: as `Swarm.tell`."""
        seat = self.trials.seats.get(trial_id)
        if seat is None or seat.has_ended:
            return
        if error:
            self.trials.failed(trial_id, f"its trial {trial_id} died; see error.txt in its folder")
        else:
            self.trials.ended(trial_id, self.read(result) if result and self.time_attr in result else None)

    def read(self, result: Mapping[str, Any]) -> Report:
        """Return a result of a trial in the swarm's terms. Raises `RunError`: it does not say how long it trained."""
        time, score, flops = result.get(self.time_attr), result.get(self._metric or ""), result.get(self.flops_attr)
        if time is None:
            raise RunError(
                f"SwarmSearcher: a result has no {self.time_attr!r} among {sorted(result)}; report it, or give another "
                "time_attr"
            )
        return Report(
            time=float(time),
            score=None if score is None else self._sign * float(score),
            flops=None if flops is None else int(flops),
            seconds=float(result.get(TIME_THIS_ITER_S, 0.0)),
            mark=float(result.get(TIME_TOTAL_S, 0.0)),
        )

    def save(self, checkpoint_path: str) -> None:
        """Write the whole state as JSON."""
        state = {"version": VERSION, **self._identity(), **self.trials.to_json()} if self._trials else {}
        with Path(checkpoint_path).open("w", encoding="utf-8") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())

    def restore(self, checkpoint_path: str) -> None:
        """Go on where `save` was called; without a space of its own, space, rules and seed are the saved ones.

        Raises:
            CheckpointError: the file is missing or damaged, or is of another space, configuration or seed.
        """
        try:
            state = json.loads(Path(checkpoint_path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{checkpoint_path} cannot be read ({error}); give the state of a search") from None
        if not state:
            return
        if state.get("version") != VERSION:
            raise CheckpointError(f"{checkpoint_path}: got version {state.get('version')!r}, {VERSION} is needed")
        if self._trials is None:
            self._take_identity(state)
        self.connect(state["metric"], state["mode"])
        self.trials.load(state)

    def _has_room(self) -> bool:
        """Return whether one more trial may run where no scheduler stops those whose model is done."""
        live = sum(not seat.has_ended for seat in self.trials.seats.values())
        return self.has_scheduler or self._max_concurrent is None or live < self._max_concurrent

    @property
    def _sign(self) -> int:
        return -1 if self._mode == "min" else 1

    def _build(self, space: Space) -> None:
        self._trials = Trials(Swarm(space, self.config, seed=self.seed, cost=self.cost))
        self._trials.max_concurrent = self._max_concurrent

    def _identity(self) -> dict[str, Any]:
        return {"metric": self._metric, "mode": self._mode, "time_attr": self.time_attr, "flops_attr": self.flops_attr}

    def _take_identity(self, state: dict[str, Any]) -> None:
        swarm = state["swarm"]
        self.config, self.seed = SwarmConfig(**swarm["config"]), swarm["seed"]
        self.time_attr, self.flops_attr = state["time_attr"], state["flops_attr"]
        self._build(Space.from_json(swarm["space"]))


def searcher_of(search_alg: Any) -> SwarmSearcher:
    """Return the SwarmSearcher inside of Tune's wrappers. Raises `ConfigError`: there is none."""
    found = search_alg
    while found is not None and not isinstance(found, SwarmSearcher):
        found = getattr(found, "searcher", None)
    if found is None:
        raise ConfigError("SwarmScheduler: got no SwarmSearcher; give TuneConfig(search_alg=SwarmSearcher(...)) too")
    return cast(SwarmSearcher, found)


def _check_mode(mode: str | None) -> None:
    if mode not in (None, "min", "max"):
        raise ConfigError(f"SwarmSearcher: got mode {mode!r}; 'min' or 'max' is needed")
