"""All plots of one run."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from hsokv_ray.errors import DataError
from hsokv_ray.swarm.eyes.lineage import Lineage
from hsokv_ray.swarm.eyes.plots import style
from hsokv_ray.swarm.eyes.plots.learning_curves import learning_curves
from hsokv_ray.swarm.eyes.plots.lineage_tree import lineage_tree
from hsokv_ray.swarm.eyes.plots.memory_use import memory_use
from hsokv_ray.swarm.eyes.plots.over_steps import gate_entropy, retention
from hsokv_ray.swarm.eyes.plots.regret import regret
from hsokv_ray.swarm.eyes.plots.strategy_evolution import strategy_evolution
from hsokv_ray.swarm.eyes.record import read_record

FOLDER = "plots"


def plot_run(
    folder: str | Path, *, best_known: float | None = None, say: Callable[[str], None] = print
) -> list[Path]:  # fmt: skip
    """Draw `<folder>/plots/*.png` from what the run left; return the files written.

    Args:
        folder: of a run, finished or not.
        best_known: score to which regret is taken; None: the best score itself is drawn.
        say: is told which plot is skipped, and why.

    Raises:
        DataError: there is no such folder, or its files are damaged.
    """
    folder = Path(folder).expanduser()
    record = read_record(folder)
    lineage = Lineage(record)
    draws: dict[str, Callable[[], Figure]] = {
        "learning_curves": lambda: learning_curves(record, lineage),
        "regret": lambda: regret(record, best_known=best_known),
        "strategy_evolution": lambda: strategy_evolution(record),
        "lineage_tree": lambda: lineage_tree(record, lineage),
        "gate_entropy": lambda: gate_entropy(record, lineage),
        "retention": lambda: retention(record, lineage),
        "memory_use": lambda: memory_use(record),
    }
    written = []
    for name, draw in draws.items():
        try:
            written.append(style.save(draw(), folder / FOLDER / f"{name}.png"))
        except DataError as reason:
            say(f"plot skipped: {reason}")
    return written
