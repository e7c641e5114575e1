"""GET /v1/models and /health."""

from typing import Literal

from serve.wire.base import Wire


class ModelBody(Wire):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "hsokv_ray"
    window_tokens: int | None = None
    """Tokens the model was trained to attend to."""
    max_input_tokens: int | None = None
    """Tokens of an input, at most; null: no limit."""
    unlimited: bool = False
    """Whether inputs past the window are read by retrieval unless the request says otherwise."""


class ModelList(Wire):
    """The models that are served."""

    object: Literal["list"] = "list"
    data: list[ModelBody]


class HealthBody(Wire):
    """The application can answer."""

    status: Literal["ok"] = "ok"
    model: str


class StatusBody(Wire):
    """The numbers of the moment, over all replicas."""

    model: str
    replicas: int
    running: int
    """Answers that are being generated or read for."""
    queued: int
    """Requests that wait."""
    tokens_total: int
    """Tokens generated since the replicas began."""
    tokens_per_s: float
    """Tokens generated in the last second."""
    segment_bytes: int
    """Encoded texts that are kept."""
    segment_limit_bytes: int
    rss_bytes: int
    """Memory that all processes have in use."""
    time_s: float
    """Seconds on a clock that only goes forward."""
