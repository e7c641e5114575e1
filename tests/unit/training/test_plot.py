import json
import random

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from hsokv_ray.training.plot import BASELINE, TRAIN, VALIDATION, plot_loss, smooth


def write_rows(path, *, val_every: int | None):
    rows = [{"step": s, "loss": 9 - s / 30, "val_loss": 9 - s / 30 if val_every and s % val_every == 0 else None}
            for s in range(1, 121)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def has_color(png, color: str) -> bool:
    return bool((np.abs(imread(png)[..., :3] - to_rgb(color)).max(axis=-1) < 0.01).any())


def test_the_plot_shows_training_validation_and_baseline(tmp_path):
    metrics = write_rows(tmp_path / "metrics.jsonl", val_every=20)
    png = plot_loss(metrics, tmp_path / "loss.png", unigram_entropy=7.0, title="run")
    assert all(has_color(png, color) for color in (TRAIN, VALIDATION, BASELINE))


def test_what_is_not_there_is_not_drawn(tmp_path):
    png = plot_loss(write_rows(tmp_path / "metrics.jsonl", val_every=None), tmp_path / "loss.png")
    assert [has_color(png, color) for color in (TRAIN, VALIDATION, BASELINE)] == [True, False, False]


def test_a_file_without_losses_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="got 1 rows and none has a loss"):
        plot_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png")


@pytest.mark.parametrize("length", [1, 5, 41, 200])
def test_smoothing_is_the_mean_of_the_points_around(length):
    values = [random.Random(i).random() for i in range(length)]
    reach = round(0.1 * length) // 2
    expected = [np.mean(values[max(0, i - reach) : i + reach + 1]) for i in range(length)]
    assert smooth(values, 0.1) == pytest.approx(expected)
