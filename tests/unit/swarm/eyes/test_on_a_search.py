"""All eyes on a search that really trains something, as its user calls it."""

import io
from pathlib import Path

import numpy as np
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.eyes.live_table import LiveTable
from hsokv_ray.swarm.eyes.plots import plot_run
from hsokv_ray.swarm.eyes.record import read_record
from hsokv_ray.swarm.eyes.tensorboard import TensorBoard
from hsokv_ray.swarm.search import search
from hsokv_ray.swarm.simulated import SimulatedTask

CONFIG = SwarmConfig(num_managers=2, agents_per_manager=3, max_steps=20, interval_steps=2, flops_budget=10**9)


def test_a_search_is_seen_as_its_summary_tells_it(tmp_path: Path) -> None:
    out, folder = io.StringIO(), tmp_path / "run"
    with LiveTable("run", console=Console(file=out, width=80)) as table:
        summary = search(
            SimulatedTask(),
            CONFIG,
            folder=folder,
            backend="local",
            watchers=[TensorBoard(folder, best_known=1.0)],
            on_status=table,
        )
    record = read_record(folder)
    assert record.best is not None
    assert record.best.order.order_id == summary.best.order_id
    assert {**record.flops_by_kind, "evaluation": summary.flops["evaluation"]} == summary.flops
    assert (len(record), len(record.lost)) == (summary.told, summary.lost)
    assert f"best {summary.best.score:.4f} (" in out.getvalue().splitlines()[-1]
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    assert np.float32(board.Scalars("swarm/best_score")[-1].value) == np.float32(summary.best.score)
    said: list[str] = []
    drawn = [path.stem for path in plot_run(folder, say=said.append)]
    assert drawn == ["learning_curves", "regret", "strategy_evolution", "lineage_tree"]
    assert len(said) == 3
