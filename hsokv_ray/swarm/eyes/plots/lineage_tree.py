"""Who copied whom: a lane per agent, coloured by the fresh model from which its model descends."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hsokv_ray.errors import DataError
from hsokv_ray.swarm.eyes.lineage import Lineage, agent_of
from hsokv_ray.swarm.eyes.plots import style
from hsokv_ray.swarm.eyes.record import Record

MAX_LANES = 40


class Lanes:
    """Where orders lie: x from the agent's previous outcome to their own, y the agent's lane.

    Args:
        record: the run.
        lineage: of the same run.
    """

    def __init__(self, record: Record, lineage: Lineage) -> None:
        self.progress_N, self.xlabel = style.progress_N(record)
        self.agents = _chosen_agents(record, lineage)
        """Those with a lane, from above."""
        self.y = {agent: y for y, agent in enumerate(self.agents)}
        self.begin: dict[str, float] = {}
        self.end: dict[str, float] = {}
        last: dict[int, float] = {}
        for told, at in zip(record.told, self.progress_N, strict=True):
            if told.order.agent in self.y:
                self.begin[told.order.order_id] = last.get(told.order.agent, 0.0)
                self.end[told.order.order_id] = last[told.order.agent] = float(at)

    def spans(self, orders: Iterable[str]) -> tuple[list[float], list[float]]:
        """Return x and y of lines along the lanes of `orders`, NaN between two."""
        x, y = [], []
        for order in orders:
            x += [self.begin[order], self.end[order], np.nan]
            y += [self.y[agent_of(order)]] * 2 + [np.nan]
        return x, y

    def steps_over(self, copies: Iterable[tuple[str, str]]) -> tuple[list[float], list[float]]:
        """Return x and y of lines from the lane of each source to that of who took its model over, NaN between two."""
        x, y = [], []
        for source, order in copies:
            x += [self.begin[order]] * 2 + [np.nan]
            y += [self.y[agent_of(source)], self.y[agent_of(order)], np.nan]
        return x, y


def lineage_tree(record: Record, lineage: Lineage) -> Figure:
    """Draw lanes, copies between them, and the best model's way. Raises `DataError`: there is no score."""
    if record.best is None:
        raise DataError(f"lineage tree: none of {len(record)} outcomes has a score")
    lanes = Lanes(record, lineage)
    figure = style.new_figure(height_in=float(np.clip(1.9 + 0.21 * len(lanes.agents), 3.2, 9)))
    axes = figure.add_subplot()
    num_families = _draw_families(axes, record, lineage, lanes)
    copies = [
        (copy.source, copy.order) for copy in lineage.copies() if copy.source in lanes.end and copy.order in lanes.end
    ]
    axes.plot(*lanes.steps_over(copies), color="#777777", linewidth=0.7, gid="copies", zorder=3)
    taken = [order for _, order in copies]
    if taken:
        x, y = [lanes.begin[order] for order in taken], [lanes.y[agent_of(order)] for order in taken]
        axes.plot(x, y, "o", color="#777777", markersize=2.6, gid="taken over", label="took a model over", zorder=4)
    _draw_best(axes, lanes, lineage.line(record.best.order.order_id))
    _dress(axes, lanes)
    root = lineage.family(record.best.order.order_id)
    title = (
        f"{style.count(num_families, 'fresh model')}, taken over {len(lineage.copies()):,} times; "
        f"the best descends from {root}"
    )
    return style.finish(figure, title=title, caption=style.caption(record, *_more(record, lanes)))


def _chosen_agents(record: Record, lineage: Lineage) -> list[int]:
    """Return the agents with a lane, ascending: those the best model went through, then those of the best scores."""
    assert record.best is not None
    on_way = dict.fromkeys(agent_of(order) for order in reversed(lineage.line(record.best.order.order_id)))
    by_score = record.agents_N[np.argsort(-np.nan_to_num(record.scores_N, nan=-np.inf), kind="stable")]
    return sorted([*on_way, *(agent for agent in dict.fromkeys(by_score.tolist()) if agent not in on_way)][:MAX_LANES])


def _draw_families(axes: Axes, record: Record, lineage: Lineage, lanes: Lanes) -> int:
    """Colour the lanes of the best model's family and of those that trained most; return how many there are."""
    trained: Counter[str] = Counter()
    for told in record.told:
        trained[lineage.family(told.order.order_id)] += told.order.num_steps
    assert record.best is not None
    of_best = lineage.family(record.best.order.order_id)
    chosen = list(dict.fromkeys([of_best, *(family for family, _ in trained.most_common())]))[: len(style.COLOURS)]
    others = [order for order in lanes.end if lineage.family(order) not in chosen]
    if others:
        axes.plot(*lanes.spans(others), color=style.GREY, linewidth=4, solid_capstyle="butt", gid="other families",
                  label=f"from {style.count(len(trained) - len(chosen), 'other')}")  # fmt: skip
    for family, colour in zip(chosen, style.COLOURS, strict=False):
        orders = [order for order in lanes.end if lineage.family(order) == family]
        axes.plot(*lanes.spans(orders), color=colour, linewidth=4, solid_capstyle="butt", gid=f"family {family}",
                  label=f"from {family}")  # fmt: skip
    return len(trained)


def _draw_best(axes: Axes, lanes: Lanes, line: list[str]) -> None:
    line = [order for order in line if order in lanes.end]
    x, y = lanes.spans(line)
    axes.plot(x, y, color=style.BEST, linewidth=1.4, gid="best", label="way of the best model", zorder=5)
    copies = [(a, b) for a, b in zip(line[:-1], line[1:], strict=True) if agent_of(a) != agent_of(b)]
    axes.plot(*lanes.steps_over(copies), color=style.BEST, linewidth=1.4, gid="best copies", zorder=5)
    axes.plot([lanes.end[line[-1]]], [lanes.y[agent_of(line[-1])]], "*", color=style.BEST, markersize=9, zorder=6)


def _dress(axes: Axes, lanes: Lanes) -> None:
    style.dress(axes, xlabel=lanes.xlabel, ylabel="agent")
    axes.set_yticks(range(len(lanes.agents)), [f"a{agent}" for agent in lanes.agents])
    axes.set_ylim(len(lanes.agents) - 0.4, -0.6)
    axes.grid(visible=False)
    style.scale_progress(axes, lanes.progress_N)
    style.legend(axes, num_columns=5)


def _more(record: Record, lanes: Lanes) -> list[str]:
    num_agents = len(set(record.agents_N.tolist()))
    more = ["A change of colour without a dot is a fresh model; star: the best."]
    if num_agents > len(lanes.agents):
        more.append(f"Shown are {len(lanes.agents)} agents: the best model's way, then those of the best scores.")
    return more
