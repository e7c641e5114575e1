"""Plots of a search, one file per idea, drawn from the run's folder after it.

paths = plot_run("~/hsokv_runs/words")
plot_ablations({"full": full, "no memory": none}, "ablations.png")
plot_speed_up(report, "speed_up.png")
"""

from hsokv_ray.swarm.eyes.plots.ablations import plot_ablations
from hsokv_ray.swarm.eyes.plots.run import plot_run
from hsokv_ray.swarm.eyes.plots.speed_up import plot_speed_up

__all__ = ["plot_ablations", "plot_run", "plot_speed_up"]
