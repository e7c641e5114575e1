"""What users are told of a request that failed."""

import logging

import torch

from hsokv_ray.errors import ConfigError, DataError, HsokvError, Overloaded
from hsokv_ray.inference.engine.events import Failed

logger = logging.getLogger(__name__)


def failed_of(error: BaseException, request_id: str) -> Failed:
    """Return the last event of a request that raised `error`; what is not the user's doing is logged whole."""
    message = " ".join(str(error).split())
    if isinstance(error, Overloaded):
        return Failed("overloaded", message, retry_after_s=error.retry_after_s)
    if isinstance(error, ConfigError | DataError):
        return Failed("invalid", message)
    logger.error("request %s failed", request_id, exc_info=error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return Failed("unavailable", "out of memory; send a shorter input, or try again later")
    if isinstance(error, HsokvError):
        return Failed("unavailable", message)
    return Failed("internal", f"{type(error).__name__}: {message[:300]}")
