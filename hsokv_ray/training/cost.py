"""What a run will cost, before anything starts: steps, tokens, parameters, memory."""

import math
from dataclasses import dataclass

from hsokv_ray.errors import ConfigError
from hsokv_ray.models.presets import (
    MemoryEstimate,
    ParameterCount,
    Shape,
    count_parameters,
    estimate_memory,
)
from hsokv_ray.training.config import TrainHMSTConfig

ASSUMED_BYTES_PER_TOKEN = 3.5
"""Text bytes per token where no tokenizer exists yet; measured once there is one."""


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long a run is."""

    max_steps: int
    """Optimiser steps the schedule spans."""
    step_limit: int | None
    """Steps after which the run ends; None: when the documents are used up."""
    tokens_per_step: int
    epochs: float | None
    """Passes over the documents after which they are used up; None: without end."""
    num_tokens: int
    """Tokens of one pass."""
    estimated: bool
    """Whether `num_tokens` is an estimate from the bytes of the text."""

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run, at most."""
        return self.max_steps * self.tokens_per_step


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run takes."""

    parameters: ParameterCount
    memory: MemoryEstimate
    length: Length


def run_length(config: TrainHMSTConfig, *, num_tokens: int, estimated: bool) -> Length:
    """Return the steps of a run over a source of `num_tokens` training tokens.

    `--max-steps` wins; else `--epochs` (default 1) times `--steps-per-epoch`, or times the steps of one pass. The steps
    of a pass are an estimate where its tokens are: then the schedule spans the estimate, and the run ends when the
    documents do.
    """
    optim, data = config.optim, config.data
    blocks = optim.batch_size * optim.gradient_accumulation_steps * config.run.num_workers
    per_step = blocks * data.seq_len
    epochs = optim.epochs
    if optim.steps_per_epoch is not None:
        steps = optim.max_steps or math.ceil((epochs or 1) * optim.steps_per_epoch)
        return Length(
            max_steps=steps,
            step_limit=steps,
            tokens_per_step=per_step,
            epochs=None,
            num_tokens=num_tokens,
            estimated=estimated,
        )
    if optim.max_steps is None and epochs is None:
        epochs = 1.0
    steps_of_pass = num_tokens / (blocks * data.block_stride)
    steps = optim.max_steps or max(1, math.ceil((epochs or 1) * steps_of_pass))
    return Length(
        max_steps=steps,
        step_limit=optim.max_steps,
        tokens_per_step=per_step,
        epochs=epochs,
        num_tokens=num_tokens,
        estimated=estimated,
    )


def cost_of(config: TrainHMSTConfig, shape: Shape, length: Length) -> Cost:
    """Return parameters, memory of one worker and length of the run."""
    return Cost(parameters=count_parameters(shape), memory=memory_of(config, shape), length=length)


def memory_of(config: TrainHMSTConfig, shape: Shape) -> MemoryEstimate:
    """Return the memory one worker needs."""
    run = config.run
    return estimate_memory(
        shape,
        batch_size=config.optim.batch_size,
        seq_len=config.data.seq_len,
        optimizer=config.optim.optimizer_name,
        num_workers=run.num_workers,
        parallel=run.parallel,
        expert_parallel_size=run.expert_parallel_size,
        mixed_precision=run.mixed_precision if run.mixed_precision is not None else run.use_gpu,
        gradient_checkpointing=run.gradient_checkpointing,
    )


def describe(cost: Cost, *, size: str, num_workers: int) -> str:
    """Return the cost as lines for a person."""
    parameters, memory, length = cost.parameters, cost.memory, cost.length
    about = "about " if length.estimated else ""
    lines = [
        f"parameters   {parameters.total:,} in all, {parameters.active:,} active per token (size {size})",
        f"memory       {_gib(memory.total_bytes)} per worker: {describe_memory(memory)} (estimate; "
        f"{num_workers} worker{'s' * (num_workers > 1)})",
        f"tokens       {length.tokens_per_step:,} per step, {length.total_tokens:,} in {length.max_steps:,} steps; "
        f"the source has {about}{length.num_tokens:,} for training",
    ]
    return "\n".join(lines)


def describe_memory(memory: MemoryEstimate) -> str:
    """Return the parts of a memory estimate in one phrase."""
    return (
        f"weights {_gib(memory.weights_bytes)}, gradients {_gib(memory.gradients_bytes)}, optimiser "
        f"{_gib(memory.optimizer_bytes)}, activations {_gib(memory.activations_bytes)}"
    )


def warmup_steps(config: TrainHMSTConfig, max_steps: int) -> int:
    """Return the steps of the warm-up. Raises `ConfigError` where it does not fit into the run."""
    given = config.optim.warmup_steps
    if given is None:
        return min(100, max_steps // 10)
    if given >= max_steps:
        raise ConfigError(
            f"--warmup-steps: got {given}, and the run has {max_steps} steps; lower it or give more --max-steps"
        )
    return given


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**28 else f"{num_bytes / 2**20:.0f} MiB"
