"""Plots of a run: the numbers drawn are those of the journal, and nothing is drawn that was not measured."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from synthetic_search import SyntheticSearch, write_run

from hsokv_ray.errors import DataError
from hsokv_ray.swarm.config import SwarmConfig
from hsokv_ray.swarm.eyes.lineage import Lineage, agent_of
from hsokv_ray.swarm.eyes.plots import plot_run, style
from hsokv_ray.swarm.eyes.plots.learning_curves import learning_curves
from hsokv_ray.swarm.eyes.plots.lineage_tree import MAX_LANES, lineage_tree
from hsokv_ray.swarm.eyes.plots.memory_use import grid, memory_use
from hsokv_ray.swarm.eyes.plots.over_steps import gate_entropy, retention
from hsokv_ray.swarm.eyes.plots.regret import regret
from hsokv_ray.swarm.eyes.plots.strategy_evolution import ranks_N, shares, strategy_evolution
from hsokv_ray.swarm.eyes.record import GATE_ENTROPY, HIT_RATE, MEMORY_ENTRIES, Record, read_record

NAMES = ["learning_curves", "regret", "strategy_evolution", "lineage_tree", "gate_entropy", "retention", "memory_use"]


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSearch:
    config = SwarmConfig(num_managers=2, agents_per_manager=6, max_steps=60, interval_steps=6, interval_factor=3)
    return write_run(tmp_path_factory.mktemp("runs") / "words", config, loss_probability=0.05)


@pytest.fixture(scope="module")
def record(search: SyntheticSearch) -> Record:
    return read_record(search.folder)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Record:
    config = SwarmConfig(num_managers=4, agents_per_manager=250, max_steps=20, interval_steps=10, interval_factor=1)
    return read_record(write_run(tmp_path_factory.mktemp("runs") / "crowd", config, num_workers=100).folder)


def line_of(axes: Axes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the line that is called `name`."""
    [line] = [line for line in axes.lines if line.get_gid() == name]
    return np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)


def scored(search: SyntheticSearch) -> list[dict]:
    return [line for line in search.lines if line["what"] == "tell" and not line["outcome"]["failure"]]


def drawn_edges(axes: Axes, manager: int) -> set[tuple[float, ...]]:
    """Return the pieces between two NaN of a manager's line."""
    x, y = line_of(axes, f"manager {manager}")
    ends = np.flatnonzero(np.isnan(x))
    return {
        tuple(np.stack([x[begin:end], y[begin:end]], axis=1).ravel())
        for begin, end in zip([0, *(ends[:-1] + 1)], ends, strict=True)
    }


@pytest.mark.parametrize(("draw", "metric"), [(learning_curves, None), (gate_entropy, GATE_ENTROPY)])
def test_lines_join_each_outcome_of_the_journal_with_the_one_it_trained_on_from(
    search: SyntheticSearch, record: Record, draw: Callable[[Record, Lineage], Figure], metric: str | None
) -> None:
    points = {
        line["order"]["order_id"]: (
            line["order"]["end_step"],
            line["outcome"]["metrics"].get(metric, line["outcome"]["score"]),
        )
        for line in scored(search)
    }
    axes = draw(record, Lineage(record)).axes[0]
    for manager in (0, 1):
        expected = set()
        for line in scored(search):
            order = line["order"]
            if order["manager"] == manager:
                expected.add((*points.get(order["source"], ()), *points[order["order_id"]]))
        assert drawn_edges(axes, manager) == expected


def test_the_bold_line_is_the_best_model_from_its_beginning_on(search: SyntheticSearch, record: Record) -> None:
    by_id = {line["order"]["order_id"]: line for line in scored(search)}
    order, line = search.swarm.best().order_id, []
    while order is not None:
        line.append((by_id[order]["order"]["end_step"], by_id[order]["outcome"]["score"]))
        order = by_id[order]["order"]["source"]
    x, y = line_of(learning_curves(record, Lineage(record)).axes[0], "best")
    assert list(zip(x, y, strict=True)) == line[::-1]


def test_copies_are_marked_where_the_source_was(search: SyntheticSearch, record: Record) -> None:
    axes = learning_curves(record, Lineage(record)).axes[0]
    points = {
        line["order"]["order_id"]: (line["order"]["end_step"], line["outcome"]["score"]) for line in scored(search)
    }
    for what in ("copied", "migrated"):
        expected = sorted(
            points[event.details["source"]]
            for event in search.swarm.events()
            if event.what == what and agent_of(event.details["source"]) != event.agent
        )
        [marks] = [each for each in axes.collections if each.get_gid() == what]
        assert expected
        np.testing.assert_allclose(sorted(map(tuple, np.asarray(marks.get_offsets()))), expected)


