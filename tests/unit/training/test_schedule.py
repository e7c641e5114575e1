import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LinearLR
from transformers import get_cosine_with_min_lr_schedule_with_warmup, get_wsd_schedule

from hsokv_ray.training.schedule import ScheduleKind, learning_rate

PEAK, WARMUP, MAX_STEPS = 3e-3, 20, 200


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)


def rates_of(scheduler: torch.optim.lr_scheduler.LRScheduler, num_steps: int) -> list[float]:
    rates = []
    for _ in range(num_steps):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def ours(kind: ScheduleKind, num_steps: int) -> list[float]:
    return [
        learning_rate(step, peak=PEAK, warmup_steps=WARMUP, max_steps=MAX_STEPS, kind=kind) for step in range(num_steps)
    ]


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_warm_up_is_torchs_linear_one(kind):
    expected = rates_of(LinearLR(optimizer(), start_factor=1 / (WARMUP + 1), total_iters=WARMUP), WARMUP + 1)
    assert ours(kind, WARMUP + 1) == pytest.approx(expected)


def test_cosine_is_that_of_transformers_after_warm_up():
    reference = get_cosine_with_min_lr_schedule_with_warmup(optimizer(), WARMUP, MAX_STEPS, min_lr_rate=0.1)
    assert ours("cosine", MAX_STEPS)[WARMUP:] == pytest.approx(rates_of(reference, MAX_STEPS)[WARMUP:])


def test_wsd_is_that_of_transformers_after_warm_up():
    reference = get_wsd_schedule(
        optimizer(), WARMUP, MAX_STEPS // 5, num_training_steps=MAX_STEPS, decay_type="1-sqrt", min_lr_ratio=0.1
    )
    assert ours("wsd", MAX_STEPS)[WARMUP:] == pytest.approx(rates_of(reference, MAX_STEPS)[WARMUP:])


def test_constant_stays_at_the_peak():
    assert set(ours("constant", MAX_STEPS + 50)[WARMUP:]) == {PEAK}


@given(
    step=st.integers(0, 500),
    warmup_steps=st.integers(0, 300),
    max_steps=st.integers(1, 300),
    kind=st.sampled_from(["cosine", "wsd", "constant"]),
)
def test_every_rate_is_positive_and_at_most_the_peak(step, warmup_steps, max_steps, kind):
    rate = learning_rate(step, peak=PEAK, warmup_steps=warmup_steps, max_steps=max_steps, kind=kind)
    assert 0 < rate <= PEAK * (1 + 1e-9)


@pytest.mark.parametrize("kind", ["cosine", "wsd"])
def test_the_last_rate_is_a_tenth_and_holds(kind):
    assert ours(kind, MAX_STEPS + 50)[MAX_STEPS:] == pytest.approx([PEAK / 10] * 50)
