"""What learners report about their models, over the steps of each: the gate's entropy, and retention."""

import numpy as np
from matplotlib.figure import Figure

from hsokv_ray.swarm.eyes.lineage import Lineage
from hsokv_ray.swarm.eyes.plots import style
from hsokv_ray.swarm.eyes.plots.models import best_line, draw_models, how_drawn, measured
from hsokv_ray.swarm.eyes.record import GATE_ENTROPY, RETENTION, Record


def gate_entropy(record: Record, lineage: Lineage) -> Figure:
    """Draw whether the gates of models make up their mind. Raises `DataError`: no learner said."""
    return _metric_over_steps(
        record, lineage, GATE_ENTROPY, "Gate entropy", "mean binary entropy of the gate (bits)",
        "0: every gate is open or shut; 1: every gate is half open.",
    )  # fmt: skip


def retention(record: Record, lineage: Lineage) -> Figure:
    """Draw how well models still answer what they learnt earlier. Raises `DataError`: no learner said."""
    return _metric_over_steps(
        record, lineage, RETENTION, "Retention", "accuracy on what was learnt earlier",
        "0: all of it is forgotten; a model has no value before it has learnt something earlier.",
    )  # fmt: skip


def _metric_over_steps(
    record: Record, lineage: Lineage, name: str, title: str, ylabel: str, meaning: str
) -> Figure:  # fmt: skip
    values_N = measured(record, name, title.lower())
    figure = style.new_figure()
    axes = figure.add_subplot()
    draw_models(axes, record, lineage, values_N)
    low, high, _ = style.score_limits(values_N)
    axes.set_ylim(min(low, -0.02), max(high, 1.02))
    axes.set_xlim(left=0)
    style.dress(axes, xlabel="steps that the model has trained", ylabel=ylabel)
    style.legend(axes)
    return style.finish(
        figure,
        title=_title(record, lineage, values_N, title),
        caption=style.caption(record, how_drawn(record), meaning),
    )


def _title(record: Record, lineage: Lineage, values_N: np.ndarray, title: str) -> str:
    values = best_line(record, lineage, values_N)[1] if record.best else []
    return f"{title} of the best model: {values[0]:.2f} at first, {values[-1]:.2f} at last" if len(values) else title
