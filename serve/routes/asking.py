"""What chats and completions share: from a request's fields to the calls for the replicas."""

import uuid

from hsokv_ray.inference.engine.requests import Sampling
from serve.errors import ApiError
from serve.services import Services
from serve.wire.common import GenerationRequest


def new_id() -> str:
    """Return the id of a request."""
    return uuid.uuid4().hex


def check(services: Services, body: GenerationRequest) -> None:
    """Raise `ApiError`: another model, or more answers than are allowed."""
    if body.model != services.model_name:
        message = f"no model {body.model[:100]!r} is served here; there is: {services.model_name}"
        raise ApiError(404, message, param="model", code="model_not_found")
    most = services.args.engine.max_choices
    if (body.n or 1) > most:
        raise ApiError(400, f"n: got {body.n}; at most {most} answers are given to a request", param="n")


def sampling(body: GenerationRequest, *, max_tokens: int | None, logprobs: int | None) -> Sampling:
    """Return the sampling that `body` asks for. Raises `ApiError`: a bias for what is no token id."""
    return Sampling(
        max_tokens=max_tokens,
        temperature=_or(body.temperature, 1.0),
        top_p=_or(body.top_p, 1.0),
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        seed=None if body.seed is None else body.seed % 2**63,
        n=body.n or 1,
        stop=body.stops,
        logprobs=logprobs,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        logit_bias=_bias(body.logit_bias or {}),
        ignore_eos=bool(body.ignore_eos),
    )


def _bias(given: dict[str, float]) -> dict[int, float]:
    for token in given:
        if not (token.isascii() and token.isdecimal() and len(token) < 10):
            raise ApiError(400, f"logit_bias: got {token[:40]!r}; its keys are token ids", param="logit_bias")
    return {int(token): bias for token, bias in given.items()}


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
