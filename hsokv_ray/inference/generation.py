"""Generate text with any causal language model of transformers: one prompt in, one measured completion out."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import TextStreamer

from hsokv_ray.errors import ConfigError
from hsokv_ray.inference.config import SamplingConfig
from hsokv_ray.inference.loading import LoadedModel

Finish = Literal["stop", "length", "window", "interrupted"]


@dataclass(frozen=True)
class Completion:
    """What was generated for one prompt, and how long it took."""

    prompt: str
    text: str
    num_prompt_tokens: int
    num_tokens: int
    """New tokens, the end-of-text token included."""
    seed: int | None
    """Seed of the draws; None where nothing was drawn."""
    finish: Finish
    """End-of-text token, `max_length`, the model's window, or Ctrl-C."""
    seconds: float
    first_token_s: float | None
    """Time to the first token; None for beams, which do not stream."""

    @property
    def tokens_per_s(self) -> float:
        """New tokens over the whole time, prompt included."""
        return self.num_tokens / self.seconds if self.seconds else 0.0

    def describe(self) -> str:
        """Return the measurements in one line."""
        first = "" if self.first_token_s is None else f", first token after {self.first_token_s * 1000:.0f} ms"
        seed = "" if self.seed is None else f", seed {self.seed}"
        return (
            f"{self.num_tokens} tokens in {self.seconds:.2f} s ({self.tokens_per_s:.1f} tokens/s){first}, "
            f"end: {self.finish}{seed}"
        )


class Generator:
    """Generates with one loaded model; the caller's global random state is left as it was."""

    def __init__(self, loaded: LoadedModel, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.loaded = loaded
        self._clock = clock

    def encode(self, prompt: str) -> torch.Tensor:
        """Return the ids of `prompt`, shape (1, tokens).

        An empty prompt becomes the token that begins a text. Raises `ConfigError` if no new token fits the window.
        """
        tokenizer, window = self.loaded.tokenizer, self.loaded.window_tokens
        ids = tokenizer(prompt, verbose=False)["input_ids"] or [self._first_token()]
        if window is not None and len(ids) >= window:
            raise ConfigError(
                f"the prompt has {len(ids)} tokens, the model's window is {window}, "
                f"one of which is for the answer; shorten the prompt to {window - 1} tokens"
            )
        return torch.tensor([ids], device=self.loaded.model.device)

    def generate(
        self, prompt: str, sampling: SamplingConfig, *, on_text: Callable[[str], Any] = lambda text: None
    ) -> Completion:
        """Complete `prompt`; on Ctrl-C return what there is, with `finish` `interrupted`.

        Args:
            prompt: text, not a chat.
            sampling: how tokens are chosen.
            on_text: called with each piece of text as it comes; once, at the end, for beams.

        Raises:
            ConfigError: the prompt does not fit the model's window.
        """
        start = self._clock()
        ids = self.encode(prompt)
        num_prompt, limit = ids.shape[1], self._limit(ids, sampling)
        seed = _seed(sampling)
        streams = sampling.num_beams == 1
        tape = _Tape(self.loaded.tokenizer, on_text if streams else lambda text: None, self._clock)
        interrupted = False
        try:
            with torch.no_grad(), _seeded(seed, ids.device):
                arguments = _arguments(sampling, limit=limit, pad=self._pad_token())
                new = self._new_tokens(ids, streamer=tape if streams else None, **arguments)
        except KeyboardInterrupt:
            interrupted, new = True, tape.ids
        seconds = self._clock() - start
        text = self.loaded.tokenizer.decode(new, skip_special_tokens=True)
        if not streams:
            on_text(text)
        return Completion(
            prompt=prompt,
            text=text,
            num_prompt_tokens=num_prompt,
            num_tokens=len(new),
            seed=seed,
            finish="interrupted" if interrupted else self._finish(new, limit, sampling),
            seconds=seconds,
            first_token_s=None if tape.first_at is None else tape.first_at - start,
        )

    def _new_tokens(self, ids: torch.Tensor, **arguments: Any) -> list[int]:
        """Return the ids generated after `ids` [1, tokens]; `arguments` are those of transformers' `generate`."""
        output = self.loaded.model.generate(ids, attention_mask=torch.ones_like(ids), **arguments)
        return output[0, ids.shape[1] :].tolist()

    def _limit(self, ids: torch.Tensor, sampling: SamplingConfig) -> int:
        window = self.loaded.window_tokens
        return sampling.max_length if window is None else min(sampling.max_length, window - ids.shape[1])

    def _finish(self, new: list[int], limit: int, sampling: SamplingConfig) -> Finish:
        if new and new[-1] in self._end_tokens():
            return "stop"
        return "window" if limit < sampling.max_length else "length"

    def _end_tokens(self) -> list[int]:
        ends = self.loaded.model.generation_config.eos_token_id
        return ends if isinstance(ends, list) else [ends]

    def _pad_token(self) -> int | None:
        pad = self.loaded.model.generation_config.pad_token_id
        return pad if pad is not None else self._end_tokens()[0]

    def _first_token(self) -> int:
        tokenizer = self.loaded.tokenizer
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            if token is not None:
                return token
        raise ConfigError("the prompt is empty, and the tokenizer has no token that begins a text; give a prompt")


class _Tape(TextStreamer):
    """Keeps the new ids and when the first came, and hands on the text."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], Any], clock: Callable[[], float]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.ids: list[int] = []
        self.first_at: float | None = None
        self._on_text, self._clock = on_text, clock

    def put(self, value: torch.Tensor) -> None:
        if not self.next_tokens_are_prompt:
            if self.first_at is None:
                self.first_at = self._clock()
            self.ids.extend(value.flatten().tolist())
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._on_text(text)


def _arguments(sampling: SamplingConfig, *, limit: int, pad: int | None) -> dict[str, Any]:
    """Return the arguments of `generate`; all of them, so that none of the model's own defaults steps in."""
    draws = sampling.temperature > 0
    return {
        "max_new_tokens": limit,
        "num_beams": sampling.num_beams,
        "pad_token_id": pad,
        "do_sample": draws,
        "temperature": sampling.temperature if draws else None,
        "top_p": sampling.top_p if draws else None,
        "top_k": sampling.top_k if draws else None,
    }


def _seed(sampling: SamplingConfig) -> int | None:
    if sampling.temperature == 0:
        return None
    return sampling.seed if sampling.seed is not None else random.SystemRandom().randrange(2**31)


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """transformers draws from the global generators only; they are put back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.manual_seed(seed)
        yield
