"""Text as it is generated, from a thread that ends when nobody listens any more."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import StoppingCriteria, TextIteratorStreamer

from hsokv_ray.errors import ConfigError


class FirstToken(StoppingCriteria):
    """Notes when the first token came and how many did; never stops."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.at: float | None = None
        self.num_tokens = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.at is None:
            self.at = self._clock()
        self.num_tokens += 1
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class _Stopper(StoppingCriteria):
    """Stops when told to."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.full((input_ids.shape[0],), self.stopped.is_set(), dtype=torch.bool, device=input_ids.device)


class Stream:
    """Runs a generation in a thread and yields its text."""

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer is None:
            raise ConfigError(
                "streaming yields text, and there is no tokenizer; give LongContext the model's tokenizer"
            )
        self.streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.stopper = _Stopper()
        self._error: BaseException | None = None

    def run(self, generate: Callable[[], Any]) -> Iterator[str]:
        """Yield the pieces of text of `generate`, called in a thread; raise what it raises."""
        thread = threading.Thread(target=self._generate, args=(generate,), name="long-context-stream", daemon=True)
        thread.start()
        try:
            yield from (text for text in self.streamer if text)
        finally:
            self.stopper.stopped.set()
            thread.join()
        if self._error is not None:
            raise self._error

    def _generate(self, generate: Callable[[], Any]) -> None:
        try:
            generate()
        except BaseException as error:  # handed to who reads the stream
            self._error = error
        finally:
            if self._error is not None or self.stopper.stopped.is_set():
                self.streamer.end()
