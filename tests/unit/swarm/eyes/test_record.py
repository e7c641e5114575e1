"""Reading the folder of a run: what the swarm counted, once, whatever happened to the files."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_search import SyntheticSearch, write_run

from hsokv_ray.errors import DataError
from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.eyes.record import HIT_RATE, read_record
from hsokv_ray.swarm.eyes.tally import Tally
from hsokv_ray.swarm.strategy import KV_SPACE

CONFIG = SwarmConfig(num_managers=2, agents_per_manager=4, max_steps=60, interval_steps=6)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSearch:
    return write_run(tmp_path_factory.mktemp("runs") / "run", CONFIG, loss_probability=0.1)


def test_columns_are_the_outcomes_of_the_journal_in_order(search: SyntheticSearch) -> None:
    record = read_record(search.folder)
    told = [line for line in search.lines if line["what"] == "tell"]
    assert [each.order.order_id for each in record.told] == [line["outcome"]["order_id"] for line in told]
    assert record.steps_N.tolist() == [line["order"]["end_step"] for line in told]
    assert record.agents_N.tolist() == [line["order"]["agent"] for line in told]
    expected = [np.nan if line["outcome"]["failure"] else line["outcome"]["score"] for line in told]
    np.testing.assert_array_equal(record.scores_N, expected)
    np.testing.assert_array_equal(
        record.metric_N(HIT_RATE), [line["outcome"]["metrics"].get(HIT_RATE, np.nan) for line in told]
    )
    assert record.space == KV_SPACE
    assert record.seed == 0


def test_flops_and_the_best_are_those_of_the_swarm_itself(search: SyntheticSearch) -> None:
    record = read_record(search.folder)
    assert record.lost
    assert record.flops_by_kind == search.swarm.ledger.totals
    assert record.flops_N[-1] <= search.swarm.ledger.spent
    assert np.all(np.diff(record.flops_N) >= 0)
    assert record.best is not None
    best = search.swarm.best()
    assert (record.best.order.order_id, record.best.score) == (best.order_id, best.score)
    assert record.best_N[-1] == best.score


def test_events_are_those_of_the_swarm(search: SyntheticSearch) -> None:
    assert [event.to_json() for event in read_record(search.folder).events] == [
        json.loads(json.dumps(event.to_json())) for event in search.swarm.events()
    ]


@given(cut=st.integers(1, 400))
def test_a_torn_last_line_is_left_out_and_counted(search: SyntheticSearch, tmp_path_factory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("torn")
    data = (search.folder / "journal.jsonl").read_bytes()[:-cut]
    (folder / "journal.jsonl").write_bytes(data)
    whole = [json.loads(line) for line in data.split(b"\n")[:-1]]
    record = read_record(folder)
    assert record.num_torn == (not data.endswith(b"\n"))
    assert len(record) + len(record.lost) == len(whole)


def test_a_damaged_line_before_the_last_is_named(search: SyntheticSearch, tmp_path: Path) -> None:
    lines = (search.folder / "journal.jsonl").read_text().splitlines()
    lines[2] = lines[2][:40]
    (tmp_path / "journal.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"journal\.jsonl:3: got"):
        read_record(tmp_path)


@given(repeats=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=30))
def test_lines_that_come_again_later_count_once(search: SyntheticSearch, repeats: list[tuple[int, int]]) -> None:
    lines = list(search.lines)
    for which, where in sorted(repeats):
        line = search.lines[which % len(search.lines)]
        first = lines.index(line)
        lines.insert(first + 1 + where % (len(lines) - first), line)
    tally = Tally()
    for line in lines:
        tally.take(line)
    assert tally.ledger.totals == search.swarm.ledger.totals
    assert tally.num_told + tally.num_lost == len(search.lines)
    assert tally.best is not None
    assert tally.best.order.order_id == search.swarm.best().order_id


def test_an_empty_run_has_no_outcome_and_a_missing_one_is_named(tmp_path: Path) -> None:
    record = read_record(tmp_path)
    assert (len(record), record.best, record.space, record.seed) == (0, None, None, None)
    assert record.best_N.shape == record.scores_N.shape == (0,)
    with pytest.raises(DataError, match="no such folder"):
        read_record(tmp_path / "nowhere")


def test_a_score_that_is_no_number_is_a_failure_as_it_is_for_the_swarm(tmp_path: Path) -> None:
    order = SyntheticSearch(tmp_path, CONFIG).queue[0]
    outcome = {
        "order_id": order.order_id,
        "score": float("nan"),
        "flops": 5,
        "seconds": 1.0,
        "failure": "",
        "metrics": {},
    }
    line = {"what": "tell", "time": 2.0, "begun": 1.0, "worker": "w", "order": order.to_json(), "outcome": outcome}
    (tmp_path / "journal.jsonl").write_text(json.dumps(line) + "\n")
    record = read_record(tmp_path)
    assert record.told[0].has_failed
    assert record.flops_by_kind["wasted"] == 5
    assert record.best is None
