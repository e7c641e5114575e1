"""Configuration of `hsokv generate`."""

from typing import Annotated, Literal

import pydantic
import tyro

from hsokv_ray.config import Config
from hsokv_ray.longcontext.config import LongContextConfig


class SamplingConfig(Config):
    """How the next token is chosen."""

    max_length: int = pydantic.Field(default=50, ge=1)
    """New tokens, at most."""

    temperature: float = pydantic.Field(default=0.8, ge=0)
    """Divides the logits; 0 always takes the likeliest token (greedy)."""

    top_p: float = pydantic.Field(default=0.9, gt=0, le=1)
    """Smallest set of tokens with this much probability is drawn from; 1 turns it off."""

    top_k: int = pydantic.Field(default=50, ge=0)
    """Number of likeliest tokens drawn from; 0 turns it off."""

    num_beams: int = pydantic.Field(default=1, ge=1)
    """Beams of beam search; more than 1 cannot stream."""

    seed: int | None = pydantic.Field(default=None, ge=0, lt=2**63)
    """Seed of the draws. None: a new one each time, told with the result."""


class GenerateConfig(Config):
    """Generate text from a checkpoint: interactively, for one --prompt, or for the lines of --input.

    With --long the model reads past its window: --input is one text of any length, which is encoded once, and --prompt
    or the lines you type are asked about it.

    Takes a run's folder (its best checkpoint, else the newest), a checkpoint, any folder with a Hugging Face causal
    model, or a name on the hub.
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """Run folder, checkpoint folder, Hugging Face model folder or hub name."""

    sampling: SamplingConfig = SamplingConfig()
    """How the next token is chosen."""

    prompt: str | None = None
    """Generate for this text and end. None: ask for prompts."""

    input: str | None = None
    """File with one prompt per line; empty lines are skipped and counted. With --long: a text of any length."""

    output: str | None = None
    """File the results of --input go to, one JSON object per line. None: standard output."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs; auto takes a GPU if there is one."""

    long: bool = False
    """Read past the model's window by retrieval; the same as --enabled."""

    memory: str | None = None
    """With --long: folder of the encoded --input. It is written, or read where it is there and no --input is given."""

    long_context: LongContextConfig = LongContextConfig()
    """How a long input is read."""

    @property
    def is_long(self) -> bool:
        """Whether to read past the window."""
        return self.long or self.long_context.enabled

    @pydantic.model_validator(mode="after")
    def _check(self) -> "GenerateConfig":
        if self.is_long:
            return self._check_long()
        if self.memory is not None:
            raise ValueError(f"--memory {self.memory} needs --long")
        if self.long_context != LongContextConfig():
            changed = ", ".join(f"--{name.replace('_', '-')}" for name in self.long_context.model_fields_set)
            raise ValueError(f"settings of long context ({changed}) need --long")
        if self.prompt is not None and self.input is not None:
            raise ValueError(
                "--prompt and --input exclude each other; give one of them, or --long to ask --prompt about --input"
            )
        if self.output is not None and self.input is None:
            raise ValueError(f"--output {self.output} needs --input, a file with one prompt per line")
        if self.output is not None and self.output == self.input:
            raise ValueError(f"--output {self.output} would overwrite --input; give another file")
        return self

    def _check_long(self) -> "GenerateConfig":
        if self.output is not None:
            raise ValueError(f"--output {self.output} is for the lines of --input; with --long the answer is printed")
        if self.input is None and self.memory is None:
            raise ValueError("--long needs a text: --input FILE, or --memory FOLDER with one encoded before")
        return self
