"""The `model` section of a job: a size, and what may be changed about it."""

from typing import Literal

import pydantic

from hsokv_ray.config import Config

Size = Literal["micro", "tiny", "small", "base", "large"]


class ModelConfig(Config):
    """Size and shape of the model."""

    size: Size = "micro"
    """Preset by counted parameters: micro about 10M, tiny 100M, small 1B, base 12B (2B active), large 30B."""

    num_experts: int | None = pydantic.Field(default=None, ge=1)
    """Experts per layer; 1 is a dense model. None: the size's own."""

    num_experts_per_tok: int | None = pydantic.Field(default=None, ge=1)
    """Experts each token is sent to. None: the size's own (2)."""

    shared_expert: bool = False
    """One more expert per layer that every token passes."""

    balance: Literal["bias", "switch", "none"] = "bias"
    """How experts are kept equally busy: DeepSeek-V3's loss-free bias, the Switch loss, or not at all."""

    balance_rate: float = pydantic.Field(default=1e-2, gt=0)
    """First step of the loss-free bias; decays to a tenth over the run."""

    switch_loss: float = pydantic.Field(default=1e-2, ge=0)
    """Weight of the Switch balance loss where `--balance switch`."""

    z_loss: float = pydantic.Field(default=1e-3, ge=0)
    """Weight of the router z-loss."""

    experts_implementation: str | None = None
    """How experts are computed: hmst_sorted, grouped_mm, batched_mm or eager. None: the fastest measured for the
    device and dtype."""
