"""How much faster more workers are, from the report of `rollouts.run_distributed`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hsokv_ray.errors import DataError
from hsokv_ray.swarm.eyes.plots import style


def plot_speed_up(report: Mapping[str, Any], path: str | Path) -> Path:
    """Draw speed-up and efficiency over the number of workers, with intervals; return `path`.

    Args:
        report: what distributed.json holds; `scaling` has a row per number of workers.
        path: the PNG to write.

    Raises:
        DataError: there are not two numbers of workers whose speed-up was measured.
    """
    return style.save(speed_up(report), path)


def speed_up(report: Mapping[str, Any]) -> Figure:
    """Return the figure of `plot_speed_up`."""
    rows = sorted(_measured(report), key=lambda row: row["num_workers"])
    workers = [row["num_workers"] for row in rows]
    figure = style.new_figure(height_in=4.2)
    left, right = figure.subplots(1, 2)
    left.plot(workers, workers, "--", color=style.GREY, linewidth=1.2, label="ideal", gid="ideal")
    _draw(left, workers, [row["speed_up"] for row in rows], "measured, 95 % interval", sign="{:.2f}")
    style.dress(left, xlabel="workers", ylabel="speed-up (time of 1 worker over theirs)")
    style.legend(left)
    right.axhline(1, color=style.GREY, linestyle="--", linewidth=1.2)
    _draw(right, workers, [row["efficiency"] for row in rows], "", sign="{:.0%}")
    style.dress(right, xlabel="workers", ylabel="efficiency (speed-up per worker)")
    for axes in (left, right):
        axes.set_xticks(workers, [str(count) for count in workers])
        axes.set_xlim(0, max(workers) * 1.12)
        axes.set_ylim(0, max(axes.get_ylim()[1], 1.15))
    title = f"{workers[-1]} workers are {rows[-1]['speed_up']['mean']:.2f} times as fast as one"
    return style.finish(figure, title=title, caption=_caption(report, rows))


def _measured(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = [row for row in report.get("scaling") or [] if row.get("speed_up") and row.get("efficiency")]
    if len(rows) < 2:
        raise DataError(
            f"speed-up: got {len(rows)} numbers of workers whose speed-up was measured; at least 2 are needed, "
            "each worker with a CPU of its own"
        )
    return rows


def _draw(
    axes: Axes, workers: Sequence[int], scores: Sequence[Mapping[str, float | None]], label: str, *, sign: str
) -> None:  # fmt: skip
    means = [float(score["mean"] or 0) for score in scores]
    axes.plot(workers, means, "o-", color=style.COLOURS[0], linewidth=2, markersize=5, label=label, gid="measured")
    reach = np.array([_reach(score) for score in scores]).T
    axes.errorbar(workers, means, yerr=reach, fmt="none", ecolor=style.INK, elinewidth=1.3, capsize=3.5)
    for x, mean in zip(workers, means, strict=True):
        axes.annotate(sign.format(mean), (x, mean), xytext=(7, -11), textcoords="offset points",
                      fontsize=style.SMALL, color=style.INK)  # fmt: skip


def _reach(score: Mapping[str, float | None]) -> tuple[float, float]:
    """Return how far the interval goes down and up from the mean; NaN where there is none."""
    low, mean, high = (math.nan if score[end] is None else float(score[end] or 0) for end in ("low", "mean", "high"))
    return mean - low, high - mean


def _caption(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    seeds = list(report.get("seeds") or [])
    left_out = len(report["scaling"]) - len(rows)
    parts = [f"n = {style.count(len(seeds), 'seed')} ({', '.join(str(seed) for seed in seeds)})"]
    parts += [f"backend {report['backend']}"] if "backend" in report else []
    parts += [style.count(report["num_cpus"], "CPU")] if "num_cpus" in report else []
    one = rows[0].get("steps_per_s")
    parts += [f"{rows[0]['num_workers']} worker: {one['mean']:,.0f} environment steps/s"] if one else []
    text = "; ".join(parts) + ". The same environment steps for each number of workers."
    intervals = any(math.isfinite(_reach(row["speed_up"])[0]) for row in rows)
    text += "" if intervals else " No interval: one seed says nothing about spread."
    return text + (f" {left_out} left out, whose workers shared CPUs." if left_out else "")
