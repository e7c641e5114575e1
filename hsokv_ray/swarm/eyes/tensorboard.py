"""A search in TensorBoard: `tensorboard --logdir <folder of the run>/tensorboard`.

    search(task, config, folder=folder, watchers=[TensorBoard(folder)])

| tag                                         | over                         |
|---------------------------------------------|------------------------------|
| agents/a3/score, agents/a3/<metric>         | steps that the model trained |
| strategy/<setting>/a3, numbers only         | FLOPs of the swarm           |
| swarm/best_score, swarm/regret              | FLOPs of the swarm           |
| managers/0/{best_score, entropy, ancestors} | FLOPs of the swarm           |
| flops/<kind>, swarm/{failed, lost}          | outcomes and losses          |
| lineage/best (text), lineage/tree (image)   | FLOPs of the swarm           |

The HPARAMS tab has the models that were trained by one strategy from beginning to end; those that copied have no single
strategy to which their score belongs, and are not there.

All of it follows from the journal. So whoever goes on with a search writes the files anew from the journal's first
line: nothing is missing after a crash, and nothing is there twice.
"""

import math
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from hsokv_ray.swarm.eyes.lineage import Lineage, describe
from hsokv_ray.swarm.eyes.plots.lineage_tree import lineage_tree
from hsokv_ray.swarm.eyes.record import EVENTS, JOURNAL, Record, read_lines, read_record
from hsokv_ray.swarm.eyes.tally import Tally, Told
from hsokv_ray.swarm.messages import Event

FOLDER = "tensorboard"
MAX_AGENTS = 256
"""Agents with curves of their own; TensorBoard is slow with thousands of them."""
MAX_HPARAMS = 200


class TensorBoard:
    """A `Watcher` that writes event files.

    Nothing is opened before there is something to write, so that it can travel to the process that drives the search.

    Args:
        folder: of the run.
        best_known: score to which regret is taken; None: no regret.
    """

    def __init__(self, folder: str | Path, *, best_known: float | None = None) -> None:
        self.folder, self.best_known = Path(folder).expanduser().absolute(), best_known
        self._writer: SummaryWriter | None = None
        self._is_closed = False
        self._tally = Tally()
        self._next_event = 0
        self._time_s: float | None = None
        self._best_of: dict[int, float] = {}
        self._settings: dict[tuple[int, str], Any] = {}

    def told(self, record: dict[str, Any]) -> None:
        """Write what a line of the journal says."""
        self._open()
        self._take(record)

    def happened(self, event: Event) -> None:
        """Write what an event says: the diversity of a manager."""
        self._open()
        self._happen(event)

    def close(self) -> None:
        """Write where the best model comes from, and the models' strategies; nothing follows.

        Where a driver was killed after the last outcome, whoever resumes is told nothing more, and all is written here.
        """
        if self._is_closed or not (self.folder / JOURNAL).exists():
            return
        writer, record = self._open(), read_record(self.folder)
        if record.best is not None:
            self._write_lineage(writer, record)
        _write_hparams(writer, record)
        writer.close()
        self._is_closed = True

    def _open(self) -> SummaryWriter:
        """Make the writer, and write what the files of the run say already."""
        if self._writer is not None:
            return self._writer
        for old in sorted((self.folder / FOLDER).rglob("events.out.tfevents.*")):
            old.unlink()
        # A TensorBoard that runs has read the old files: purging from step 0 makes it forget them.
        self._writer = SummaryWriter(str(self.folder / FOLDER), purge_step=0, flush_secs=10)
        self._tally, self._next_event, self._best_of, self._settings = Tally(), 0, {}, {}
        for line in read_lines(self.folder / JOURNAL)[0]:
            self._take(line)
        for line in read_lines(self.folder / EVENTS)[0]:
            self._time_s = line.pop("time")
            self._happen(Event.from_json(line))
        return self._writer

    def _take(self, line: dict[str, Any]) -> None:
        self._time_s = line["time"]
        taken = self._tally.take(line)
        if taken is None:
            return
        number = self._tally.num_told + self._tally.num_lost
        for kind, flops in self._tally.ledger.totals.items():
            self._scalar(f"flops/{kind}", flops, number)
        self._scalar("swarm/failed", self._tally.num_failed, number)
        self._scalar("swarm/lost", self._tally.num_lost, number)
        if isinstance(taken, Told):
            self._write_outcome(taken)

    def _write_outcome(self, told: Told) -> None:
        order = told.order
        if order.agent < MAX_AGENTS:
            metrics = {"score": told.score, **told.outcome.metrics}
            for name, value in metrics.items():
                self._scalar(f"agents/a{order.agent}/{name}", value, order.end_step)
            self._write_settings(told)
        if told.score > self._best_of.get(order.manager, -math.inf):
            self._best_of[order.manager] = told.score
            self._scalar(f"managers/{order.manager}/best_score", told.score, told.flops)
        if self._tally.best is told:
            self._scalar("swarm/best_score", told.score, told.flops)
            if self.best_known is not None:
                self._scalar("swarm/regret", self.best_known - told.score, told.flops)

    def _write_settings(self, told: Told) -> None:
        """Write the settings that changed since the agent's last outcome."""
        for name, value in told.order.strategy.items():
            if self._settings.get((told.order.agent, name)) != value:
                self._settings[told.order.agent, name] = value
                self._scalar(f"strategy/{name}/a{told.order.agent}", value, told.flops)

    def _happen(self, event: Event) -> None:
        if event.number < self._next_event:
            return
        self._next_event = event.number + 1
        if event.what == "diversity":
            for name, value in event.details.items():
                self._scalar(f"managers/{event.manager}/{name}", value, event.flops)

    def _scalar(self, tag: str, value: Any, step: int) -> None:
        """Write a finite number; anything else has no place on a curve."""
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            assert self._writer is not None
            self._writer.add_scalar(tag, value, step, walltime=self._time_s)

    def _write_lineage(self, writer: SummaryWriter, record: Record) -> None:
        assert record.best is not None
        lineage, flops = Lineage(record), record.told[-1].flops
        writer.add_text("lineage/best", describe(record, lineage, record.best.order.order_id), flops)
        writer.add_figure("lineage/tree", lineage_tree(record, lineage), flops, close=False)
        left_out = len({agent for agent in record.agents_N.tolist() if agent >= MAX_AGENTS})
        if left_out:
            writer.add_text(
                "note", f"Curves of their own have agents a0 to a{MAX_AGENTS - 1}; {left_out:,} have none.", 0
            )


def models_of_one_strategy(record: Record) -> list[Told]:
    """Return the last outcome of each model that kept its strategy from its beginning to its end."""
    sources = {told.order.source for told in record.told if not told.has_failed}
    kept: set[str] = set()
    for told in record.told:
        source = record.by_id.get(told.order.source or "")
        is_kept = told.order.source in kept and source is not None and source.order.strategy == told.order.strategy
        if not told.has_failed and (told.order.source is None or is_kept):
            kept.add(told.order.order_id)
    return [record.by_id[order] for order in kept - sources]


def _write_hparams(writer: SummaryWriter, record: Record) -> None:
    models = sorted(models_of_one_strategy(record), key=lambda told: (-told.score, told.order.order_id))
    for told in models[:MAX_HPARAMS]:
        figures = {"model/score": told.score, "model/steps": told.order.end_step}
        writer.add_hparams(dict(told.order.strategy), figures, name=f"model-{told.order.order_id}", global_step=0)
