"""Continuous batching for one model: many requests, long and short, share each forward pass."""

from typing import TYPE_CHECKING

from hsokv_ray.inference.engine.config import EngineConfig
from hsokv_ray.inference.engine.events import (
    ChoiceEnded,
    Event,
    Failed,
    Finished,
    Passage,
    Piece,
    Started,
    Timing,
    TokenLogprob,
    Usage,
)
from hsokv_ray.inference.engine.requests import Generation, Sampling

if TYPE_CHECKING:
    from hsokv_ray.inference.engine.encoding import EncodeJob
    from hsokv_ray.inference.engine.engine import Engine
    from hsokv_ray.inference.engine.stats import EngineStats
    from hsokv_ray.inference.engine.streams import EventStream

__all__ = [
    "ChoiceEnded",
    "EncodeJob",
    "Engine",
    "EngineConfig",
    "EngineStats",
    "Event",
    "EventStream",
    "Failed",
    "Finished",
    "Generation",
    "Passage",
    "Piece",
    "Sampling",
    "Started",
    "Timing",
    "TokenLogprob",
    "Usage",
]


def __getattr__(name: str) -> object:
    if name == "Engine":  # configuration, requests and events alone must not import torch
        from hsokv_ray.inference.engine.engine import Engine

        return Engine
    if name == "EncodeJob":
        from hsokv_ray.inference.engine.encoding import EncodeJob

        return EncodeJob
    if name == "EngineStats":
        from hsokv_ray.inference.engine.stats import EngineStats

        return EngineStats
    if name == "EventStream":
        from hsokv_ray.inference.engine.streams import EventStream

        return EventStream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
