"""Streams of chat completions asked at once of any OpenAI-compatible server, and what each waited for."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI


@dataclass
class Heard:
    """One answer as a client hears it."""

    first_s: float = 0.0
    """From the request to the first text."""
    seconds: float = 0.0
    tokens: int = 0
    arrivals_s: list[float] = field(default_factory=list)
    """When each piece of text came, from the request on."""

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between pieces."""
        return [after - before for before, after in zip(self.arrivals_s, self.arrivals_s[1:], strict=False)]

    @property
    def token_s(self) -> float:
        """Seconds per token behind the first."""
        return (self.seconds - self.first_s) / max(1, self.tokens - 1)


@dataclass(frozen=True)
class Load:
    """Answers that ran at once."""

    heard: Sequence[Heard]
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return sum(each.tokens for each in self.heard) / self.seconds

    @property
    def first_s(self) -> float:
        return statistics.median(each.first_s for each in self.heard)

    @property
    def token_s(self) -> float:
        return statistics.median(each.token_s for each in self.heard)


class Client:
    """Asks one server."""

    def __init__(self, url: str, model: str, key: str = "none") -> None:
        self.url, self.model, self.key = url, model, key

    def ask(self, prompts: Sequence[str], *, num_tokens: int, **extra: Any) -> Load:
        """Ask all `prompts` at once, for `num_tokens` each, greedily; return when all are answered."""
        return asyncio.run(self._ask(prompts, num_tokens, extra))

    async def _ask(self, prompts: Sequence[str], num_tokens: int, extra: dict[str, Any]) -> Load:
        async with AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=3600) as client:
            start = time.perf_counter()
            heard = await asyncio.gather(*(self._hear(client, prompt, num_tokens, extra) for prompt in prompts))
            return Load(heard, time.perf_counter() - start)

    async def _hear(self, client: AsyncOpenAI, prompt: str, num_tokens: int, extra: dict[str, Any]) -> Heard:
        heard, start = Heard(), time.perf_counter()
        stream = await client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=num_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=extra or None,
        )
        async for chunk in stream:
            if chunk.usage is not None:
                heard.tokens = chunk.usage.completion_tokens
            if any(choice.delta.content for choice in chunk.choices):
                heard.arrivals_s.append(time.perf_counter() - start)
        heard.seconds = time.perf_counter() - start
        heard.first_s = heard.arrivals_s[0] if heard.arrivals_s else heard.seconds
        assert heard.tokens == num_tokens, f"{self.url} gave {heard.tokens} of {num_tokens} tokens"
        return heard
