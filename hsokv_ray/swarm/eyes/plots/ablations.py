"""Variants beside each other, with intervals."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hsokv_ray.errors import DataError
from hsokv_ray.evaluation import Score
from hsokv_ray.swarm.eyes.plots import style


def plot_ablations(
    scores: Mapping[str, Score],
    path: str | Path,
    *,
    measure: str = "accuracy",
    title: str = "",
    baselines: Mapping[str, Score] | None = None,
) -> Path:
    """Draw a bar per variant, and below them per baseline, with its interval; return `path`.

    Args:
        scores: variant -> its score, drawn in this order from above.
        path: the PNG to write.
        measure: what a score is, with its unit; "..., %" is written with one digit, others with three.
        title: what the figure says. "": which bar is best.
        baselines: name -> the score of what needs no search, drawn in grey.

    Raises:
        DataError: there is no score.
    """
    return style.save(ablations(scores, measure=measure, title=title, baselines=baselines), path)


def ablations(
    scores: Mapping[str, Score],
    *,
    measure: str = "accuracy",
    title: str = "",
    baselines: Mapping[str, Score] | None = None,
) -> Figure:
    """Return the figure of `plot_ablations`."""
    if not scores:
        raise DataError("ablations: got no score; at least one variant's is needed")
    bars = [*scores.items(), *(baselines or {}).items()]
    figure = style.new_figure(height_in=float(np.clip(1.7 + 0.38 * len(bars), 2.6, 9)))
    axes = figure.add_subplot()
    best, highest = max(bars, key=lambda bar: bar[1].mean)
    digits = 1 if measure.endswith("%") else 3
    for row, (name, score) in enumerate(bars):
        colour = "#9bb8d3" if row < len(scores) else style.GREY
        _draw_bar(axes, row, score, colour=style.COLOURS[0] if name == best else colour, digits=digits)
    style.dress(axes, xlabel=measure)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    drawn = [score for _, score in bars]
    _make_room(axes, drawn)
    more = " Grey: baselines that need no search." if baselines else ""
    title = title or f"{best} is best with {highest.mean:.{digits}f}"
    return style.finish(figure, title=title, caption=_caption(drawn) + more)


def _draw_bar(axes: Axes, row: int, score: Score, *, colour: str, digits: int) -> None:
    axes.barh(row, score.mean, height=0.66, color=colour)
    end = score.mean
    text = f"{score.mean:.{digits}f}"
    if math.isfinite(score.low) and math.isfinite(score.high):
        reach = [[score.mean - score.low], [score.high - score.mean]]
        axes.errorbar(score.mean, row, xerr=reach, color=style.INK, linewidth=1.3, capsize=3.5)
        end = max(end, score.high)
        text += f"  [{score.low:.{digits}f}, {score.high:.{digits}f}]"
    axes.annotate(text, (max(end, 0), row), xytext=(6, 0), textcoords="offset points", va="center",
                  fontsize=style.SMALL, color=style.INK)  # fmt: skip


def _make_room(axes: Axes, scores: list[Score]) -> None:
    """Leave room for the figures at the bars' right."""
    highest = max(max(np.nan_to_num([score.mean, score.high])) for score in scores)
    lowest = min(min(np.nan_to_num([score.mean, score.low])) for score in scores)
    span = max(highest, 0) - min(lowest, 0) or 1.0
    axes.set_xlim(min(lowest, 0) - (0.03 * span if lowest < 0 else 0), max(highest, 0) + 0.3 * span)


def _caption(scores: list[Score]) -> str:
    sizes = sorted({(score.n, score.seeds) for score in scores})
    parts = [
        f"n = {style.count(seeds, 'seed')}" if n == seeds else f"n = {n:,} test items over {style.count(seeds, 'seed')}"
        for n, seeds in sizes
    ]
    without = sum(not math.isfinite(score.low) for score in scores)
    more = f" {style.count(without, 'bar')} without an interval: one seed says nothing about spread." if without else ""
    return f"Bars: means; lines and brackets: 95 % intervals. {'; '.join(parts)}.{more}"
