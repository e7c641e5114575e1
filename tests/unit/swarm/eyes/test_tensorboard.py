"""Event files, read back with TensorBoard's own reader: what the journal says, once."""

import copy
from pathlib import Path

import numpy as np
import pytest
from synthetic_search import SyntheticSearch, write_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.eyes.record import HIT_RATE, read_record
from hsokv_ray.swarm.eyes.tensorboard import TensorBoard, models_of_one_strategy

COPY = SwarmConfig(num_managers=2, agents_per_manager=3, max_steps=36, interval_steps=6)
RANDOM = SwarmConfig(num_managers=1, agents_per_manager=3, max_steps=20, exploit="none", num_trials=7)


def watch(search: SyntheticSearch, board: TensorBoard, num_lines: int | None = None) -> None:
    """Let the search go on for so many lines, telling `board` of them, as `History` does."""
    while (search.queue or search.running) and (num_lines is None or len(search.lines) < num_lines):
        events = search.num_events
        search.run(len(search.lines) + 1)
        board.told(search.lines[-1])
        for event in search.swarm.events(events):
            board.happened(event)


def read(folder: Path) -> EventAccumulator:
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    board.Reload()
    return board


def points(board: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in board.Scalars(tag)]


def all_points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    board = read(folder)
    return {tag: points(board, tag) for tag in sorted(board.Tags()["scalars"])}


def same(drawn: list[tuple[int, float]], expected: list[tuple[int, float]]) -> bool:
    """Whether steps are equal and values equal as float32, which is what event files hold."""
    return [(s, np.float32(v)) for s, v in drawn] == [(s, np.float32(v)) for s, v in expected]


def test_curves_are_those_of_the_journal(tmp_path: Path) -> None:
    search = SyntheticSearch(tmp_path, COPY, loss_probability=0.1)
    board = TensorBoard(tmp_path, best_known=1.0)
    watch(search, board)
    board.close()
    written, record = read(tmp_path), read_record(tmp_path)
    scored = [told for told in record.told if not told.has_failed]
    for agent in range(6):
        own = [told for told in scored if told.order.agent == agent]
        expected = [(told.order.end_step, told.score) for told in own]
        assert same(points(written, f"agents/a{agent}/score"), expected)
        expected = [(told.order.end_step, told.outcome.metrics[HIT_RATE]) for told in own]
        assert same(points(written, f"agents/a{agent}/{HIT_RATE}"), expected)
    improved = [event for event in record.events if event.what == "improved"]
    assert same(points(written, "swarm/best_score"), [(e.flops, e.details["score"]) for e in improved])
    assert same(points(written, "swarm/regret"), [(e.flops, 1.0 - e.details["score"]) for e in improved])
    for manager in (0, 1):
        told = [e for e in record.events if e.what == "diversity" and e.manager == manager]
        assert told
        assert same(points(written, f"managers/{manager}/entropy"), [(e.flops, e.details["entropy"]) for e in told])
    for kind, flops in record.flops_by_kind.items():
        assert points(written, f"flops/{kind}")[-1] == (len(search.lines), np.float32(flops))
    assert points(written, "swarm/lost")[-1] == (len(search.lines), len(record.lost))
    assert record.lost


def test_a_setting_has_a_point_where_it_changed(tmp_path: Path) -> None:
    search = SyntheticSearch(tmp_path, COPY)
    board = TensorBoard(tmp_path)
    watch(search, board)
    board.close()
    written, record = read(tmp_path), read_record(tmp_path)
    told = [(each.flops, each.order.strategy["learning_rate"]) for each in record.told if each.order.agent == 0]
    changed = [(flops, rate) for n, (flops, rate) in enumerate(told) if n == 0 or rate != told[n - 1][1]]
    assert 1 < len(changed) < len(told)
    assert same(points(written, "strategy/learning_rate/a0"), changed)
    assert not [tag for tag in written.Tags()["scalars"] if "optimizer" in tag]


