import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hsokv_ray.training.metrics import (
    MetricsWriter,
    Throughput,
    cut_after,
    duration,
    progress_line,
    read_rows,
)


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def write_steps(folder, steps, *, resume_step: int = 0) -> MetricsWriter:
    writer = MetricsWriter(folder, resume_step=resume_step)
    for step in steps:
        writer.write(
            {"step": step, "loss": 10.0 - step, "val_loss": None, "router": {"entropy": 0.5, "load": [[1, 2]]}}
        )
    writer.close()
    return writer


def test_a_resumed_run_cuts_the_rows_past_its_checkpoint(tmp_path):
    write_steps(tmp_path, range(1, 9))
    writer = write_steps(tmp_path, range(6, 8), resume_step=5)
    assert writer.num_cut == 3
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6, 7]


def test_a_fresh_start_in_a_folder_without_checkpoint_cuts_everything(tmp_path):
    write_steps(tmp_path, range(1, 4))
    assert write_steps(tmp_path, [1]).num_cut == 3
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1]


@given(data=st.data(), steps=st.lists(st.integers(1, 50), unique=True).map(sorted), resume_step=st.integers(0, 50))
def test_a_crash_in_the_middle_of_a_row_costs_only_that_row(tmp_path_factory, data, steps, resume_step):
    path = tmp_path_factory.mktemp("torn") / "metrics.jsonl"
    text = "".join(json.dumps({"step": step}) + "\n" for step in steps)
    torn = text[: data.draw(st.integers(0, len(text)))]
    path.write_text(torn)
    cut = cut_after(path, resume_step)
    kept = [row["step"] for row in read_rows(path)]
    assert kept == [step for step in steps[: torn.count("\n")] if step <= resume_step]
    assert cut == len(torn.splitlines()) - len(kept)


def test_numbers_that_are_not_finite_become_null_and_are_named(tmp_path):
    writer = MetricsWriter(tmp_path, resume_step=0)
    writer.write({"step": 1, "loss": 2.0, "grad_norm": math.inf, "router": {"entropy": math.nan}})
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    row = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row == {
        "step": 1,
        "loss": 2.0,
        "grad_norm": None,
        "router": {"entropy": None},
        "not_finite": ["grad_norm", "router.entropy"],
    }


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    write_steps(tmp_path, range(1, 9))
    write_steps(tmp_path, range(6, 8), resume_step=5)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4, 5, 6, 7]
    assert [event.value for event in board.Scalars("loss")] == [10.0 - step for step in range(1, 8)]
    assert set(board.Tags()["scalars"]) == {"loss", "router/entropy"}


def test_rates_leave_out_the_first_steps_and_the_pauses():
    clock = Clock()
    meter = Throughput(clock, skip_steps=2)
    for seconds in (50, 50, 2, 2):
        clock.now += seconds
        meter.step(1_000, wait_s=seconds / 4)
        with meter.paused():
            clock.now += 100
    rates = meter.rates(flops_per_token=6.0, peak_flops=12_000.0)
    assert (rates.tokens_per_s, rates.flops_per_s, rates.mfu) == (500, 3_000, 0.25)
    assert (rates.wait_share, rates.step_ms) == (0.25, 2_000)


def test_each_reading_begins_where_the_last_one_ended():
    clock = Clock()
    meter = Throughput(clock, skip_steps=0)
    clock.now = 10
    meter.step(100)
    assert meter.rates().tokens_per_s == 10
    clock.now = 15
    meter.step(100)
    assert meter.rates().tokens_per_s == 20
    assert meter.rates().tokens_per_s is None


def test_rates_are_unknown_before_a_measured_step_and_mfu_without_a_peak():
    clock = Clock()
    meter = Throughput(clock, skip_steps=1)
    assert set(vars(meter.rates()).values()) == {None}
    for _ in range(2):
        clock.now += 1
        meter.step(10)
    rates = meter.rates(flops_per_token=6.0)
    assert (rates.flops_per_s, rates.mfu) == (60, None)


def test_the_time_left_counts_pauses_at_the_pace_so_far():
    clock = Clock()
    meter = Throughput(clock)
    assert meter.eta_s(5) is None
    clock.now = 3
    meter.step(10)
    with meter.paused():
        clock.now += 3
    meter.step(10)
    assert meter.eta_s(10) == 30


def test_the_progress_line_reads_as_documented():
    row = {"step": 120, "max_steps": 1200, "loss": 4.8123, "val_loss": 5.019, "tokens_per_s": 3911.7}
    assert progress_line(row, eta_s=130) == "step 120/1,200  loss 4.81  val 5.02  3,912 tok/s  ETA 2m10s"


def test_the_progress_line_leaves_out_what_is_not_known():
    assert progress_line({"step": 1, "loss": 9.0, "val_loss": None, "tokens_per_s": None}) == "step 1  loss 9.00"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (45.4, "45s"), (59.6, "1m00s"), (130, "2m10s"), (3_900, "1h05m"), (183_600, "2d03h")],
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text
