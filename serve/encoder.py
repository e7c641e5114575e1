"""The sentence encoder behind /v1/embeddings: a Serve deployment of its own.

A gateway has no torch and an event loop to keep free; replicas of the model are busy generating. So the encoder has its
own process, loaded when the application starts, which Serve restarts and can have several of.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.errors import ApiError

QUEUE = 64
"""Requests that wait for the encoder; past them it answers 429."""
_AT_ONCE = 2
"""Requests a replica takes: one is encoded while the next is unpacked."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """Texts as vectors."""

    vectors: np.ndarray
    """float32 [n, d]."""
    num_tokens: int
    """Of all texts, special tokens included."""


class Encoder:
    """A replica of the encoder.

    Args:
        spec: as `hsokv_ray.memory.encoders.open_encoder` takes it.

    Raises `ConfigError` where it cannot be loaded.
    """

    def __init__(self, spec: str) -> None:
        from hsokv_ray.memory.encoders import open_encoder

        self._encoder = open_encoder(spec)
        self._thread = ThreadPoolExecutor(1, "encode")

    async def embed(self, texts: list[str], dimensions: int | None) -> Embedded:
        """Return the vectors of `texts`. Raises `ApiError` 400: a text is too long, or other `dimensions` are asked."""
        if dimensions not in (None, self._encoder.dim):
            message = f"dimensions: got {dimensions}; this encoder has {self._encoder.dim}: leave it out"
            raise ApiError(400, message, param="dimensions")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._embed, texts)

    def _embed(self, texts: list[str]) -> Embedded:
        counts = self._encoder.count_tokens(texts)
        most = self._encoder.max_tokens
        for number, count in enumerate(counts):
            if count > most:
                message = f"input[{number}] has {count} tokens, the encoder reads {most}; split the text"
                raise ApiError(400, message, param="input", code="context_length_exceeded")
        return Embedded(self._encoder.encode(texts), sum(counts))


def encoder_deployment(spec: str | None) -> Any:
    """Return the encoder to be bound into an application; None where none is configured."""
    from ray import serve

    if spec is None:
        return None
    options: dict[str, Any] = {"max_ongoing_requests": _AT_ONCE, "max_queued_requests": QUEUE}
    deployment: Any = serve.deployment(Encoder, name="Encoder")
    return deployment.options(**options, ray_actor_options={"num_cpus": 0.5}).bind(spec)
