"""Metrics of a search, as Ray exports them to Prometheus."""

import re
import threading
import urllib.request
from pathlib import Path

import ray
from swarm_status import status_of
from synthetic_search import SyntheticSearch

from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.eyes.gauges import METRICS, Gauges
from hsokv_ray.swarm.eyes.record import read_record
from hsokv_ray.swarm.messages import Event


def exported(run: str) -> dict[str, float]:
    """Return series and value of each line about `run`, with the labels that are ours."""
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if f'run="{run}"' in line]
    values = {}
    for line in lines:
        name, labels, value = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line).groups()  # type: ignore[union-attr]
        ours = sorted(re.findall(r'((?:kind|outcome|manager)="\w+")', labels))
        values[" ".join([name, *ours])] = float(value)
    return values


def test_prometheus_sees_what_the_journal_says_under_the_names_of_the_board(ray_cluster: None, tmp_path: Path) -> None:
    search = SyntheticSearch(tmp_path / "run", SwarmConfig(flops_budget=3 * 10**11), loss_probability=0.1).run(40)
    record = read_record(tmp_path / "run")
    gauges = Gauges("seen")
    for line in [*search.lines, *search.lines]:  # what is told twice counts once
        gauges.told(line)
    for event in record.events:
        gauges.happened(Event.from_json(event.to_json()))
    gauges(status_of(search))

    wanted = {about.series(name) for name, about in METRICS.items()}
    values: dict[str, float] = {}
    pause = threading.Event()
    for _ in range(120):
        values = exported("seen")
        if {name.split()[0] for name in values} >= wanted:
            break
        pause.wait(0.5)
    assert {name.split()[0] for name in values} == wanted
    assert values['ray_hsokv_swarm_orders_total outcome="scored"'] == len(record) - sum(
        t.has_failed for t in record.told
    )
    assert values['ray_hsokv_swarm_orders_total outcome="lost"'] == len(record.lost) > 0
    for kind, flops in record.flops_by_kind.items():
        assert values.get(f'ray_hsokv_swarm_flops_total kind="{kind}"', 0) == flops
    assert record.best is not None
    assert values["ray_hsokv_swarm_best_score"] == record.best.score
    assert values["ray_hsokv_swarm_running"] == len(search.running) > 0
    assert values["ray_hsokv_swarm_budget_spent"] == search.swarm.ledger.spent / (3 * 10**11)
