"""What may be asked, and what a request comes to in numbers.

Every message begins with the name of the option that is wrong.
"""

import math
from dataclasses import dataclass

import numpy as np

from hsokv_ray.errors import ConfigError
from hsokv_ray.inference.engine.config import EngineConfig
from hsokv_ray.inference.engine.events import Reason
from hsokv_ray.inference.engine.requests import Generation, Sampling
from hsokv_ray.inference.engine.served import ServedModel
from hsokv_ray.longcontext.config import Resolved

_LARGEST_PENALTY = 2.0
_LARGEST_BIAS = 100.0
_MOST_STOPS = 16
_MOST_BIASES = 300
"""Each costs time in every step."""
_SHOWN = 80
"""Characters of a wrong value that are said again."""


@dataclass(frozen=True)
class Plan:
    """A request that was checked."""

    prompt_ids: np.ndarray
    """[N] int64."""
    document_tokens: int
    limit: int
    """New tokens of a choice, at most."""
    limit_reason: Reason
    settings: Resolved
    marks: tuple[int, ...]
    """Numbers of tokens of the whole input, behind the documents, at which others may share what is read."""

    @property
    def total_tokens(self) -> int:
        """Of the whole input."""
        return self.document_tokens + len(self.prompt_ids)


def plan(served: ServedModel, config: EngineConfig, generation: Generation) -> Plan:
    """Return what a request comes to. Raises `ConfigError`: it is too long, or an option is wrong."""
    sampling, settings = generation.sampling, served.resolve(generation.settings)
    _check_sampling(sampling, config, served.vocab_size)
    prompt_ids = checked_ids(served, generation.prompt_ids, "prompt")
    document_tokens = 0 if generation.after is None else len(generation.after)
    total = document_tokens + len(prompt_ids)
    check_length(total, served, "prompt")
    unlimited = config.unlimited if generation.unlimited is None else generation.unlimited
    limit, reason = sampling.max_tokens or config.max_new_tokens, "length"
    if not unlimited:
        limit, reason = _within_window(total, settings.window, limit)
    return Plan(prompt_ids, document_tokens, limit, reason, settings, _marks(served, settings, document_tokens, total))


def checked_ids(served: ServedModel, token_ids: object, name: str) -> np.ndarray:
    """Return token ids [N] int64. Raises `ConfigError`: none, or not the model's."""
    ids = np.asarray(token_ids)
    if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
        raise ConfigError(f"{name}: got {ids.dtype} {list(ids.shape)}; give a list of at least one token id")
    if ids.min() < 0 or ids.max() >= served.vocab_size:
        wrong = ids[(ids < 0) | (ids >= served.vocab_size)][0]
        raise ConfigError(f"{name}: token id {wrong} is not the model's, which are 0 to {served.vocab_size - 1}")
    return ids.astype(np.int64)


def check_length(total: int, served: ServedModel, name: str) -> None:
    """Raise `ConfigError` where an input is longer than the server takes."""
    if total > served.max_input_tokens:
        raise ConfigError(
            f"{name}: the input has {total:,} tokens, the server takes {served.max_input_tokens:,}; shorten it"
        )


def _within_window(total: int, window: int, limit: int) -> tuple[int, Reason]:
    if total >= window:
        raise ConfigError(
            f"prompt: the input has {total:,} tokens, the model's window is {window:,}, one of which is for the "
            "answer; shorten it, or turn long context on to read it by retrieval"
        )
    return (limit, "length") if total + limit <= window else (window - total, "window")


def _marks(served: ServedModel, settings: Resolved, document_tokens: int, total: int) -> tuple[int, ...]:
    """Return where an input past the window can be shared: at whole strides, the last token is never read.

    Inside the window everything is local, and a mark would copy all of the text so far.
    """
    if total <= settings.window or (document_tokens and settings != served.settings):
        return ()
    first = max(document_tokens, settings.window) // served.stride + 1
    return tuple(range(first * served.stride, total, served.stride))


def _check_sampling(sampling: Sampling, config: EngineConfig, vocab_size: int) -> None:
    cap = config.max_new_tokens
    _check(sampling.max_tokens is None or 1 <= sampling.max_tokens <= cap, "max_tokens", sampling, f"1 to {cap:,}")
    _check(1 <= sampling.n <= config.max_choices, "n", sampling, f"1 to {config.max_choices}")
    most = config.max_logprobs
    _check(sampling.logprobs is None or 0 <= sampling.logprobs <= most, "logprobs", sampling, f"0 to {most}")
    _check(0 <= sampling.temperature < math.inf, "temperature", sampling, "0 or more")
    _check(0 < sampling.top_p <= 1, "top_p", sampling, "more than 0, up to 1")
    _check(sampling.top_k >= 0, "top_k", sampling, "0 (off) or more")
    _check(0 <= sampling.min_p <= 1, "min_p", sampling, "0 (off) to 1")
    _check(0 < sampling.repetition_penalty < math.inf, "repetition_penalty", sampling, "more than 0; 1 turns it off")
    for name in ("frequency_penalty", "presence_penalty"):
        _check(abs(getattr(sampling, name)) <= _LARGEST_PENALTY, name, sampling, "-2 to 2")
    fitting = all(isinstance(stop, str) and stop for stop in sampling.stop) and len(sampling.stop) <= _MOST_STOPS
    _check(fitting, "stop", sampling, f"up to {_MOST_STOPS} texts that are not empty")
    biases = sampling.logit_bias.items()
    _check(len(biases) <= _MOST_BIASES, "logit_bias", sampling, f"up to {_MOST_BIASES} tokens")
    known = all(0 <= token < vocab_size and abs(bias) <= _LARGEST_BIAS for token, bias in biases)
    _check(known, "logit_bias", sampling, f"token ids 0 to {vocab_size - 1} with numbers from -100 to 100")


def _check(fits: bool, name: str, sampling: Sampling, allowed: str) -> None:
    if not fits:
        raise ConfigError(f"{name}: got {_shortened(getattr(sampling, name))}, allowed: {allowed}")


def _shortened(value: object) -> str:
    """Return the beginning of what `repr` says."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