def test_regret_and_best_are_those_at_each_outcome_over_all_flops_lost_ones_included(
    search: SyntheticSearch, record: Record
) -> None:
    flops, best, expected = 0, -np.inf, []
    for line in search.lines:
        flops += line["outcome"]["flops"] if line["what"] == "tell" else line["flops"]
        if line["what"] == "tell":
            best = max(best, line["outcome"]["score"] or -np.inf)
            expected.append((flops, best if np.isfinite(best) else np.nan))
    x, y = line_of(regret(record).axes[0], "best")
    np.testing.assert_allclose(np.stack([x, y], axis=1), expected)
    x, y = line_of(regret(record, best_known=2.0).axes[0], "best")
    np.testing.assert_allclose(y, 2.0 - np.array(expected)[:, 1])


def test_regret_of_a_search_that_beats_the_best_known_says_how_often(record: Record) -> None:
    figure = regret(record, best_known=float(np.nanmedian(record.scores_N)))
    _, y = line_of(figure.axes[0], "best")
    assert np.all(y[np.isfinite(y)] > 0)
    num = int((record.scores_N >= np.nanmedian(record.scores_N)).sum())
    assert f"{num} outcomes outside the axis" in figure.get_supxlabel().replace("\n", " ")


def test_memory_cells_hold_what_the_order_that_trained_that_step_left(search: SyntheticSearch, record: Record) -> None:
    cells_AT, agents, ends_T = grid(record, record.metric_N(MEMORY_ENTRIES))
    for row, agent in enumerate(agents):
        values: list[float] = []
        for line in search.lines:
            if line["what"] == "tell" and line["order"]["agent"] == agent:
                num_steps = line["order"]["end_step"] - line["order"]["begin_step"]
                values += [line["outcome"]["metrics"].get(MEMORY_ENTRIES, np.nan)] * num_steps
        expected = [values[end - 1] if end <= len(values) else np.nan for end in ends_T]
        np.testing.assert_array_equal(cells_AT[row], expected)
    meshes = [mesh for axes in memory_use(record).axes for mesh in axes.collections if mesh.get_gid() == HIT_RATE]
    np.testing.assert_array_equal(
        np.ma.filled(np.ma.asarray(meshes[0].get_array()), np.nan), grid(record, record.metric_N(HIT_RATE))[0]
    )


def test_settings_are_drawn_at_the_flops_of_their_outcome_in_log_space_where_they_are_searched_so(
    search: SyntheticSearch, record: Record
) -> None:
    panels = {axes.get_title(loc="left"): axes for axes in strategy_evolution(record).axes}
    axes = panels["learning rate"]
    assert axes.get_yscale() == "log"
    assert panels["memory top k"].get_yscale() == panels["gate init"].get_yscale() == "linear"
    [points] = [each for each in axes.collections if each.get_gid() == "values"]
    drawn = {tuple(point) for point in np.asarray(points.get_offsets())}
    rates = {line["order"]["order_id"]: line["order"]["strategy"]["learning_rate"] for line in scored(search)}
    assert drawn == {(t.flops, rates[t.order.order_id]) for t in record.told if t.order.order_id in rates}
    best = search.swarm.best().strategy["learning_rate"]
    assert line_of(axes, "best")[1][-1] == best


def test_shares_of_a_choice_are_counts_over_windows_that_hold_every_outcome_once(record: Record) -> None:
    options, shares_OW, windows = shares(record, "optimizer")
    assert options == ["adamw", "sgd", "rmsprop"]
    np.testing.assert_allclose(shares_OW.sum(axis=0), 1)
    values = [told.order.strategy["optimizer"] for told in record.told]
    assert [value for window in windows for value in values[window]] == values
    for column, window in enumerate(windows):
        assert shares_OW[1, column] == pytest.approx(sum(v == "sgd" for v in values[window]) / len(values[window]))


def test_ranks_order_scores_and_leave_failures_out() -> None:
    np.testing.assert_array_equal(ranks_N(np.array([0.3, np.nan, -5.0, 0.3, 0.9])), [0.5, np.nan, 0.0, 0.5, 1.0])


