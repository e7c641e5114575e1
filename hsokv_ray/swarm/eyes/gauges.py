"""A search as metrics of Ray, which Prometheus scrapes and cluster/grafana/swarm.json shows.

    gauges = Gauges("words")
    search(task, config, folder=folder, watchers=[gauges], on_status=gauges)

As a watcher it counts what the driver of the search is told, as `on_status` it shows how things stand; where the two
are in different processes, each sets its own part. Ray puts `ray_` before each name, and `_total` behind a counter's.
Counters begin at 0 in a process that goes on with a search, as Prometheus expects of counters.
"""

from dataclasses import dataclass
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge

from hsokv_ray.swarm.eyes.tally import Tally, Told
from hsokv_ray.swarm.ledger import KINDS
from hsokv_ray.swarm.messages import Event
from hsokv_ray.swarm.status import Status


@dataclass(frozen=True)
class Described:
    """What a metric is."""

    kind: Literal["counter", "gauge"]
    text: str
    tags: tuple[str, ...] = ("run",)

    def series(self, name: str) -> str:
        """Return the name under which Prometheus knows the metric."""
        return f"ray_{name}_total" if self.kind == "counter" else f"ray_{name}"


METRICS = {
    "hsokv_swarm_orders": Described("counter", "Orders that ended: scored, failed or lost", ("run", "outcome")),
    "hsokv_swarm_flops": Described("counter", "FLOPs by kind of the ledger", ("run", "kind")),
    "hsokv_swarm_best_score": Described("gauge", "Best score so far"),
    "hsokv_swarm_entropy": Described("gauge", "Entropy of a manager's strategies, 0 to 1", ("run", "manager")),
    "hsokv_swarm_ancestors": Described("gauge", "Share of distinct ancestors of a manager", ("run", "manager")),
    "hsokv_swarm_manager_best_score": Described("gauge", "Best of a manager's last scores", ("run", "manager")),
    "hsokv_swarm_agents": Described("gauge", "Agents of a manager that have not ended", ("run", "manager")),
    "hsokv_swarm_running": Described("gauge", "Orders in workers"),
    "hsokv_swarm_waiting": Described("gauge", "Orders that wait for a worker"),
    "hsokv_swarm_workers": Described("gauge", "Workers"),
    "hsokv_swarm_utilisation": Described("gauge", "Share of the workers' time spent in orders, 0 to 1"),
    "hsokv_swarm_budget_spent": Described("gauge", "Share of the FLOP budget spent, 0 to 1"),
}


class Gauges:
    """A `Watcher`, and an `on_status`.

    Args:
        run: label of all metrics.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._tally = Tally()
        self._metrics: dict[str, Counter | Gauge] = {}
        """Made when first used, so that this object can travel before."""

    def told(self, record: dict[str, Any]) -> None:
        """Count a line of the journal."""
        before = dict(self._tally.ledger.totals)
        taken = self._tally.take(record)
        if taken is None:
            return
        outcome = "lost" if not isinstance(taken, Told) else "failed" if taken.has_failed else "scored"
        self._add("hsokv_swarm_orders", 1, outcome=outcome)
        for kind in KINDS:
            self._add("hsokv_swarm_flops", self._tally.ledger.totals[kind] - before[kind], kind=kind)

    def happened(self, event: Event) -> None:
        """Take a new best score, or a manager's diversity."""
        if event.what == "improved":
            self._set("hsokv_swarm_best_score", event.details["score"])
        elif event.what == "diversity":
            self._set("hsokv_swarm_entropy", event.details["entropy"], manager=event.manager)
            self._set("hsokv_swarm_ancestors", event.details["ancestors"], manager=event.manager)

    def __call__(self, status: Status) -> None:
        """Take how things stand."""
        self._set("hsokv_swarm_running", status.running)
        self._set("hsokv_swarm_waiting", status.waiting)
        self._set("hsokv_swarm_workers", status.workers)
        self._set("hsokv_swarm_utilisation", status.utilisation)
        if status.flops_budget:
            self._set("hsokv_swarm_budget_spent", sum(status.flops.values()) / status.flops_budget)
        if status.best is not None:
            self._set("hsokv_swarm_best_score", status.best.score)
        for manager in status.managers:
            self._set("hsokv_swarm_agents", manager["agents"], manager=manager["index"])
            self._set("hsokv_swarm_entropy", manager["entropy"], manager=manager["index"])
            self._set("hsokv_swarm_ancestors", manager["ancestors"], manager=manager["index"])
            if manager["best"] is not None:
                self._set("hsokv_swarm_manager_best_score", manager["best"], manager=manager["index"])

    def close(self) -> None:
        """Say that nothing runs any more; a process that lives on would go on exporting the last values."""
        for name in ("hsokv_swarm_running", "hsokv_swarm_waiting"):
            if name in self._metrics:
                self._set(name, 0)

    def _add(self, name: str, value: float, **tags: Any) -> None:
        metric = self._metric(name)
        if value > 0 and isinstance(metric, Counter):
            metric.inc(value, tags=self._tags(tags))

    def _set(self, name: str, value: float, **tags: Any) -> None:
        metric = self._metric(name)
        assert isinstance(metric, Gauge)
        metric.set(value, tags=self._tags(tags))

    def _metric(self, name: str) -> Counter | Gauge:
        if name not in self._metrics:
            about = METRICS[name]
            make = Counter if about.kind == "counter" else Gauge
            self._metrics[name] = make(name, about.text, tag_keys=about.tags)
        return self._metrics[name]

    def _tags(self, tags: dict[str, Any]) -> dict[str, str]:
        return {"run": self._run, **{name: str(value) for name, value in tags.items()}}
