"""The journal cut at any byte: what was whole stays, what follows from it comes again, and nothing counts twice."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from search_audit import EXPLOITS, audit, config, lines, told

from hsokv_ray.errors import CheckpointError
from hsokv_ray.swarm.backends.local import LocalBackend
from hsokv_ray.swarm.drive import Drive, Summary
from hsokv_ray.swarm.journal import Follower, Journal
from hsokv_ray.swarm.simulated import SimulatedTask
from hsokv_ray.swarm.states import States

TASK = SimulatedTask()
RECORDS = st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=6) | st.none(), max_size=3)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(RECORDS, max_size=3), max_size=4), data=st.data())
def test_a_journal_cut_at_any_byte_holds_its_whole_lines_and_takes_more(
    tmp_path: Path, batches: list[list[dict[str, Any]]], data: st.DataObject
):
    path = tmp_path / "journal.jsonl"
    path.unlink(missing_ok=True)
    written = [record for batch in batches for record in batch]
    with Journal(path) as journal:
        assert journal.open() == []
        for batch in batches:
            journal.append(batch)
    size = path.stat().st_size
    cut = data.draw(st.integers(0, size))
    with path.open("r+b") as file:
        file.truncate(cut)
    whole = path.read_bytes().count(b"\n")
    with Journal(path) as journal:
        assert journal.open() == written[:whole]
        journal.append(written[whole:])
        assert journal.num_lines == len(written)
    assert [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] == written


def test_a_last_line_of_zeros_as_a_power_cut_leaves_it_is_cut_off_and_a_middle_one_is_refused(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"a":1}\n\0\0\0\0\n')
    with Journal(path) as journal:
        assert journal.open() == [{"a": 1}]
    assert path.read_bytes() == b'{"a":1}\n'
    path.write_bytes(b'{"a":1}\n\0\0\0\0\n{"a":2}\n')
    with pytest.raises(CheckpointError, match="journal.jsonl:2 is damaged"):
        Journal(path).open()


@given(chunks=st.lists(st.integers(1, 30), max_size=20))
def test_a_follower_reads_each_whole_line_once_however_it_is_written(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[int]
):
    path = tmp_path_factory.mktemp("follow") / "events.jsonl"
    follower = Follower(path)
    assert follower.read() == []
    data = b"".join(json.dumps({"n": i, "text": "ü" * i}).encode() + b"\n" for i in range(9))
    read: list[Any] = []
    with path.open("ab") as file:
        for size in [*chunks, len(data)]:
            file.write(data[:size])
            file.flush()
            data = data[size:]
            read += follower.read()
    assert [each["n"] for each in read] == list(range(9))
    assert Follower(path).read() == []


@pytest.fixture(scope="module", params=EXPLOITS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Summary]]:
    """A search to its end whose states were all kept: a real one drops them only after the lines that are cut here."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(States, "drop", lambda self, order_ids: None)
        yield folder, drive(folder, request.param).run()


def drive(folder: Path, exploit: str, **keywords: Any) -> Drive:
    options = config(exploit, num_trials=8)
    return Drive(TASK, options, folder, LocalBackend(TASK, States(folder / "states")), seed=3, **keywords)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_search_whose_files_end_at_any_byte_comes_to_the_same_end(
    whole: tuple[Path, Summary], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    source, expected = whole
    folder = tmp_path_factory.mktemp("cut") / "run"
    shutil.copytree(source, folder)
    (folder / "summary.json").unlink()
    for name in ("journal.jsonl", "events.jsonl"):
        with (folder / name).open("r+b") as file:
            file.truncate(data.draw(st.integers(0, (folder / name).stat().st_size), label=name))
    if data.draw(st.booleans(), label="snapshot lost"):
        (folder / "swarm.json").unlink()
    last = lines(source / "journal.jsonl")[-1]["order"]
    (folder / "running.json").write_text(json.dumps({last["order_id"]: last["attempt"]}))
    exploit = json.loads((folder / "search.json").read_text())["swarm"]["exploit"]
    summary = drive(folder, exploit, resume=True).run()
    for state in (folder / "states").iterdir():  # kept for the test's sake, see `whole`
        if state.stem != summary.best.order_id:
            state.unlink()
    audit(folder, summary, TASK)
    assert (summary.best, summary.told) == (expected.best, expected.told)
    # where the last order noted as begun is among those cut off, it counts as interrupted once
    assert summary.flops["useful"] + summary.flops["repeated"] == expected.flops["useful"]
    assert summary.lost <= 1
    assert told(folder) == told(source)
    if summary.lost == 0:
        same = [[{**event, "time": 0} for event in lines(each / "events.jsonl")] for each in (folder, source)]
        assert same[0] == same[1]


def test_the_last_line_cut_at_every_byte_is_told_again(whole: tuple[Path, Summary], tmp_path: Path):
    source, _ = whole
    data = (source / "journal.jsonl").read_bytes()
    begin = data[:-1].rfind(b"\n") + 1
    for size in range(begin, len(data)):
        path = tmp_path / "journal.jsonl"
        path.write_bytes(data[:size])
        with Journal(path) as journal:
            assert len(journal.open()) == data.count(b"\n") - 1
        assert path.read_bytes() == data[:begin]
