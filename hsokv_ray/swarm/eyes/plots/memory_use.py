"""What agents' memories hold over time: agents times steps, as colour."""

import numpy as np
from matplotlib.figure import Figure

from hsokv_ray.errors import DataError
from hsokv_ray.swarm.eyes.plots import style
from hsokv_ray.swarm.eyes.record import HIT_RATE, MEMORY_ENTRIES, Record

MAX_COLUMNS = 200
MEANING = {MEMORY_ENTRIES: "entries in memory", HIT_RATE: "share of reads whose nearest entry is the right one"}


def memory_use(record: Record) -> Figure:
    """Draw entries and hit rate, whichever learners report. Raises `DataError`: neither."""
    names = [name for name in MEANING if np.isfinite(record.metric_N(name)).any()]
    if not names:
        raise DataError(f"memory use: none of {len(record)} outcomes has {' or '.join(MEANING)} among its metrics")
    figure = style.new_figure()
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        cells_AT, agents, ends_T = grid(record, record.metric_N(name))
        edges = [0, *ends_T]
        mesh = axes.pcolormesh(edges, np.arange(len(agents) + 1), cells_AT, cmap="cividis", gid=name)
        style.dress(axes, xlabel="steps that the agent has trained in all")
        axes.grid(visible=False)
        bar = figure.colorbar(mesh, ax=axes, location="top", aspect=30, pad=0.02)
        bar.set_label(MEANING[name], fontsize=style.NORMAL, color=style.INK)
        bar.ax.tick_params(labelsize=style.SMALL, colors=style.INK)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    _name_rows(panels[0], sorted(set(record.agents_N.tolist())))
    return style.finish(
        figure, title="What the agents' memories hold", caption=style.caption(record, "White: nothing was measured.")
    )


def grid(record: Record, values_N: np.ndarray) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Return cells [agents, columns], the agents, and the step at which each column ends.

    A cell holds what the order that trained the column's last step left; NaN where there is none.
    """
    agents = sorted(set(record.agents_N.tolist()))
    row_of = {agent: row for row, agent in enumerate(agents)}
    ends: list[list[int]] = [[] for _ in agents]
    values: list[list[float]] = [[] for _ in agents]
    for told, value in zip(record.told, values_N, strict=True):
        row = row_of[told.order.agent]
        ends[row].append((ends[row][-1] if ends[row] else 0) + told.order.num_steps)
        values[row].append(value)
    longest = max(each[-1] for each in ends)
    ends_T = np.unique(np.linspace(0, longest, min(longest, MAX_COLUMNS) + 1).astype(int)[1:])
    cells_AT = np.full((len(agents), len(ends_T)), np.nan)
    for row in range(len(agents)):
        at_T = np.searchsorted(ends[row], ends_T)
        inside_T = at_T < len(ends[row])
        cells_AT[row, inside_T] = np.array(values[row])[at_T[inside_T]]
    return cells_AT, agents, ends_T


def _name_rows(axes, agents: list[int]) -> None:
    every = max(len(agents) // 16, 1)
    rows = np.arange(0, len(agents), every)
    axes.set_yticks(rows + 0.5, [f"a{agents[row]}" for row in rows])
    axes.set_ylabel("agent", color=style.INK, fontsize=style.NORMAL)
    axes.invert_yaxis()
