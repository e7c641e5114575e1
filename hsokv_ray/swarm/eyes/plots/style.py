"""How all plots look: 800 pixels wide at least, colours that the colour-blind tell apart, title above, caption below.

Colours are those of Okabe and Ito (2008), without their yellow, which is hard to see on white.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from hsokv_ray.swarm.eyes.record import Record

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, GREY, GRID = "#333333", "#b3b3b3", "#e8e8e8"
BEST = "#000000"
WIDTH_IN, HEIGHT_IN, DPI = 8.0, 4.8, 150
CAPTION_COLUMNS = 132
SMALL, NORMAL, LARGE = 8, 9, 11.5


def new_figure(*, height_in: float = HEIGHT_IN) -> Figure:
    """Return an empty figure that makes room for whatever is put on it."""
    return Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, layout="constrained")


def finish(figure: Figure, *, title: str, caption: str) -> Figure:
    """Put `title` above and `caption`, broken into lines, below; return `figure`."""
    title = textwrap.fill(title, 84)
    figure.get_layout_engine().set(h_pad=0.08)  # pyright: ignore
    figure.suptitle(title, x=0.012, ha="left", fontsize=LARGE, color=INK, weight="bold")
    text = textwrap.fill(caption, CAPTION_COLUMNS)
    figure.supxlabel(text, x=0.012, ha="left", fontsize=SMALL, color="#666666", linespacing=1.4)
    return figure


def dress(axes: Axes, *, xlabel: str = "", ylabel: str = "", title: str = "") -> None:
    """Give `axes` labels, a light grid and no box."""
    axes.set_xlabel(xlabel, color=INK, fontsize=NORMAL)
    axes.set_ylabel(ylabel, color=INK, fontsize=NORMAL)
    axes.set_title(title, loc="left", fontsize=NORMAL, color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#cccccc")
    axes.tick_params(which="both", colors=INK, labelsize=SMALL)


def legend(axes: Axes, *, num_columns: int = 3) -> None:
    """Put the legend above `axes`, where it hides nothing."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=num_columns, frameon=False, fontsize=SMALL, labelcolor=INK,
        borderaxespad=0.2, handlelength=1.6, columnspacing=1.4,
    )  # fmt: skip


def save(figure: Figure, path: str | Path) -> Path:
    """Write `figure` as a PNG and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def caption(record: Record, *more: str) -> str:
    """Return what was measured on how much: run, agents, outcomes, seed, and whatever else is to be said."""
    num_failed = int(np.isnan(record.scores_N).sum())
    num_agents, num_managers = len(set(record.agents_N.tolist())), len(set(record.managers_N.tolist()))
    parts = [
        f"Run {record.name}",
        f"{count(num_agents, 'agent')} of {count(num_managers, 'manager')}",
        f"n = {count(len(record), 'outcome')}, {num_failed:,} failed, {len(record.lost):,} lost",
        f"one seed ({record.seed})" if record.seed is not None else "one seed",
    ]
    return "; ".join(parts) + "." + "".join(f" {each}" for each in more)


def count(number: int, noun: str) -> str:
    """Return `1 agent`, `1,000 agents`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def progress_N(record: Record) -> tuple[np.ndarray, str]:
    """Return how far the swarm was at each outcome, float64, and what that is: FLOPs; outcomes where none cost any."""
    if len(record) and record.flops_N[-1] > 0:
        return record.flops_N, "FLOPs spent by the whole swarm"
    return np.arange(1, len(record) + 1, dtype=np.float64), "outcomes told"


def scale_progress(axes: Axes, progress: np.ndarray) -> None:
    """Have the x axis begin at 0 and show thousands as k, M, G, T, P."""
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlim(0, float(progress[-1]) * 1.01)


def score_limits(values: Sequence[float] | np.ndarray) -> tuple[float, float, int]:
    """Return lower and upper limit of an axis for scores, and how many lie below it.

    Higher is better, so that one model which went astray would squeeze all that matters into a line: where the lowest
    scores lie much farther from the best one than 95 % of them do, the axis ends there.
    """
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    most = high - float(np.quantile(values, 0.05))
    if most > 0 and high - low > 4 * most:
        low = high - 1.5 * most
    margin = 0.05 * (high - low) or abs(high) * 0.05 or 0.05
    return low - margin, high + margin, int((values < low).sum())
