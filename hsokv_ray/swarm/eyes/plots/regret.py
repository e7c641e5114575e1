"""What the FLOPs bought: the best score so far, or by how much it falls short of the best one known."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from hsokv_ray.errors import DataError
from hsokv_ray.swarm.eyes.plots import style
from hsokv_ray.swarm.eyes.record import Record


def regret(record: Record, *, best_known: float | None = None) -> Figure:
    """Draw the best score over the FLOPs of the whole swarm; with `best_known` the regret, on a log axis.

    Raises:
        DataError: there is no score.
    """
    if record.best is None:
        raise DataError(f"regret: none of {len(record)} outcomes has a score")
    figure = style.new_figure()
    axes = figure.add_subplot()
    progress_N, label = style.progress_N(record)
    if best_known is None:
        num_outside = _draw_best(axes, record, progress_N)
    else:
        num_outside = _draw_regret(axes, record, progress_N, best_known)
    style.scale_progress(axes, progress_N)
    what = "validation score (higher is better)" if best_known is None else "regret (lower is better)"
    style.dress(axes, xlabel=label, ylabel=what)
    style.legend(axes)
    wasted = {kind: flops for kind, flops in record.flops_by_kind.items() if kind != "useful" and flops}
    total = sum(record.flops_by_kind.values())
    more = (
        [f"Of the FLOPs {', '.join(f'{flops / total:.1%} {kind}' for kind, flops in wasted.items())}."]
        if wasted
        else []
    )
    more += [f"{style.count(num_outside, 'outcome')} outside the axis."] if num_outside else []
    return style.finish(figure, title=_title(record, progress_N, best_known), caption=style.caption(record, *more))


def _draw_best(axes: Axes, record: Record, progress_N: np.ndarray) -> int:
    axes.plot(progress_N, record.scores_N, ".", color=style.COLOURS[5], alpha=0.45, markersize=4, label="an outcome")
    axes.plot(
        progress_N,
        record.best_N,
        color=style.BEST,
        linewidth=2,
        drawstyle="steps-post",
        label="best so far",
        gid="best",
    )
    low, high, num_below = style.score_limits(record.scores_N)
    axes.set_ylim(low, high)
    return num_below


def _draw_regret(axes: Axes, record: Record, progress_N: np.ndarray, best_known: float) -> int:
    """Draw on a log axis; return how many outcomes are no worse than the best known, which it cannot show."""
    each_N, best_N = best_known - record.scores_N, best_known - record.best_N
    axes.plot(progress_N, np.where(each_N > 0, each_N, np.nan), ".", color=style.COLOURS[5], alpha=0.45, markersize=4,
              label="an outcome")  # fmt: skip
    axes.plot(
        progress_N, np.where(best_N > 0, best_N, np.nan), color=style.BEST, linewidth=2, drawstyle="steps-post",
        label=f"best so far, against {best_known:.4g}", gid="best",
    )  # fmt: skip
    if (each_N > 0).any():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter("{x:g}")
    return int((each_N <= 0).sum())


def _title(record: Record, progress_N: np.ndarray, best_known: float | None) -> str:
    """Say what the last half bought."""
    assert record.best is not None
    now, half = record.best.score, record.best_N[max(np.searchsorted(progress_N, progress_N[-1] / 2) - 1, 0)]
    value, before = (now, half) if best_known is None else (best_known - now, best_known - half)
    what = "Best score" if best_known is None else "Regret"
    was = "" if np.isnan(half) else f"; {before:.4g} half-way"
    return f"{what} {value:.4g} at the end{was}"