@pytest.mark.parametrize("at", [1, 9, 10**6])
@pytest.mark.parametrize("closed", [True, False], ids=["after an end", "after a kill"])
def test_a_resumed_run_has_every_point_once(tmp_path: Path, at: int, closed: bool) -> None:
    whole = SyntheticSearch(tmp_path / "whole", COPY, loss_probability=0.1)
    board = TensorBoard(tmp_path / "whole")
    watch(whole, board)
    board.close()

    search = SyntheticSearch(tmp_path / "resumed", COPY, loss_probability=0.1)
    first = TensorBoard(tmp_path / "resumed")
    watch(search, first, at)
    if closed:
        first.close()
    for old in (tmp_path / "resumed").rglob("events.out.tfevents.*"):  # as if it had been written long ago
        old.rename(old.with_name("events.out.tfevents.1000000000.host"))
    second = TensorBoard(tmp_path / "resumed")
    watch(search, second)
    second.close()
    assert all_points(tmp_path / "resumed") == all_points(tmp_path / "whole")
    files = list((tmp_path / "resumed").rglob("events.out.tfevents.*"))
    assert len({file.parent for file in files}) == len(files)


def test_lines_that_were_told_before_a_kill_and_events_that_come_again_are_not_written_twice(tmp_path: Path) -> None:
    search = SyntheticSearch(tmp_path, COPY)
    board = TensorBoard(tmp_path)
    watch(search, board)
    for line in search.lines:
        board.told(line)
    for event in search.swarm.events():
        board.happened(event)
    board.close()
    record = read_record(tmp_path)
    written = all_points(tmp_path)
    assert len(written["agents/a1/score"]) == sum(told.order.agent == 1 for told in record.told)
    diverse = [event for event in record.events if event.what == "diversity" and event.manager == 0]
    assert len(written["managers/0/entropy"]) == len(diverse)


def test_a_reader_that_had_read_the_old_files_forgets_them(tmp_path: Path) -> None:
    search = SyntheticSearch(tmp_path, COPY)
    first = TensorBoard(tmp_path)
    watch(search, first, 20)
    first.close()
    reader = read(tmp_path)
    before = points(reader, "agents/a0/score")
    second = TensorBoard(tmp_path)
    watch(search, second)
    second.close()
    later = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    later.Reload()
    assert points(later, "agents/a0/score")[: len(before)] == before
    own = [told for told in read_record(tmp_path).told if told.order.agent == 0]
    assert len(points(later, "agents/a0/score")) == len(own)


def test_the_best_models_line_is_there_as_text_and_the_tree_as_an_image(tmp_path: Path) -> None:
    search = SyntheticSearch(tmp_path, COPY)
    board = TensorBoard(tmp_path)
    watch(search, board)
    board.close()
    written = read(tmp_path)
    text = written.Tensors("lineage/best/text_summary")[0].tensor_proto.string_val[0].decode()
    assert f"| {search.swarm.best().order_id} |" in text
    [image] = written.Images("lineage/tree")
    assert image.width >= 800


def test_hparams_are_written_for_models_of_one_strategy_only(tmp_path: Path) -> None:
    search = SyntheticSearch(tmp_path, RANDOM, loss_probability=0)
    board = TensorBoard(tmp_path)
    watch(search, board)
    board.close()
    record = read_record(tmp_path)
    last = {told.order.order_id: told for told in record.told if told.order.end_step == 20 and not told.has_failed}
    folders = {path.name.removeprefix("model-"): path for path in (tmp_path / "tensorboard").glob("model-*")}
    assert folders.keys() >= last.keys()
    for order, told in last.items():
        written = EventAccumulator(str(folders[order]))
        written.Reload()
        assert [np.float32(point.value) for point in written.Scalars("model/score")] == [np.float32(told.score)]
        content = written.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
        hparams = HParamsPluginData.FromString(content).session_start_info.hparams
        assert hparams["optimizer"].string_value == told.order.strategy["optimizer"]
        assert hparams["learning_rate"].number_value == told.order.strategy["learning_rate"]


def test_a_model_that_took_another_strategy_on_its_way_has_no_hparams(tmp_path: Path) -> None:
    record = read_record(write_run(tmp_path / "run", COPY).folder)
    chosen = {told.order.order_id for told in models_of_one_strategy(record)}
    sources = {told.order.source for told in record.told if not told.has_failed}
    for told in record.told:
        order, strategies = told.order, [told.order.strategy]
        while order.source is not None:
            order = record.by_id[order.source].order
            strategies.append(order.strategy)
        is_one = not told.has_failed and all(each == strategies[0] for each in strategies)
        assert (told.order.order_id in chosen) == (is_one and told.order.order_id not in sources)
    assert 0 < len(chosen) < len(record)


def test_nothing_is_opened_before_something_happens_so_that_it_can_travel(tmp_path: Path) -> None:
    board = copy.deepcopy(TensorBoard(tmp_path))
    board.close()
    assert list(tmp_path.iterdir()) == []
