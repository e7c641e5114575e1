"""Configuration of the memories. Imports neither torch nor an engine, so `--help` answers at once.

KeyValueConfig(key_dim=128, value_dim=256, capacity=1000, lifecycle=LifecycleConfig(learning_retrievals=3))
"""

from typing import Literal

import pydantic

from hsokv_ray.config import Config


class LifecycleConfig(Config):
    """How an entry of the key-value memory gains and loses standing.

    An entry is learning below `learning_retrievals`, in reinforcement below `mature_retrievals`, then mature. The first
    two stages are protected from eviction.
    """

    initial_confidence: float = pydantic.Field(default=0.7, gt=0, le=1)
    """Confidence of a new entry."""
    min_confidence: float = pydantic.Field(default=0.05, gt=0, le=1)
    """Confidence never falls below this."""
    confidence_step: float = pydantic.Field(default=0.1, ge=0, le=1)
    """Feedback s in [0, 1] moves confidence by this times (s - 0.5)."""
    learning_retrievals: int = pydantic.Field(default=5, ge=0)
    """Retrievals at which the learning stage ends."""
    mature_retrievals: int = pydantic.Field(default=20, ge=0)
    """Retrievals at which an entry is mature."""
    boost: float = pydantic.Field(default=1.5, ge=1)
    """Factor on the confidence of a learning entry; falls linearly to 1 over reinforcement."""
    recency_half_life: int = pydantic.Field(default=1000, ge=1)
    """Reads, writes and feedbacks of the memory after which the recency of an unused entry has halved."""

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> "LifecycleConfig":
        if self.mature_retrievals < self.learning_retrievals:
            raise ValueError(
                f"mature_retrievals: got {self.mature_retrievals}; at least learning_retrievals "
                f"({self.learning_retrievals}) is needed"
            )
        if self.initial_confidence < self.min_confidence:
            raise ValueError(
                f"initial_confidence: got {self.initial_confidence}; at least min_confidence "
                f"({self.min_confidence}) is needed"
            )
        return self


class KeyValueConfig(Config):
    """A key-value memory of fixed capacity."""

    key_dim: int = pydantic.Field(ge=1)
    """Dimensions of keys and queries."""
    value_dim: int = pydantic.Field(ge=1)
    """Dimensions of values."""
    capacity: int = pydantic.Field(default=1000, ge=1)
    """Entries held at most; beyond, the least useful one makes room."""
    top_k: int = pydantic.Field(default=10, ge=1)
    """Entries a query retrieves."""
    temperature: float = pydantic.Field(default=0.1, gt=0)
    """Divides the cosines in the softmax over the retrieved entries."""
    threshold: float = pydantic.Field(default=0.15, ge=-1, le=1)
    """Cosine below which an entry is no hit."""
    learning_recall: Literal["top1", "blend"] = "top1"
    """What a query gets whose nearest hit is learning. top1: that value alone (its gradient is the blend's). blend: the
    softmax, as for all others."""
    exclude_stale: bool = True
    """Whether entries whose key was made by another encoder than the current one are left out."""
    lifecycle: LifecycleConfig = LifecycleConfig()
    """How entries gain and lose standing."""


class ConsolidationConfig(Config):
    """What moves from episodic to semantic memory. Formulas: `hsokv_ray.memory.importance`."""

    min_importance: float = pydantic.Field(default=0.5, ge=0, le=1)
    """Importance from which an episode moves."""
    use_weight: float = pydantic.Field(default=0.4, ge=0)
    """Share of use in the importance; the three weights are divided by their sum."""
    novelty_weight: float = pydantic.Field(default=0.4, ge=0)
    """Share of novelty."""
    recency_weight: float = pydantic.Field(default=0.2, ge=0)
    """Share of recency."""
    half_use: float = pydantic.Field(default=1.0, gt=0)
    """Uses at which the use score is one half."""
    decay_per_hour: float = pydantic.Field(default=0.995, gt=0, lt=1)
    """Factor on recency per hour since the last use."""
    similarity: float = pydantic.Field(default=0.95, gt=0, le=1)
    """Cosine from which two episodes are near-duplicates."""
    batch_size: int = pydantic.Field(default=64, ge=1)
    """Groups written, verified and deleted together."""

    @pydantic.model_validator(mode="after")
    def _some_weight(self) -> "ConsolidationConfig":
        if self.use_weight + self.novelty_weight + self.recency_weight <= 0:
            raise ValueError("use_weight, novelty_weight and recency_weight: all are 0; one above 0 is needed")
        return self
