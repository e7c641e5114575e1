"""Carries out on Tune's trials what the swarm decides: pause, take over another's model, stop, go on.

It has no state: `Tuner.restore` restores a searcher, not a scheduler (ray#30838), so everything is in the
`SwarmSearcher` of the same run, which it finds in the run's `search_alg`.
"""

import copy
import warnings
from typing import Any

from ray.train._internal.session import _TrainingResult
from ray.tune.experiment import Trial
from ray.tune.result import DEFAULT_METRIC, SHOULD_CHECKPOINT, TIME_TOTAL_S, TRAINING_ITERATION
from ray.tune.schedulers import TrialScheduler
from ray.tune.trainable import FunctionTrainable
from ray.tune.utils.util import merge_dicts

from hsokv_ray.errors import RunError
from hsokv_ray.swarm.tune.searcher import SwarmSearcher, searcher_of
from hsokv_ray.swarm.tune.space import nested
from hsokv_ray.swarm.tune.trials import Fate, Held

FEW_CHECKPOINTS = 2
"""With no more kept per trial, one may be gone before it is taken over."""


class SwarmScheduler(TrialScheduler):
    """Beside a `SwarmSearcher`: `TuneConfig(search_alg=searcher, scheduler=SwarmScheduler(), num_samples=-1)`.

    A trial that takes over another's model does so as in Tune's PopulationBasedTraining: it is paused, gets the other's
    checkpoint and a new configuration, and starts again when its turn comes.
    """

    _supports_buffered_results = False

    def __init__(self) -> None:
        super().__init__()
        self._mode: str | None = None
        self._searcher: SwarmSearcher | None = None
        self._restarting: str | None = None
        """Trial that Tune just reported dead; where it adds that one again next, it starts it anew."""

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Take metric and mode, for the searcher too: Tune tells it nothing where the Tuner has no `param_space`."""
        self._metric, self._mode = metric or DEFAULT_METRIC, mode
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Prepare a trial that is new, was restored, or is started anew after its actor was lost."""
        searcher = self._connect(tune_controller)
        is_again, self._restarting = self._restarting == trial.trial_id, None
        seat = searcher.trials.seats.get(trial.trial_id)
        if trial.is_finished():
            return
        if seat is None:
            raise RunError(f"SwarmScheduler: trial {trial.trial_id} was not made by this swarm; remove its trials")
        if is_again:
            searcher.trials.recover(trial.trial_id)
        elif seat.has_ended:
            trial.set_status(Trial.TERMINATED)
        elif not seat.is_active:
            trial.set_status(Trial.PAUSED)
        elif seat.order and seat.order.source and not trial.has_reported_at_least_once and not trial.checkpoint:
            self._begin_from_state(tune_controller, searcher, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Return what Tune is to do with a trial that reported."""
        searcher = self._connect(tune_controller)
        trials = searcher.trials
        running = sum(each.status == Trial.RUNNING for each in tune_controller.get_live_trials())
        trials.num_seen_running = max(trials.num_seen_running, running)
        fate = trials.report(trial.trial_id, searcher.read(result))
        while fate is Fate.MOVE and not self._move(tune_controller, searcher, trial):
            fate = trials.give_up(trial.trial_id, "the state it was to begin from is gone; keep more checkpoints")
        if fate is Fate.MOVE:
            return TrialScheduler.NOOP
        if fate is Fate.STOP:
            return TrialScheduler.STOP
        if fate is Fate.PAUSE:
            self._check_can_be_resumed(trial, result)
            self._configure(trial, searcher)
            return TrialScheduler.PAUSE
        self._save_if_needed(tune_controller, searcher, trial, result)
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Note that a trial died; the searcher is told where that is for good."""
        self._restarting = trial.trial_id

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """Do nothing: the searcher is told."""

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """Do nothing: the searcher is told."""

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the paused trial whose turn it is; stop those that are no longer needed."""
        trials = self._connect(tune_controller).trials
        if tune_controller.search_alg.is_finished() and (dropped := trials.stop_new()):
            warnings.warn(
                f"SwarmScheduler: num_samples is used up; {dropped} models the swarm wanted are not begun. "
                "num_samples=-1 lets it decide",
                stacklevel=2,
            )
        by_id = {trial.trial_id: trial for trial in tune_controller.get_live_trials()}
        for trial_id in trials.done_with():
            if trial_id in by_id and by_id[trial_id].status == Trial.PAUSED:
                tune_controller.stop_trial(by_id[trial_id])
        # Few trials at a time wait for resources, so that those who wait are served in their order.
        if sum(trial.status == Trial.PENDING for trial in by_id.values()) >= (trials.max_concurrent or 1):
            return None
        paused = trials.next_paused()
        if paused not in by_id or by_id[paused].status != Trial.PAUSED:
            return None  # it is still being saved
        trials.resume()
        return by_id[paused]

    def debug_string(self) -> str:
        """Return how the search stands, in one line."""
        if self._searcher is None:
            return "SwarmScheduler: nothing began yet"
        ledger = self._searcher.swarm.ledger
        return f"SwarmScheduler: {self._searcher.trials.num_active} trials running, {ledger.spent:,} FLOPs spent"

    def _connect(self, tune_controller: Any) -> SwarmSearcher:
        self._searcher = searcher = searcher_of(tune_controller.search_alg)
        searcher.has_scheduler = True
        searcher.connect(self._metric, self._mode)
        return searcher

    def _begin_from_state(self, tune_controller: Any, searcher: SwarmSearcher, trial: Trial) -> None:
        """Give a new trial the checkpoint its model begins from; end it where that is gone."""
        if not self._take_over(tune_controller, searcher, trial):
            searcher.trials.failed(trial.trial_id, "the state it was to begin from is gone; keep more checkpoints")
            trial.set_status(Trial.TERMINATED)

    def _move(self, tune_controller: Any, searcher: SwarmSearcher, trial: Trial) -> bool:
        """Pause a running trial and give it the state and the configuration of its order."""
        if not self._take_over(tune_controller, searcher, trial):
            return False
        tune_controller.pause_trial(trial, should_checkpoint=False)
        return True

    def _take_over(self, tune_controller: Any, searcher: SwarmSearcher, trial: Trial) -> bool:
        held = searcher.trials.take_over(trial.trial_id)
        found = _find(tune_controller, held) if held else None
        if found is None:
            return False
        self._warn_if_few(trial)
        self._configure(trial, searcher)
        checkpoint = _TrainingResult(copy.copy(found.checkpoint), dict(found.metrics))
        _checkpoints(trial)._latest_checkpoint_result = checkpoint
        trial.run_metadata.invalidate_cache()
        return True

    def _configure(self, trial: Trial, searcher: SwarmSearcher) -> None:
        """Give a trial that is not running the strategy of its order, where it has one."""
        order = searcher.trials.seats[trial.trial_id].order
        config = merge_dicts(trial.config, nested(order.strategy)) if order else trial.config
        if order and config != trial.config:
            trial.set_config(config)
            trial.set_experiment_tag(f"{trial.experiment_tag.partition('@')[0]}@{order.order_id}")

    def _save_if_needed(self, tune_controller: Any, searcher: SwarmSearcher, trial: Trial, result: dict) -> None:
        """Save a model that goes on, where others may take over what it is now."""
        order = searcher.trials.seats[trial.trial_id].order
        if searcher.config.exploit != "copy" or order is None or order.source not in searcher.trials.states:
            return
        is_at_end = searcher.trials.states[order.source].mark == result.get(TIME_TOTAL_S)
        if not is_at_end:
            return
        self._check_can_be_resumed(trial, result)
        every = trial.checkpoint_freq
        if not (result.get(SHOULD_CHECKPOINT) or (every and result.get(TRAINING_ITERATION, 0) % every == 0)):
            tune_controller._schedule_trial_save(trial, result=result)  # else Tune does

    def _check_can_be_resumed(self, trial: Trial, result: dict[str, Any]) -> None:
        trainable: Any = trial.get_trainable_cls()
        if issubclass(trainable, FunctionTrainable) and not result.get(SHOULD_CHECKPOINT):
            raise RunError(
                "SwarmScheduler: a result at which the swarm decides came without a checkpoint; call "
                "tune.report(metrics, checkpoint=...) there, and begin from tune.get_checkpoint()"
            )

    def _warn_if_few(self, trial: Trial) -> None:
        kept = _checkpoints(trial).checkpoint_config.num_to_keep
        if kept and kept <= FEW_CHECKPOINTS:
            warnings.warn(
                f"SwarmScheduler: CheckpointConfig(num_to_keep={kept}) may delete a checkpoint before it is taken over",
                stacklevel=2,
            )


def _checkpoints(trial: Trial) -> Any:
    return trial.run_metadata.checkpoint_manager


def _find(tune_controller: Any, held: Held) -> _TrainingResult | None:
    """Return the checkpoint of a state; waits where it is being written. None: there is none."""
    trial = next((each for each in tune_controller.get_trials() if each.trial_id == held.trial), None)
    if trial is None:
        return None
    saving, manager = trial.temporary_state.saving_to, _checkpoints(trial)
    candidates = [saving.resolve()] if saving else []
    candidates += [manager.latest_checkpoint_result, *manager.best_checkpoint_results]
    found = (each for each in candidates if each and each.checkpoint and each.metrics.get(TIME_TOTAL_S) == held.mark)
    return next(found, None)
