"""How models learn: score over steps, copies marked."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hsokv_ray.errors import DataError
from hsokv_ray.swarm.eyes.lineage import Lineage
from hsokv_ray.swarm.eyes.plots import style
from hsokv_ray.swarm.eyes.plots.models import draw_models, how_drawn, is_crowded
from hsokv_ray.swarm.eyes.record import Record

MARKS = {"copied": ("v", "#d55e00"), "migrated": ("D", "#cc79a7"), "resampled": ("s", "#e69f00")}


def learning_curves(record: Record, lineage: Lineage) -> Figure:
    """Draw the score of every model over its steps.

    Raises:
        DataError: there is no score.
    """
    if record.best is None:
        raise DataError(f"learning curves: none of {len(record)} outcomes has a score")
    figure = style.new_figure()
    axes = figure.add_subplot()
    draw_models(axes, record, lineage, record.scores_N)
    if not is_crowded(record):
        _mark_copies(axes, record, lineage)
    low, high, num_below = style.score_limits(record.scores_N)
    axes.set_ylim(low, high)
    axes.set_xlim(left=0)
    style.dress(axes, xlabel="steps that the model has trained", ylabel="validation score (higher is better)")
    style.legend(axes)
    best = record.best
    title = f"Best score {best.score:.4g}, by order {best.order.order_id} at step {best.order.end_step:,}"
    more = [how_drawn(record)]
    more += [f"{style.count(num_below, 'score')} below the axis."] if num_below else []
    return style.finish(figure, title=title, caption=style.caption(record, *more))


def _mark_copies(axes: Axes, record: Record, lineage: Lineage) -> None:
    """Mark the outcomes whose model went to another agent."""
    copies = [copy for copy in lineage.copies() if copy.source in record.by_id]
    for what, (marker, colour) in MARKS.items():
        sources = [record.by_id[copy.source] for copy in copies if copy.what == what]
        if sources:
            x, y = [told.order.end_step for told in sources], [told.score for told in sources]
            size = float(np.clip(400 / len(sources), 6, 22))
            label = f"{what} from here ({len(sources):,})"
            axes.scatter(
                x, y, s=size, marker=marker, facecolors="none", edgecolors=colour, linewidths=1, label=label,
                gid=what, zorder=4,
            )  # fmt: skip
