"""One request on its way through the engine; from its start on, only the engine's thread changes it."""

import math
from collections.abc import Callable

import numpy as np

from hsokv_ray.inference.engine.checks import Plan
from hsokv_ray.inference.engine.choice import Choice
from hsokv_ray.inference.engine.events import Event, Finished, Started, Timing, Usage
from hsokv_ray.inference.engine.passages import AttentionMass
from hsokv_ray.inference.engine.prefix_search import Found
from hsokv_ray.inference.engine.requests import Generation
from hsokv_ray.inference.engine.sampling import Sampler
from hsokv_ray.inference.engine.served import ServedModel
from hsokv_ray.inference.engine.streams import EventStream
from hsokv_ray.inference.engine.text_reading import TextReading, plain_reading, recorded_reading
from hsokv_ray.longcontext.recorder import Recorder
from hsokv_ray.longcontext.row import Row


class Task:
    """A request with its stream."""

    def __init__(self, generation: Generation, plan: Plan, stream: EventStream, clock: Callable[[], float]) -> None:
        self.generation, self.plan, self.stream = generation, plan, stream
        self.found: Found | None = None
        """What was read before; None until that is known, and until then it waits."""
        self.reading: TextReading | None = None
        self.choices: list[Choice] = []
        self.mass = AttentionMass() if generation.passages else None
        self._samplers: list[Sampler] = []
        self._recorder: Recorder | None = None
        self._clock = clock
        self._submitted = self._started = clock()
        self._first_token: float | None = None
        self._cached_tokens = 0
        self._reading_retrieval_s = 0.0

    @property
    def num_choices(self) -> int:
        """Choices that are not complete."""
        if not self.choices:
            return self.generation.sampling.n
        return sum(choice.reason is None for choice in self.choices)

    @property
    def cached_tokens(self) -> int:
        return self._cached_tokens

    def prepare(self, served: ServedModel, found: Found) -> None:
        """Do what takes time with the text and needs no turn; not in the engine's thread, where answers would wait.

        Raises `ConfigError`: another model read what stands before the prompt.
        """
        before, plan, sampling = found.encoded or self.generation.after, self.plan, self.generation.sampling
        self._cached_tokens = 0 if before is None else len(before)
        self._recorder = served.recorder(before, plan.settings if plan.marks else served.settings)
        self._recorder.place()
        self._samplers = [Sampler(sampling, index, plan.prompt_ids, served.device) for index in range(sampling.n)]

    def begin(self, served: ServedModel) -> None:
        """Leave the queue, and begin to read what is not known yet."""
        self._started = self._clock()
        plan, recorder = self.plan, self._recorder
        assert recorder is not None, "it was not prepared"
        ids = plan.prompt_ids[self._cached_tokens - plan.document_tokens : -1]
        if plan.marks:
            marks = [mark - self._cached_tokens for mark in plan.marks if mark > self._cached_tokens]
            self.reading = recorded_reading(served, ids, recorder, marks, plan.settings)
        else:
            self.reading = plain_reading(served, ids, recorder, plan.settings)
        self._recorder = None
        waited = self._started - self._submitted
        self.stream.put(Started(plan.total_tokens, self._cached_tokens, plan.document_tokens, waited))

    def end_reading(self, served: ServedModel) -> TextReading:
        """Make the choices, which share what was read; return the reading, which the task lets go."""
        reading, self.reading = self.reading, None
        assert reading is not None, "the task has not begun"
        assert not reading.num_left, f"{reading.num_left} tokens of the prompt are left"
        self._reading_retrieval_s = reading.watch.total_s
        for row in reading.rows:
            row.seal()
            row.observer = self.mass
        sampling, plan = self.generation.sampling, self.plan
        self.choices = [
            Choice(
                served,
                sampling,
                index,
                [row.fork() for row in reading.rows],
                sampler,
                int(plan.prompt_ids[-1]),
                plan.limit,
                plan.limit_reason,
            )
            for index, sampler in enumerate(self._samplers)
        ]
        return reading

    @property
    def rows(self) -> list[Row]:
        """All rows it has now."""
        reading = self.reading  # looked at once: other threads ask while it ends
        rows = [] if reading is None else reading.rows
        return [*rows, *(row for choice in self.choices for row in choice.rows)]

    @property
    def retrieval_s(self) -> float:
        """Choosing and fetching, for prompt and answers."""
        return self._reading_retrieval_s + math.fsum(choice.watch.total_s for choice in self.choices)

    def take_claim(self) -> str | None:
        """Return the claim it holds, once."""
        found, self.found = self.found, Found()
        return None if found is None else found.claim

    def let_go(self) -> None:
        """Free what it holds."""
        self.reading = None
        for choice in self.choices:
            choice.rows = []

    def tell(self, events: list[Event]) -> None:
        """Hand events on."""
        if self._first_token is None:
            self._first_token = self._clock()
        self.stream.put(*events)

    def finish(self, most_passages: int) -> Timing:
        """Tell that all choices are complete; return where the time went."""
        timing = self._timing()
        usage = Usage(self.plan.total_tokens, self._num_new, self._cached_tokens)
        passages = None if self.mass is None else self.mass.passages(most_passages, end=self.plan.total_tokens)
        self.stream.put(Finished(usage, timing, passages))
        return timing

    @property
    def _num_new(self) -> int:
        return sum(choice.num_tokens for choice in self.choices)

    def _timing(self) -> Timing:
        now = self._clock()
        seconds = now - self._submitted
        answering_s = math.fsum(choice.watch.total_s for choice in self.choices)
        return Timing(
            queue_s=self._started - self._submitted,
            first_token_s=(self._first_token or now) - self._submitted,
            seconds=seconds,
            retrieval_ms_mean=1000 * answering_s / max(1, self._num_new),
            retrieval_share=self.retrieval_s / seconds if seconds else 0.0,
        )


def token_ids_of(task: Task) -> np.ndarray:
    """Return the ids [N] of the whole input, documents first."""
    after = task.generation.after
    return task.plan.prompt_ids if after is None else np.concatenate([after.token_ids, task.plan.prompt_ids])
