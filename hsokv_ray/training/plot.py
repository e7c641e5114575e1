"""The loss curve of a run as a PNG, drawn from its metrics.jsonl."""

from itertools import accumulate
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from hsokv_ray.training.metrics import read_rows

SMOOTHING = 0.05
"""Width of the moving average of the training loss, as a share of its points."""

TRAIN, VALIDATION, BASELINE, INK = "#4477aa", "#cc6633", "#8877aa", "#444444"


def plot_loss(
    metrics: str | Path, target: str | Path, *, unigram_entropy: float | None = None, title: str = ""
) -> Path:
    """Draw training and validation loss over optimiser steps; return `target`.

    Args:
        metrics: a metrics.jsonl; rows without `loss` or `val_loss` are left out of that curve.
        target: the PNG to write.
        unigram_entropy: nats per token that token frequencies alone would reach, drawn as a dashed line.
        title: text above the plot.

    Raises:
        ValueError: no row has a loss.
    """
    rows = read_rows(metrics)
    train = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    validation = [(row["step"], row["val_loss"]) for row in rows if row.get("val_loss") is not None]
    if not train:
        raise ValueError(f"{metrics}: got {len(rows)} rows and none has a loss; train at least --log-every steps first")
    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    steps, losses = [step for step, _ in train], [loss for _, loss in train]
    axes.plot(steps, losses, color=TRAIN, alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth(losses), color=TRAIN, linewidth=1.6, label=f"training (smoothed), last {losses[-1]:.2f}")
    if validation:
        best = min(loss for _, loss in validation)
        axes.plot(
            *zip(*validation, strict=True), "o-", color=VALIDATION, ms=4, lw=1, label=f"validation, best {best:.2f}"
        )
    if unigram_entropy is not None:
        label = f"unigram entropy {unigram_entropy:.2f}"
        axes.axhline(unigram_entropy, color=BASELINE, linestyle="--", linewidth=1.2, label=label)
    _dress(axes, title)
    figure.savefig(target)
    return Path(target)


def smooth(values: list[float], share: float = SMOOTHING) -> list[float]:
    """Return the centred moving average of `values`, which does not lag; at the ends it averages what is there.

    Args:
        values: any length.
        share: width of the window as a share of that length.
    """
    reach, sums = round(share * len(values)) // 2, [0.0, *accumulate(values)]
    bounds = ((max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values)))
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in bounds]


def _dress(axes: Axes, title: str) -> None:
    axes.set_xlabel("optimiser steps", color=INK)
    axes.set_ylabel("cross-entropy (nats per token)", color=INK)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(left=0)
    axes.grid(color="#e8e8e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#cccccc")
    axes.tick_params(colors=INK, labelsize=9)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
