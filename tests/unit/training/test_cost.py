"""How long a run is and what it takes, from the flags alone."""

import pytest

from hsokv_ray.config import parse
from hsokv_ray.errors import ConfigError
from hsokv_ray.models.presets import estimate_memory, model_shape
from hsokv_ray.training.config import TrainHMSTConfig
from hsokv_ray.training.cost import cost_of, describe, run_length, warmup_steps


def config(*flags: str) -> TrainHMSTConfig:
    return parse(TrainHMSTConfig, list(flags))


BLOCKS = ("--batch-size", "2", "--gradient-accumulation-steps", "3", "--num-workers", "4", "--seq-len", "100")


def test_tokens_per_step_are_blocks_of_all_workers_and_micro_batches() -> None:
    assert run_length(config(*BLOCKS), num_tokens=10**6, estimated=False).tokens_per_step == 2 * 3 * 4 * 100


@pytest.mark.parametrize(
    ("flags", "steps", "limit", "epochs"),
    [
        ((), 417, None, 1),  # 1,000,000 tokens in steps of 2,400, rounded up
        (("--epochs", "2"), 834, None, 2),
        (("--epochs", "0.5"), 209, None, 0.5),
        (("--max-steps", "7"), 7, 7, None),
        (("--max-steps", "7", "--epochs", "1"), 7, 7, 1),
        (("--steps-per-epoch", "10"), 10, 10, None),
        (("--steps-per-epoch", "10", "--epochs", "3"), 30, 30, None),
    ],
)
def test_steps_follow_from_steps_epochs_or_the_source(
    flags: tuple[str, ...], steps: int, limit: int | None, epochs: float | None
) -> None:
    length = run_length(config(*BLOCKS, *flags), num_tokens=10**6, estimated=True)
    assert (length.max_steps, length.step_limit, length.epochs) == (steps, limit, epochs)


def test_overlapping_blocks_make_an_epoch_longer() -> None:
    length = run_length(config(*BLOCKS, "--stride", "50"), num_tokens=10**6, estimated=True)
    assert length.max_steps == 834


def test_the_warm_up_is_a_tenth_of_a_short_run_and_a_hundred_steps_of_a_long_one() -> None:
    assert warmup_steps(config(), 50) == 5
    assert warmup_steps(config(), 100_000) == 100
    assert warmup_steps(config("--warmup-steps", "0"), 50) == 0
    with pytest.raises(ConfigError, match="got 50, and the run has 50 steps"):
        warmup_steps(config("--warmup-steps", "50"), 50)


def test_the_description_carries_every_number_of_the_cost() -> None:
    settings = config("--size", "base", "--optimizer", "adamw", "--max-steps", "10")
    shape = model_shape(settings.model, seq_len=512)
    cost = cost_of(settings, shape, run_length(settings, num_tokens=123_456, estimated=True))
    text = describe(cost, size="base", num_workers=1)
    for number in (cost.parameters.total, cost.parameters.active, cost.length.total_tokens, 123_456):
        assert f"{number:,}" in text
    memory = estimate_memory(shape, batch_size=8, seq_len=512)
    assert f"{memory.total_bytes / 2**30:.2f} GiB" in text
