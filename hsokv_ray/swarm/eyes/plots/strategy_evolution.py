"""What the swarm tries over time, setting by setting: numbers as points, choices as shares."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from hsokv_ray.errors import DataError
from hsokv_ray.swarm.eyes.plots import style
from hsokv_ray.swarm.eyes.record import Record
from hsokv_ray.swarm.space import Choice, LogFloat, LogInt

MAX_WINDOWS = 24
LOG_FROM = 20
"""Ratio of largest to smallest from which an axis is logarithmic, where the space is not known."""


def strategy_evolution(record: Record) -> Figure:
    """Draw every setting of the strategies tried. Raises `DataError`: nothing was tried."""
    if not len(record):
        raise DataError("strategy evolution: there is no outcome")
    names = list(record.told[0].order.strategy)
    num_columns = 3 if len(names) % 3 == 0 else min(len(names), 2)
    num_rows = math.ceil(len(names) / num_columns)
    figure = style.new_figure(height_in=1.2 + 1.6 * num_rows)
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True).ravel()
    progress_N, label = style.progress_N(record)
    points = None
    for axes, name in zip(panels, names, strict=False):
        if is_choice(record, name):
            _draw_shares(axes, record, name, progress_N)
        else:
            points = _draw_numbers(axes, record, name, progress_N)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for index in range(len(names)):
        below = index + num_columns >= len(names)
        style.dress(panels[index], xlabel=label if below else "", title="")
        panels[index].tick_params(labelbottom=below)
        _head(panels[index], names[index], has_legend=is_choice(record, names[index]))
    style.scale_progress(panels[0], progress_N)
    if points is not None:
        bar = figure.colorbar(points, ax=panels.tolist(), aspect=40, pad=0.01, ticks=[0, 0.5, 1])
        bar.ax.set_yticklabels(["worst", "median", "best"], fontsize=style.SMALL, color=style.INK)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    more = "A point is an outcome, coloured by the rank of its score; black: the best so far. Bands: share of a choice."
    return style.finish(figure, title="What the swarm tries over time", caption=style.caption(record, more))


def is_choice(record: Record, name: str) -> bool:
    """Return whether a setting is one of a few options: by the space, else by whether its values are numbers."""
    if record.space is not None:
        return isinstance(record.space.domains[name], Choice)
    return any(isinstance(told.order.strategy[name], str | bool) for told in record.told)


def shares(record: Record, name: str) -> tuple[list[object], np.ndarray, list[slice]]:
    """Return the options of a choice, their shares [options, windows], and the outcomes of each window.

    Windows hold equal numbers of outcomes.
    """
    values = [told.order.strategy[name] for told in record.told]
    domain = record.space.domains[name] if record.space is not None else None
    options = list(domain.options) if isinstance(domain, Choice) else sorted(set(values), key=str)
    bounds = np.linspace(0, len(values), min(MAX_WINDOWS, max(len(values) // 4, 1)) + 1).astype(int)
    windows = [slice(int(begin), int(end)) for begin, end in zip(bounds[:-1], bounds[1:], strict=True)]
    shares_OW = np.array([[values[window].count(option) for window in windows] for option in options], dtype=np.float64)
    return list(options), shares_OW / shares_OW.sum(axis=0), windows


def ranks_N(scores_N: np.ndarray) -> np.ndarray:
    """Return each score's rank in [0, 1], 1 the best, equal scores alike; NaN stays."""
    scores = np.unique(scores_N[np.isfinite(scores_N)])
    ranks = np.searchsorted(scores, scores_N) / max(len(scores) - 1, 1)
    return np.where(np.isfinite(scores_N), ranks, np.nan)


def _draw_numbers(axes: Axes, record: Record, name: str, progress_N: np.ndarray):
    values_N = np.array([float(told.order.strategy[name]) for told in record.told])
    ranks = ranks_N(record.scores_N)
    failed_N = np.isnan(ranks)
    axes.plot(progress_N[failed_N], values_N[failed_N], "x", color=style.COLOURS[1], markersize=4, gid="failed")
    size = float(np.clip(3000 / len(record), 2, 14))
    order = np.argsort(np.where(failed_N, -1, ranks))[failed_N.sum() :]  # the best are drawn last, above the others
    points = axes.scatter(progress_N[order], values_N[order], c=ranks[order], s=size, cmap="viridis_r", gid="values",
                          norm=Normalize(0, 1), linewidths=0)  # fmt: skip
    best_N = _setting_of_best(record, values_N)
    axes.plot(progress_N, best_N, color=style.BEST, linewidth=1.5, drawstyle="steps-post", gid="best")
    if _is_log(record, name, values_N):
        axes.set_yscale("log")
    return points


def _setting_of_best(record: Record, values_N: np.ndarray) -> np.ndarray:
    """Return the setting of the best outcome up to each, NaN where there is none yet."""
    best_N = np.nan_to_num(record.best_N, nan=-np.inf)
    improves_N = best_N > np.append(-np.inf, best_N[:-1])
    last_N = np.maximum.accumulate(np.where(improves_N, np.arange(len(record)), -1))
    return np.where(last_N >= 0, values_N[last_N], np.nan)


def _is_log(record: Record, name: str, values_N: np.ndarray) -> bool:
    if record.space is not None:
        return isinstance(record.space.domains[name], LogFloat | LogInt)
    return bool(values_N.min() > 0 and values_N.max() / values_N.min() >= LOG_FROM)


def _draw_shares(axes: Axes, record: Record, name: str, progress_N: np.ndarray) -> None:
    options, shares_OW, windows = shares(record, name)
    edges = [0.0, *(float(progress_N[window.stop - 1]) for window in windows)]
    tops_OW = np.cumsum(shares_OW, axis=0)
    for index, option in enumerate(options):
        top = np.append(tops_OW[index], tops_OW[index, -1])
        bottom = top - np.append(shares_OW[index], shares_OW[index, -1])
        axes.fill_between(edges, bottom, top, step="post", color=_band_colour(index, len(options)), label=str(option),
                          linewidth=0, gid=str(option))  # fmt: skip
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.97), ncols=min(len(options), 6), frameon=False,
                fontsize=style.SMALL, handlelength=0.9, handletextpad=0.4, columnspacing=1,
                labelcolor=style.INK)  # fmt: skip


def _band_colour(index: int, num_options: int) -> str:
    if num_options > len(style.COLOURS):
        return str(0.25 + 0.65 * index / (num_options - 1))
    return style.COLOURS[index]


def _head(axes: Axes, name: str, *, has_legend: bool) -> None:
    pad = 16 if has_legend else 5
    axes.set_title(name.replace("_", " "), loc="left", fontsize=style.NORMAL, color=style.INK, weight="bold", pad=pad)