def test_lanes_tell_who_held_a_model_of_which_family_and_from_whom(search: SyntheticSearch, record: Record) -> None:
    lineage = Lineage(record)
    axes = lineage_tree(record, lineage).axes[0]
    lanes = sorted({told.order.agent for told in record.told})
    ends = {told.order.order_id: told.flops for told in record.told}
    family = lineage.family(search.swarm.best().order_id)
    x, y = line_of(axes, f"family {family}")
    begins, before = {}, dict.fromkeys(lanes, 0)
    for told in record.told:
        begins[told.order.order_id], before[told.order.agent] = before[told.order.agent], told.flops
    expected = {(begins[o], ends[o], lanes.index(agent_of(o))) for o in ends if lineage.family(o) == family}
    assert set(zip(x[0::3], x[1::3], y[1::3], strict=True)) == expected
    _, y = line_of(axes, "copies")
    told = [copy for copy in lineage.copies() if copy.order in ends]
    expected_steps = sorted((lanes.index(agent_of(c.source)), lanes.index(agent_of(c.order))) for c in told)
    assert sorted(zip(y[0::3], y[1::3], strict=True)) == expected_steps


def test_plot_run_writes_every_figure_at_least_800_pixels_wide_and_not_empty(search: SyntheticSearch) -> None:
    said: list[str] = []
    paths = plot_run(search.folder, say=said.append)
    assert [path.stem for path in paths] == NAMES
    assert not said
    for path in paths:
        image = np.asarray(Image.open(path).convert("L"))
        assert image.shape[1] >= 800
        assert (image < 200).mean() > 0.005


def test_captions_say_how_much_was_measured(search: SyntheticSearch, record: Record) -> None:
    text = regret(record).get_supxlabel().replace("\n", " ")
    assert f"n = {len(record)} outcomes" in text
    assert f"{len(record.lost)} lost" in text
    assert "12 agents of 2 managers" in text
    assert "one seed (0)" in text


def test_a_plot_whose_figures_nobody_reported_is_skipped_and_says_so(search: SyntheticSearch, tmp_path: Path) -> None:
    lines = [json.loads(json.dumps(line)) for line in search.lines]
    for line in lines:
        line.get("outcome", {})["metrics"] = {}
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said: list[str] = []
    assert [path.stem for path in plot_run(tmp_path, say=said.append)] == NAMES[:4]
    assert len(said) == 3
    assert any("'gate_entropy_bits'" in line for line in said)
    assert sorted(path.stem for path in (tmp_path / "plots").iterdir()) == sorted(NAMES[:4])


def test_an_empty_run_gives_no_plot_and_a_reason_for_each(tmp_path: Path) -> None:
    said: list[str] = []
    assert plot_run(tmp_path, say=said.append) == []
    assert len(said) == len(NAMES)
    with pytest.raises(DataError, match="no such folder"):
        plot_run(tmp_path / "nowhere")


def test_a_run_in_which_everything_failed_shows_what_was_tried_and_nothing_else(
    search: SyntheticSearch, tmp_path: Path
) -> None:
    lines = [json.loads(json.dumps(line)) for line in search.lines]
    for line in lines:
        line["outcome"] = {**line.get("outcome", {}), "failure": "no", "score": None, "metrics": {}}
    told = [line for line in lines if line["what"] == "tell"]
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    assert [path.stem for path in plot_run(tmp_path, say=lambda _: None)] == ["strategy_evolution"]


def test_a_run_of_one_outcome_is_drawn(tmp_path: Path) -> None:
    config = SwarmConfig(num_managers=1, agents_per_manager=1, max_steps=5, exploit="none", num_trials=1)
    folder = write_run(tmp_path / "one", config, loss_probability=0).folder
    assert [path.stem for path in plot_run(folder)] == NAMES


def test_a_thousand_agents_make_no_larger_figure_and_bands_instead_of_lines(crowd: Record) -> None:
    lineage = Lineage(crowd)
    figure = learning_curves(crowd, lineage)
    assert len(figure.axes[0].lines) < 5
    x, y = line_of(figure.axes[0], "median")
    for step, value in zip(x, y, strict=True):
        assert value == np.nanmedian(crowd.scores_N[crowd.steps_N == step])
    tree = lineage_tree(crowd, lineage)
    assert len(tree.axes[0].get_yticks()) == MAX_LANES
    assert "Shown are 40 agents" in tree.get_supxlabel().replace("\n", " ")
    for each in (figure, tree, memory_use(crowd), strategy_evolution(crowd), retention(crowd, lineage), regret(crowd)):
        assert each.get_figwidth() == style.WIDTH_IN
        assert each.get_figheight() <= 9


def test_one_model_that_went_astray_does_not_hide_the_others_and_is_counted() -> None:
    values = np.append(np.linspace(0.5, 0.9, 99), -1e6)
    low, high, num_below = style.score_limits(values)
    assert low > -1
    assert high > 0.9
    assert num_below == 1
    low, _, num_below = style.score_limits(np.linspace(0.1, 0.9, 50))
    assert low < 0.1
    assert num_below == 0
