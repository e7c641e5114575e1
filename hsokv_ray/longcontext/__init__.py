"""Inputs past a model's window: encode once, and let attention fetch what it needs."""

from typing import TYPE_CHECKING

from hsokv_ray.longcontext.config import LongContextConfig

if TYPE_CHECKING:
    from hsokv_ray.longcontext.memory import Memory
    from hsokv_ray.longcontext.model import Answer, LongContext

__all__ = ["Answer", "LongContext", "LongContextConfig", "Memory"]


def __getattr__(name: str) -> object:
    if name in ("Answer", "LongContext", "Memory"):  # the configuration alone must not import torch
        from hsokv_ray.longcontext import memory, model

        return getattr(memory if name == "Memory" else model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
