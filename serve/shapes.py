"""Answers in OpenAI's two shapes, whole and piece by piece: chats and completions."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hsokv_ray.inference.engine.events import ChoiceEnded, Piece, Reason, TokenLogprob
from serve.wire.common import FinishReason


@dataclass
class Choice:
    """One answer, as far as it has come."""

    index: int
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    num_characters: int = 0
    """Of the tokens whose likelihoods were sent."""
    reason: FinishReason | None = None

    def take(self, piece: Piece) -> None:
        """Add `piece`."""
        self.texts.append(piece.text)
        if piece.logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs.extend(piece.logprobs)

    @property
    def text(self) -> str:
        return "".join(self.texts)


class Shape(Protocol):
    """How answers look."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return the first choice object of a stream, before any text."""
        ...

    def delta(self, choice: Choice, piece: Piece | None, reason: FinishReason | None) -> dict[str, Any]:
        """Return the choice object of a stream for what is new."""
        ...

    def whole(self, choice: Choice) -> dict[str, Any]:
        """Return the choice object of a whole answer."""
        ...

    def envelope(self, choices: list[dict[str, Any]], *, is_stream: bool) -> dict[str, Any]:
        """Return the answer, or event, around choice objects."""
        ...


def finish_reason(reason: Reason) -> FinishReason:
    """Return OpenAI's word: the end of the window is a matter of length."""
    return "stop" if reason == "stop" else "length"


class ChatShape:
    """Chats."""

    def __init__(self, request_id: str, model: str) -> None:
        self._head = {"id": f"chatcmpl-{request_id}", "created": int(time.time()), "model": model}

    def opening(self, index: int) -> dict[str, Any] | None:
        return _choice(index, delta={"role": "assistant", "content": ""}, logprobs=None, finish_reason=None)

    def delta(self, choice: Choice, piece: Piece | None, reason: FinishReason | None) -> dict[str, Any]:
        new = {} if piece is None else {"content": piece.text}
        tokens = None if piece is None else piece.logprobs
        return _choice(choice.index, delta=new, logprobs=_chat_logprobs(tokens), finish_reason=reason)

    def whole(self, choice: Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        tokens = _chat_logprobs(choice.logprobs)
        return _choice(choice.index, message=message, logprobs=tokens, finish_reason=choice.reason)

    def envelope(self, choices: list[dict[str, Any]], *, is_stream: bool) -> dict[str, Any]:
        kind = "chat.completion.chunk" if is_stream else "chat.completion"
        return {**self._head, "object": kind, "choices": choices}


class CompletionShape:
    """Completions."""

    def __init__(self, request_id: str, model: str) -> None:
        self._head = {"id": f"cmpl-{request_id}", "created": int(time.time()), "model": model}

    def opening(self, index: int) -> dict[str, Any] | None:
        return None

    def delta(self, choice: Choice, piece: Piece | None, reason: FinishReason | None) -> dict[str, Any]:
        tokens = None if piece is None else piece.logprobs
        logprobs = _completion_logprobs(tokens, choice.num_characters)
        choice.num_characters += sum(len(each.text) for each in tokens or ())
        text = "" if piece is None else piece.text
        return _choice(choice.index, text=text, logprobs=logprobs, finish_reason=reason)

    def whole(self, choice: Choice) -> dict[str, Any]:
        logprobs = _completion_logprobs(choice.logprobs, 0)
        return _choice(choice.index, text=choice.text, logprobs=logprobs, finish_reason=choice.reason)

    def envelope(self, choices: list[dict[str, Any]], *, is_stream: bool) -> dict[str, Any]:
        return {**self._head, "object": "text_completion", "choices": choices}


class Choices:
    """The answers to all prompts of a request; choice c of prompt p has the index p x n + c."""

    def __init__(self, num_prompts: int, n: int) -> None:
        self._n = n
        self.all = [Choice(index) for index in range(num_prompts * n)]

    def take(self, number: int, events: Iterable[Any]) -> list[tuple[Choice, Piece | None]]:
        """Note the events of prompt `number`; return what is new: a piece, or None for a choice's end."""
        news: list[tuple[Choice, Piece | None]] = []
        for event in events:
            if isinstance(event, Piece):
                news.append((self.all[number * self._n + event.choice], event))
                news[-1][0].take(event)
            elif isinstance(event, ChoiceEnded):
                news.append((self.all[number * self._n + event.choice], None))
                news[-1][0].reason = finish_reason(event.reason)
        return news

    @property
    def num_open(self) -> int:
        """Return how many have not ended."""
        return sum(choice.reason is None for choice in self.all)


def _choice(index: int, **values: Any) -> dict[str, Any]:
    return {"index": index, **values}


def _chat_logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    content = [{**_token(each), "top_logprobs": [_token(other) for other in each.top]} for each in tokens]
    return {"content": content, "refusal": None}


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode("utf-8"))}


def _completion_logprobs(tokens: Sequence[TokenLogprob] | None, offset: int) -> dict[str, Any] | None:
    if tokens is None:
        return None
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "text_offset": offsets,
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{other.text: other.logprob for other in (*token.top, token)} for token in tokens],
    }
