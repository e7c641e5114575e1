"""Where models come from, against a walk through the journal by hand."""

from pathlib import Path

import pytest
from synthetic_search import SyntheticSearch, write_run

from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.eyes.lineage import Lineage, describe
from hsokv_ray.swarm.eyes.record import read_record

CONFIGS = {
    "copy": SwarmConfig(num_managers=2, agents_per_manager=6, max_steps=60, interval_steps=6, interval_factor=3),
    "restart": SwarmConfig(num_managers=2, agents_per_manager=4, max_steps=27, exploit="restart", num_trials=40),
    "none": SwarmConfig(num_managers=1, agents_per_manager=3, max_steps=20, exploit="none", num_trials=6),
}


def ancestors(search: SyntheticSearch, order: str) -> list[str]:
    """Return the orders before `order`, looking each one up in the whole journal."""
    for line in search.lines:
        if line["order"]["order_id"] == order and line["order"]["source"]:
            return [*ancestors(search, line["order"]["source"]), line["order"]["source"]]
    return []


@pytest.mark.parametrize("exploit", CONFIGS)
def test_lines_and_families_are_those_of_a_brute_force_walk(exploit: str, tmp_path: Path) -> None:
    search = write_run(tmp_path / "run", CONFIGS[exploit], seed=3)
    record = read_record(search.folder)
    lineage = Lineage(record)
    for told in record.told:
        order = told.order.order_id
        line = [*ancestors(search, order), order]
        assert lineage.line(order) == line
        assert lineage.family(order) == line[0]
    families = lineage.families()
    assert sorted(order for orders in families.values() for order in orders) == sorted(lineage.sources)
    assert all(lineage.sources[family] is None for family in families)


@pytest.mark.parametrize("exploit", CONFIGS)
def test_families_are_the_ancestors_that_the_swarm_itself_named(exploit: str, tmp_path: Path) -> None:
    record = read_record(write_run(tmp_path / "run", CONFIGS[exploit], seed=4).folder)
    lineage = Lineage(record)
    named = {event.order_id: event.details["ancestor"] for event in record.events if "ancestor" in event.details}
    assert named
    assert {order: lineage.family(order) for order in named} == named


def test_copies_are_the_events_by_which_a_model_changed_its_agent(tmp_path: Path) -> None:
    record = read_record(write_run(tmp_path / "run", CONFIGS["copy"], seed=5).folder)
    expected = [
        (event.details["source"], event.order_id, event.what)
        for event in record.events
        if event.details.get("source") and event.details["source"].split(".")[0] != f"a{event.agent}"
    ]
    assert {what for *_, what in expected} >= {"copied", "migrated"}
    assert [(copy.source, copy.order, copy.what) for copy in Lineage(record).copies()] == expected


def test_without_events_the_journal_alone_gives_the_same_lines(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", CONFIGS["copy"], seed=6).folder
    whole = Lineage(read_record(folder))
    (folder / "events.jsonl").unlink()
    record = read_record(folder)
    lineage = Lineage(record)
    assert all(lineage.line(told.order.order_id) == whole.line(told.order.order_id) for told in record.told)


def test_the_description_names_each_order_its_steps_and_what_changed(tmp_path: Path) -> None:
    record = read_record(write_run(tmp_path / "run", CONFIGS["copy"], seed=7).folder)
    assert record.best is not None
    lineage, best = Lineage(record), record.best.order.order_id
    rows = describe(record, lineage, best).splitlines()[2:]
    line = lineage.line(best)
    assert [row.split(" | ")[0] for row in rows] == [f"| {order}" for order in line]
    for row, order, before in zip(rows[1:], line[1:], line[:-1], strict=True):
        changed = record.by_id[order].order.strategy != record.by_id[before].order.strategy
        assert row.endswith("|  |") != changed
