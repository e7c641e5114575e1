"""Bars of ablations and speed-up: means and intervals as they were handed in."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from hsokv_ray.errors import DataError
from hsokv_ray.evaluation import Score, over_seeds, wilson
from hsokv_ray.swarm.eyes.plots import plot_ablations, plot_speed_up
from hsokv_ray.swarm.eyes.plots.ablations import ablations
from hsokv_ray.swarm.eyes.plots.speed_up import speed_up

SCORES = {"full": over_seeds([0.8, 0.82, 0.79]), "no memory": over_seeds([0.31, 0.3, 0.35]), "neither": wilson(30, 200)}


def row(num_workers: int, ratios: list[float]) -> dict:
    return {
        "num_workers": num_workers,
        "speed_up": asdict(over_seeds(ratios)),
        "efficiency": asdict(over_seeds([ratio / num_workers for ratio in ratios])),
        "steps_per_s": asdict(over_seeds([1000 * ratio for ratio in ratios])),
    }


REPORT = {
    "backend": "ray",
    "num_cpus": 8,
    "seeds": [0, 1, 2],
    "scaling": [row(4, [3.1, 3.3, 3.2]), row(1, [1, 1, 1]), row(2, [1.9, 1.8, 1.95])],
}


def test_bars_and_whiskers_are_means_and_ends_of_the_intervals() -> None:
    axes = ablations(SCORES).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [score.mean for score in SCORES.values()]
    segments = [line.get_segments()[0] for line in axes.collections]
    np.testing.assert_allclose([segment[:, 0] for segment in segments], [(s.low, s.high) for s in SCORES.values()])
    assert [label.get_text() for label in axes.get_yticklabels()] == list(SCORES)


def test_baselines_stand_below_the_variants_in_grey_and_the_best_of_all_is_named() -> None:
    figure = ablations(
        SCORES, measure="test accuracy", baselines={"chance": Score(0.1, 0.1, 0.1, 3, 3), "tf": SCORES["full"]}
    )
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [*SCORES, "chance", "tf"]
    assert [bar.get_width() for bar in axes.patches][-2:] == [0.1, SCORES["full"].mean]
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[3] == colours[4] != colours[1] == colours[2]
    assert axes.get_xlabel() == "test accuracy"
    assert "Grey: baselines" in figure.get_supxlabel().replace("\n", " ")
    better = ablations(SCORES, baselines={"nearest": Score(0.9, 0.9, 0.9, 3, 3)})
    assert better.get_suptitle() == "nearest is best with 0.900"


def test_one_seed_has_no_whisker_and_the_caption_says_why() -> None:
    figure = ablations({"full": over_seeds([0.4]), "neither": SCORES["neither"]})
    assert len(figure.axes[0].collections) == 1
    assert "1 bar without an interval" in figure.get_supxlabel().replace("\n", " ")


def test_captions_give_n_and_seeds_of_all_bars() -> None:
    text = ablations(SCORES).get_supxlabel().replace("\n", " ")
    assert "n = 3 seeds;" in text
    assert "n = 200 test items over 1 seed" in text


def test_negative_scores_stay_on_the_axis() -> None:
    scores = {"a": Score(-0.1, -0.3, 0.05, 5, 5), "b": Score(-0.02, -0.1, 0.0, 5, 5)}
    low, high = ablations(scores).axes[0].get_xlim()
    assert low < -0.3
    assert high > 0.05


def test_speed_up_is_that_of_the_report_by_rising_number_of_workers() -> None:
    left, right = speed_up(json.loads(json.dumps(REPORT))).axes
    by_name = {line.get_gid(): line for line in left.lines}
    assert list(by_name["measured"].get_xdata()) == [1, 2, 4]
    np.testing.assert_allclose(by_name["measured"].get_ydata(), [1, np.mean([1.9, 1.8, 1.95]), 3.2])
    [efficiency] = [line for line in right.lines if line.get_gid() == "measured"]
    np.testing.assert_allclose(efficiency.get_ydata(), [1, np.mean([1.9, 1.8, 1.95]) / 2, 0.8])
    last = left.collections[0].get_segments()[2]
    score = over_seeds([3.1, 3.3, 3.2])
    np.testing.assert_allclose(last[:, 1], [score.low, score.high])


def test_workers_that_shared_cpus_are_left_out_and_counted() -> None:
    shared = {**row(16, [5, 5, 5]), "speed_up": None, "efficiency": None}
    figure = speed_up({**REPORT, "scaling": [*REPORT["scaling"], shared]})
    assert figure.axes[0].lines[0].get_xdata()[-1] == 4
    assert "1 left out" in figure.get_supxlabel().replace("\n", " ")


def test_one_seed_is_drawn_without_interval() -> None:
    rows = [{**row(n, [n * 0.9]), "speed_up": {"mean": n * 0.9, "low": None, "high": None}} for n in (1, 2)]
    assert "No interval" in speed_up({"seeds": [0], "scaling": rows}).get_supxlabel().replace("\n", " ")


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(DataError, match="at least 2 are needed"):
        speed_up({"scaling": [row(1, [1.0])]})
    with pytest.raises(DataError, match="at least 2 are needed"):
        speed_up({})
    with pytest.raises(DataError, match="at least one variant"):
        ablations({})


def test_both_write_the_file_they_return(tmp_path: Path) -> None:
    assert plot_ablations(SCORES, tmp_path / "new" / "ablations.png").stat().st_size > 10_000
    assert plot_speed_up(REPORT, tmp_path / "speed_up.png").stat().st_size > 10_000
