"""Reads what a search left in its folder, and adds it up anew, without the ledger and the swarm."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.drive import Summary
from hsokv_ray.swarm.messages import Event
from hsokv_ray.swarm.simulated import SimulatedTask

EXPLOITS = ("copy", "restart", "none")


def config(exploit: Any = "copy", **options: Any) -> SwarmConfig:
    """A small search: 2 x 3 agents, 20 steps each."""
    values = {"num_managers": 2, "agents_per_manager": 3, "max_steps": 20, "interval_steps": 4, "interval_factor": 2,
              "num_trials": 20}  # fmt: skip
    return SwarmConfig(exploit=exploit, min_diversity=0, **{**values, **options})


def lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def told(folder: Path) -> dict[str, Any]:
    """What came of each order, without what time and chance decide; each must have been told once."""
    records = [record for record in lines(folder / "journal.jsonl") if record["what"] == "tell"]
    orders = {record["order"]["order_id"]: record for record in records}
    assert len(orders) == len(records), "an order was told twice"
    return {
        order_id: (
            {k: v for k, v in record["order"].items() if k != "attempt"},
            {k: v for k, v in record["outcome"].items() if k != "seconds"},
        )
        for order_id, record in orders.items()
    }


def recounted(folder: Path, task: SimulatedTask) -> dict[str, int]:
    """The ledger by hand: the first attempt of an order is useful or wasted, what follows is repeated."""
    totals: Counter[str] = Counter(useful=0, wasted=0, repeated=0, evaluation=0)
    charged: set[str] = set()
    attempts: set[tuple[str, int]] = set()
    for record in lines(folder / "journal.jsonl"):
        order = record["order"]
        key = (order["order_id"], order["attempt"])
        assert key not in attempts, "an attempt was charged twice"
        attempts.add(key)
        lost = record["what"] == "lost"
        flops = record["flops"] if lost else record["outcome"]["flops"]
        assert flops in (0, task.step_flops * (order["end_step"] - order["begin_step"])) or record["outcome"]["failure"]
        kind = "wasted" if lost or record["outcome"]["failure"] else "useful"
        totals["repeated" if order["order_id"] in charged else kind] += flops
        charged.add(order["order_id"])
    return dict(totals)


def repeated_tests(folder: Path) -> int:
    """How often the final test was begun again, after a worker or a driver was lost in it."""
    return json.loads((folder / "running.json").read_text())["test.1"] - 1


def audit(folder: Path, summary: Summary, task: SimulatedTask) -> None:
    """Nothing is counted twice, nothing is missing, and only the best state is left."""
    outcomes = told(folder)
    flops = recounted(folder, task)
    flops["repeated"] += repeated_tests(folder) * task.step_flops
    assert summary.flops == {**flops, "evaluation": task.step_flops}
    assert summary.told == len(outcomes)
    records = lines(folder / "journal.jsonl")
    assert summary.lost == len(records) - len(outcomes)
    scores = {order_id: outcome["score"] for order_id, (_, outcome) in outcomes.items() if not outcome["failure"]}
    assert summary.best.score == max(scores.values()) == scores[summary.best.order_id]
    numbers = [event["number"] for event in lines(folder / "events.jsonl")]
    assert numbers == list(range(len(numbers)))
    assert [path.name for path in (folder / "states").iterdir()] == [f"{summary.best.order_id}.safetensors"]
    assert Summary.from_json(json.loads((folder / "summary.json").read_text())) == summary


class Recorder:
    """A watcher that remembers what it was told."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.events: list[Event] = []
        self.is_closed = False

    def told(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def happened(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.is_closed = True
