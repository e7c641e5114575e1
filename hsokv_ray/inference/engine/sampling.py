"""From logits to the next token of one choice, with transformers' own processors.

Shapes: V vocabulary, N tokens so far.
"""

import random

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hsokv_ray.inference.engine.requests import Sampling

_LEAST_ROOM = 64

_LEAST_TEMPERATURE = 1e-6
"""Below it nothing but the likeliest token has a chance, and dividing by it overflows."""


class Sampler:
    """Draws the tokens of one choice from a generator of its own, so that a seed reproduces them whatever else runs.

    Args:
        sampling: the request's.
        choice: number of the choice; its seed is `sampling.seed + choice`.
        prompt_ids: [N] int64, seen by the repetition penalty.
    """

    def __init__(self, sampling: Sampling, choice: int, prompt_ids: np.ndarray, device: torch.device) -> None:
        self._processors = _processors(sampling)
        self._draws = _draws(sampling)
        self._generator = torch.Generator(device)
        seed = random.SystemRandom().getrandbits(63) if sampling.seed is None else (sampling.seed + choice) % 2**63
        self._generator.manual_seed(seed)
        self._ids = _Ids(prompt_ids if sampling.repetition_penalty != 1 else prompt_ids[:0], device)

    @property
    def is_plain(self) -> bool:
        """Whether the token is the one with the largest logit."""
        return not self._draws and not self._processors

    def __call__(self, logits_V: torch.Tensor) -> int:
        """Return the next token."""
        scores = logits_V[None].to(torch.float32, copy=True)
        scores = self._processors(self._ids.tensor, scores)  # pyright: ignore[reportArgumentType]
        if self._draws:
            token = int(torch.multinomial(scores.softmax(dim=-1), 1, generator=self._generator))
        else:
            token = int(scores.argmax(dim=-1))
        if self._processors:
            self._note(token)
        return token

    def _note(self, token: int) -> None:
        self._ids.append(token)
        for processor in self._processors:
            if isinstance(processor, _CountPenalties):
                processor.count(token)


class _CountPenalties(LogitsProcessor):
    """OpenAI's frequency and presence penalties, over the tokens of the answer."""

    def __init__(self, frequency: float, presence: float) -> None:
        self._frequency, self._presence = frequency, presence
        self._counts: dict[int, int] = {}

    def count(self, token: int) -> None:
        self._counts[token] = self._counts.get(token, 0) + 1

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._counts:
            tokens = torch.tensor(list(self._counts), device=scores.device)
            times = torch.tensor(list(self._counts.values()), device=scores.device, dtype=scores.dtype)
            scores[:, tokens] -= self._frequency * times + self._presence
        return scores


class _Ids:
    """Token ids [1, N] that grow in place."""

    def __init__(self, ids: np.ndarray, device: torch.device) -> None:
        self._room = torch.zeros(len(ids) + _LEAST_ROOM, dtype=torch.int64, device=device)
        self._room[: len(ids)] = torch.from_numpy(ids)
        self._length = len(ids)

    @property
    def tensor(self) -> torch.Tensor:
        return self._room[None, : self._length]

    def append(self, token: int) -> None:
        if self._length == len(self._room):
            self._room = torch.cat([self._room, torch.zeros_like(self._room)])
        self._room[self._length] = token
        self._length += 1


def _draws(sampling: Sampling) -> bool:
    return sampling.temperature >= _LEAST_TEMPERATURE


def _processors(sampling: Sampling) -> LogitsProcessorList:
    """Return processors in the order of transformers' `generate`."""
    processors = LogitsProcessorList()
    if sampling.logit_bias:
        bias = [[[token], float(value)] for token, value in sampling.logit_bias.items()]
        processors.append(SequenceBiasLogitsProcessor(bias))
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
    if sampling.frequency_penalty or sampling.presence_penalty:
        processors.append(_CountPenalties(sampling.frequency_penalty, sampling.presence_penalty))
    if _draws(sampling):
        processors.extend(_warpers(sampling))
    return processors


def _warpers(sampling: Sampling) -> list[LogitsProcessor]:
    warpers: list[LogitsProcessor] = []
    if sampling.temperature != 1:
        warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(float(sampling.top_p)))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(float(sampling.min_p)))
    return warpers
