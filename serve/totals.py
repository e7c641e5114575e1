"""What is said at the end of an answer: numbers of tokens, time, passages."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from hsokv_ray.inference.engine.events import Event, Finished, Started, Timing, Usage
from serve.calls import DrawnFrom, Refused, Sources
from serve.wire.common import Extension, PassageBody, PromptDetails, TimingBody, UsageBody


@dataclass
class Totals:
    """Adds up the prompts of a request."""

    usages: list[Usage] = field(default_factory=list)
    document_tokens: int = 0
    timings: dict[int, Timing] = field(default_factory=dict)
    passages: dict[int, tuple[DrawnFrom, ...]] = field(default_factory=dict)

    def see(self, number: int, events: Iterable[Event | Refused | Sources]) -> None:
        """Take note of the events of prompt `number`."""
        for event in events:
            if isinstance(event, Started):
                self.document_tokens += event.document_tokens
            elif isinstance(event, Finished):
                self.usages.append(event.usage)
                self.timings[number] = event.timing
            elif isinstance(event, Sources):
                self.passages[number] = event.passages

    def usage(self) -> UsageBody:
        """Return the numbers of tokens of all prompts."""
        prompt = sum(usage.prompt_tokens for usage in self.usages)
        completion = sum(usage.completion_tokens for usage in self.usages)
        return UsageBody(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptDetails(cached_tokens=self._cached),
        )

    def extension(self) -> Extension:
        """Return what this server says beyond OpenAI's fields."""
        told: dict[str, Any] = {}
        if 0 in self.timings:
            told["timing"] = TimingBody(**asdict(self.timings[0]))
        if 0 in self.passages:
            told["passages"] = [PassageBody(**asdict(each)) for each in self.passages[0]]
        return Extension(cached_tokens=self._cached, document_tokens=self.document_tokens, **told)

    @property
    def _cached(self) -> int:
        return sum(usage.cached_tokens for usage in self.usages)
