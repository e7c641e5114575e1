"""Models over their steps: as lines that branch where a model was copied; of many agents as bands."""

import numpy as np
from matplotlib.axes import Axes

from hsokv_ray.errors import DataError
from hsokv_ray.swarm.eyes.lineage import Lineage
from hsokv_ray.swarm.eyes.plots import style
from hsokv_ray.swarm.eyes.record import Record

MAX_AGENTS = 64
"""Agents from which on single lines would be a blot."""
BANDS = ((0.0, 1.0, "#d9e6f2", "all models"), (0.25, 0.75, "#9bbfdd", "middle half"))


def draw_models(axes: Axes, record: Record, lineage: Lineage, values_N: np.ndarray, *, digits: int = 3) -> None:
    """Draw a value of every outcome over the steps of its model, in its manager's colour, the best model's bold.

    Of more than `MAX_AGENTS` agents it draws the median and bands over all outcomes at a step instead.

    Args:
        axes: where to.
        record: the run.
        lineage: of the same run.
        values_N: a value for each outcome; NaN: none.
        digits: of the best model's last value in the legend.
    """
    if is_crowded(record):
        _draw_bands(axes, record.steps_N, values_N)
    else:
        _draw_lines(axes, record, values_N)
    _draw_best(axes, record, lineage, values_N, digits)


def is_crowded(record: Record) -> bool:
    """Return whether there are too many agents for lines of their own."""
    return len(set(record.agents_N.tolist())) > MAX_AGENTS


def how_drawn(record: Record) -> str:
    """Return what a line is, for the caption."""
    if is_crowded(record):
        return "Bands and median are over all outcomes at a step."
    return "A line is a model; it branches where another agent took it over."


def _draw_lines(axes: Axes, record: Record, values_N: np.ndarray) -> None:
    managers = sorted(set(record.managers_N.tolist()))
    alpha = float(np.clip(6 / len(set(record.agents_N.tolist())), 0.2, 0.6))
    for manager in managers:
        colour = style.COLOURS[manager % len(style.COLOURS)] if len(managers) <= len(style.COLOURS) else style.GREY
        x, y = edges(record, values_N, manager)
        line = axes.plot(x, y, ".-", color=colour, alpha=alpha, linewidth=1.0, markersize=3)[0]
        line.set_gid(f"manager {manager}")
        if len(managers) <= len(style.COLOURS):
            axes.plot([], [], color=colour, label=f"models of manager {manager}")


def _draw_bands(axes: Axes, steps_N: np.ndarray, values_N: np.ndarray) -> None:
    steps = np.unique(steps_N[np.isfinite(values_N)])
    groups = [values_N[(steps_N == step) & np.isfinite(values_N)] for step in steps]
    for low, high, colour, label in BANDS:
        lower, upper = ([np.quantile(group, q) for group in groups] for q in (low, high))
        axes.fill_between(steps, lower, upper, color=colour, linewidth=0, label=label)
    medians = [np.median(group) for group in groups]
    axes.plot(steps, medians, ".-", color=style.COLOURS[0], linewidth=1.4, label="median", gid="median")


def edges(record: Record, values_N: np.ndarray, manager: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of a manager's outcomes, each with the outcome it trained on from; NaN between two edges."""
    index = {told.order.order_id: n for n, told in enumerate(record.told)}
    x, y = [], []
    for n in np.flatnonzero(record.managers_N == manager):
        if np.isnan(values_N[n]):
            continue
        source = index.get(record.told[n].order.source or "")
        if source is not None and not np.isnan(values_N[source]):
            x.append(record.steps_N[source])
            y.append(values_N[source])
        x += [record.steps_N[n], np.nan]
        y += [values_N[n], np.nan]
    return np.array(x, dtype=np.float64), np.array(y, dtype=np.float64)


def best_line(record: Record, lineage: Lineage, values_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and values of the best model, from its beginning on."""
    assert record.best is not None
    index = {told.order.order_id: n for n, told in enumerate(record.told)}
    line = [index[order] for order in lineage.line(record.best.order.order_id) if order in index]
    line = [n for n in line if not np.isnan(values_N[n])]
    return record.steps_N[line].astype(np.float64), values_N[line]


def measured(record: Record, name: str, meaning: str) -> np.ndarray:
    """Return a metric of each outcome, float64 [N].

    Raises:
        DataError: no outcome has it.
    """
    values_N = record.metric_N(name)
    if not np.isfinite(values_N).any():
        raise DataError(f"{meaning}: none of {len(record)} outcomes has {name!r} among its metrics")
    return values_N


def _draw_best(axes: Axes, record: Record, lineage: Lineage, values_N: np.ndarray, digits: int) -> None:
    if record.best is None:
        return
    x, y = best_line(record, lineage, values_N)
    if len(x):
        label = f"the best model, at last {y[-1]:.{digits}g}"
        axes.plot(x, y, "o-", color=style.BEST, linewidth=2.2, markersize=3.5, label=label, gid="best", zorder=5)
