"""From runs to rows: means over seeds with their intervals."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hsokv_ray.evaluation.intervals import Score, over_seeds, wilson
from hsokv_ray.swarm.rollouts.account import Steps
from hsokv_ray.swarm.rollouts.messages import Place
from hsokv_ray.swarm.rollouts.reports import Evaluation, Recovery, TrainingReport


@dataclass(frozen=True)
class Run:
    """One run, and where it ran."""

    report: TrainingReport
    places: tuple[Place, ...]
    shares_cores: bool
    test_return: float | None = None
    """Mean over the test episodes."""

    @property
    def num_workers(self) -> int:
        """Workers of the run."""
        return self.report.num_workers


@dataclass(frozen=True)
class ScalingRow:
    """The same environment steps with one number of workers."""

    num_workers: int
    steps: tuple[int, ...]
    """Per seed; the same in every row."""
    seconds: Score
    steps_per_s: Score
    speed_up: Score | None
    """Time of one worker over time of these; None: some of them shared a core."""
    efficiency: Score | None
    """Speed-up over workers."""
    driver_cpu_share: float
    """CPU seconds of the driver per second: what it takes from the workers where all cores are theirs."""


@dataclass(frozen=True)
class TrainingRow:
    """Trainings with one number of workers."""

    num_workers: int
    reached: Score
    """Share of seeds whose training reached the target return."""
    seconds_to_target: Score | None
    """Over the seeds that reached it; None: none did."""
    steps_to_target: Score | None
    """Environment steps of training, likewise."""
    episodes_to_target: Score | None
    test_return: Score
    """Mean return of the best evaluated policy on test episodes, over seeds."""
    steps_per_s: Score
    """Training and evaluation."""
    wasted_share: Score
    """Steps dropped, repeated, duplicate or left over, of all."""
    steps: tuple[Steps, ...]
    """Per seed."""
    curves: tuple[tuple[Evaluation, ...], ...]
    """Per seed."""


@dataclass(frozen=True)
class RecoveryRow:
    """Runs in which a worker was killed, beside the same runs without."""

    num_workers: int
    seconds: Score | None
    """From the kill to the last lost order's result; None: a run ended before."""
    slower_by_s: Score
    """Seconds of the whole run more than without the kill."""
    repeated_share: Score
    """Steps done again, at most, of all."""
    counted_once: bool
    """Whether orders, steps and sums of returns are those of the runs without a kill."""
    recoveries: tuple[tuple[Recovery, ...], ...]
    """Per seed."""


def scaling_row(runs: Sequence[Run], count: int) -> ScalingRow:
    """Return the row of one number of workers; `runs` holds those of one worker too."""
    alone, ours = _of(runs, 1), _of(runs, count)
    ratios = [a.seconds / b.seconds for a, b in zip(alone, ours, strict=True)]
    shared = any(run.shares_cores for run in runs if run.num_workers == count)
    return ScalingRow(
        num_workers=count,
        steps=tuple(report.steps.used for report in ours),
        seconds=over_seeds([report.seconds for report in ours]),
        steps_per_s=over_seeds([report.steps_per_s for report in ours]),
        speed_up=None if shared else over_seeds(ratios),
        efficiency=None if shared else over_seeds([ratio / count for ratio in ratios]),
        driver_cpu_share=sum(r.driver_cpu_s for r in ours) / sum(r.seconds for r in ours),
    )


def training_row(runs: Sequence[Run], count: int) -> TrainingRow:
    """Return the row of one number of workers."""
    ours = _of(runs, count)
    reached = [report.reached for report in ours if report.reached is not None]
    tests = [run.test_return for run in runs if run.num_workers == count and run.test_return is not None]
    return TrainingRow(
        num_workers=count,
        reached=wilson(len(reached), len(ours)),
        seconds_to_target=_mean(each.seconds for each in reached),
        steps_to_target=_mean(each.steps for each in reached),
        episodes_to_target=_mean(each.episodes for each in reached),
        test_return=over_seeds(tests),
        steps_per_s=over_seeds([report.steps_per_s for report in ours]),
        wasted_share=over_seeds([report.steps.wasted_share for report in ours]),
        steps=tuple(report.steps for report in ours),
        curves=tuple(report.curve for report in ours),
    )


def recovery_row(killed: Sequence[Run], whole: Sequence[Run]) -> RecoveryRow:
    """Return the row of the runs with a kill, beside `whole`, the same ones without."""
    count = killed[0].num_workers
    ours, others = _of(killed, count), _of(whole, count)
    seconds = [recovery.seconds for report in ours for recovery in report.recoveries]
    known = [each for each in seconds if each is not None]
    return RecoveryRow(
        num_workers=count,
        seconds=_mean(known) if len(known) == len(seconds) else None,
        slower_by_s=over_seeds([a.seconds - b.seconds for a, b in zip(ours, others, strict=True)]),
        repeated_share=over_seeds([report.steps.repeated / report.steps.total for report in ours]),
        counted_once=[_counts(a) for a in ours] == [_counts(b) for b in others],
        recoveries=tuple(report.recoveries for report in ours),
    )


def plain(value: Any) -> Any:
    """Return nested values with NaN, which JSON does not know, as null."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _of(runs: Sequence[Run], count: int) -> list[TrainingReport]:
    """Return the reports of one number of workers in the order of their seeds."""
    return sorted((run.report for run in runs if run.num_workers == count), key=lambda report: report.seed)


def _mean(values: Iterable[float]) -> Score | None:
    known = list(values)
    return over_seeds(known) if known else None


def _counts(report: TrainingReport) -> tuple[int, int, float]:
    return report.orders, report.steps.used, report.returns_sum
