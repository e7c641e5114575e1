"""One answer on its way: the rows it attends to, its next token, and its text so far.

Shapes: V vocabulary.
"""

import torch

from hsokv_ray.inference.engine.detokenise import Detokenizer
from hsokv_ray.inference.engine.events import ChoiceEnded, Event, Piece, Reason, TokenLogprob
from hsokv_ray.inference.engine.logprobs import token_logprob
from hsokv_ray.inference.engine.requests import Sampling
from hsokv_ray.inference.engine.sampling import Sampler
from hsokv_ray.inference.engine.served import ServedModel
from hsokv_ray.inference.engine.stops import StopStrings
from hsokv_ray.longcontext.report import Stopwatch
from hsokv_ray.longcontext.row import Row


class Choice:
    """Begins when its prompt has been read up to the last token.

    Args:
        index: number of the choice.
        rows: read up to the last token of the prompt; its own.
        sampler: its own.
        token: the prompt's last, its first input.
        limit: new tokens, at most; then it ends for `limit_reason`.
    """

    def __init__(
        self,
        served: ServedModel,
        sampling: Sampling,
        index: int,
        rows: list[Row],
        sampler: Sampler,
        token: int,
        limit: int,
        limit_reason: Reason,
    ) -> None:
        self.index, self.rows = index, rows
        self.token = token
        self.num_tokens = 0
        self.watch = Stopwatch()
        self.reason: Reason | None = None
        """Why it ended; None while it goes on."""
        self.sampler = sampler
        self._decode, self._num_logprobs = served.decode, sampling.logprobs
        self._ends = frozenset() if sampling.ignore_eos else served.end_tokens
        self._limit = limit
        self._limit_reason: Reason = limit_reason
        self._text, self._stops = Detokenizer(served.decode), StopStrings(sampling.stop)
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    def take(self, token: int, logits_V: torch.Tensor) -> list[Event]:
        """Take the next token, drawn from `logits_V`; return what there is to tell."""
        self.token = token
        self.num_tokens += 1
        self._ids.append(token)
        if self._num_logprobs is not None:
            self._logprobs.append(token_logprob(logits_V, token, self._num_logprobs, self._text_of))
        text = self._stops.step(self._text.step(token))
        self.reason = self._end_reason(token)
        if self.reason is None:
            return [self._piece(text)] if text else []
        if not self._stops.found:
            text += self._rest()
        return [self._piece(text), ChoiceEnded(self.index, self.reason)]

    def _end_reason(self, token: int) -> Reason | None:
        if self._stops.found or token in self._ends:
            return "stop"
        if self.num_tokens >= self._limit:
            return self._limit_reason
        return None

    def _rest(self) -> str:
        """Return the text held back; a stop string may still be in it."""
        text = self._stops.step(self._text.end())
        if self._stops.found:
            self.reason = "stop"
            return text
        return text + self._stops.end()

    def _piece(self, text: str) -> Piece:
        ids, self._ids = tuple(self._ids), []
        if self._num_logprobs is None:
            return Piece(self.index, text, ids)
        logprobs, self._logprobs = tuple(self._logprobs), []
        return Piece(self.index, text, ids, logprobs)

    def _text_of(self, token: int) -> str:
        return self._decode([token])
