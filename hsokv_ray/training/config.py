"""Configuration of the HMST training job."""

from typing import Literal

import pydantic

from hsokv_ray.config import Config
from hsokv_ray.data.config import DataConfig
from hsokv_ray.models.config import ModelConfig

OptimizerName = Literal["adamw", "muon", "adamw8bit"]


class OptimConfig(Config):
    """Optimiser and schedule. Every count of steps is a count of optimiser steps."""

    epochs: float | None = pydantic.Field(default=None, gt=0)
    """Passes over the training documents. None: one, unless `--max-steps` or `--steps-per-epoch` say otherwise."""

    max_steps: int | None = pydantic.Field(default=None, ge=1)
    """Optimiser steps after which training ends, and over which the schedule runs."""

    steps_per_epoch: int | None = pydantic.Field(default=None, ge=1)
    """Optimiser steps that count as one epoch, for sources too large to pass over."""

    batch_size: int = pydantic.Field(default=8, ge=1)
    """Blocks per worker in one forward pass."""

    gradient_accumulation_steps: int = pydantic.Field(default=1, ge=1)
    """Forward and backward passes per optimiser step."""

    learning_rate: float = pydantic.Field(default=2e-3, gt=0)
    """Peak learning rate of AdamW; Muon's own is scaled to match its update size."""

    weight_decay: float = pydantic.Field(default=0.1, ge=0)
    """Decoupled weight decay of matrices; norms, biases and embeddings have none."""

    warmup_steps: int | None = pydantic.Field(default=None, ge=0)
    """Steps in which the learning rate grows linearly from 0. None: a tenth of the run, at most 100."""

    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """Shape after warm-up: cosine to a tenth, warm-up stable decay (the last fifth decays), or constant."""

    grad_clip: float = pydantic.Field(default=1.0, ge=0)
    """Largest global norm of the gradient; 0 turns clipping off."""

    optimizer: OptimizerName = "adamw"
    """adamw (fused), muon (matrices by Muon with per-expert views, the rest by AdamW) or adamw8bit (an extra)."""

    use_8bit_optimizer: bool = False
    """Alias of `--optimizer adamw8bit`."""

    @property
    def optimizer_name(self) -> OptimizerName:
        """The optimiser after the alias is resolved."""
        return "adamw8bit" if self.use_8bit_optimizer else self.optimizer


class RunConfig(Config):
    """Where the run lives, what it may use, how often it reports."""

    output_dir: str | None = None
    """Folder that holds all runs; on a cluster, one that every node sees. None: $HSOKV_RUNS_DIR or ~/hsokv_runs."""

    name: str = "train_hmst"
    """The run's folder below `--output-dir`; the same name again resumes."""

    seed: int = pydantic.Field(default=0, ge=0)
    """Seed of weights, shards, documents and held-out split."""

    eval_every: int = pydantic.Field(default=100, ge=1)
    """Optimiser steps between two validations."""

    eval_tokens: int = pydantic.Field(default=65_536, ge=1)
    """Tokens of held-out text used by one validation, at most."""

    patience: int | None = pydantic.Field(default=None, ge=1)
    """Stop after this many validations without a better loss. None: never."""

    save_every: int = pydantic.Field(default=200, ge=1)
    """Optimiser steps between two checkpoints; the last step and the best validation are always saved."""

    keep: int = pydantic.Field(default=2, ge=1)
    """Newest checkpoints kept; the best one is kept besides."""

    log_every: int = pydantic.Field(default=10, ge=1)
    """Optimiser steps between two lines of metrics."""

    num_workers: int = pydantic.Field(default=1, ge=1)
    """Training processes; blocks of a step are shared among them."""

    cpus_per_worker: float | None = pydantic.Field(default=None, gt=0)
    """CPUs each worker reserves. None: 1, or less where the cluster is small, so that data tasks can run too."""

    data_cpus: float = pydantic.Field(default=1.0, gt=0)
    """CPUs left to the tasks that read and tokenise."""

    use_gpu: bool = False
    """One GPU per worker."""

    gpu_ids: tuple[int, ...] = ()
    """GPUs the workers may use, on every node; empty: all of them."""

    mixed_precision: bool | None = None
    """bfloat16 autocast. None: on for GPUs that have it, off on CPUs, where it slows small models; given: obeyed."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""

    compile: bool = False
    """Compile the model with torch.compile; needs a C++ compiler on CPUs."""

    parallel: Literal["ddp", "fsdp", "ep"] = "ddp"
    """How workers share the model: replicas (ddp), sharded weights (fsdp), or experts spread over workers (ep)."""

    expert_parallel_size: int | None = pydantic.Field(default=None, ge=1)
    """Workers that share one set of experts with `--parallel ep`. None: all of them."""

    max_failures: int = pydantic.Field(default=3, ge=0)
    """Times the workers are started again from the last checkpoint after one of them died."""

    dry_run: bool = False
    """Print the resolved configuration and what it costs (parameters, memory, tokens), and the first documents of the
    source; start nothing."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "RunConfig":
        if self.gpu_ids and not self.use_gpu:
            raise ValueError(f"--gpu-ids {' '.join(map(str, self.gpu_ids))} needs --use-gpu")
        if self.expert_parallel_size is not None and self.parallel != "ep":
            raise ValueError(f"--expert-parallel-size {self.expert_parallel_size} needs --parallel ep")
        ep = self.expert_parallel_size
        if ep is not None and self.num_workers % ep:
            raise ValueError(f"--expert-parallel-size: {ep} does not divide --num-workers {self.num_workers}")
        return self


class TrainHMSTConfig(Config):
    """Train an HMST language model on text.

    The same command again resumes the run; `--dry-run` says what it would cost.
    """

    data: DataConfig = DataConfig()
    """Text, tokenizer and packing."""

    model: ModelConfig = ModelConfig()
    """Size and shape of the model."""

    optim: OptimConfig = OptimConfig()
    """Optimiser and schedule."""

    run: RunConfig = RunConfig()
    """Where the run lives, what it may use, how often it reports."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "TrainHMSTConfig":
        if self.optim.optimizer_name == "adamw8bit" and self.run.parallel != "ddp":
            raise ValueError(
                f"--optimizer adamw8bit keeps state that --parallel {self.run.parallel} cannot divide over workers; "
                "use --parallel ddp, or --optimizer adamw or muon"
            )
        return self
