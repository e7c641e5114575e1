"""What the engine's thread does: read prompts and texts in pieces, step the answers, and share the time between them.

Everything here runs in one thread; streams and jobs are how others hear of it.

Shapes: B choices, V vocabulary.
"""

import time
from collections import deque
from collections.abc import Callable

import torch

from hsokv_ray.errors import RunError
from hsokv_ray.inference.engine.batch import Batch
from hsokv_ray.inference.engine.choice import Choice
from hsokv_ray.inference.engine.config import EngineConfig
from hsokv_ray.inference.engine.encoding import EncodeJob
from hsokv_ray.inference.engine.events import Failed
from hsokv_ray.inference.engine.failures import failed_of
from hsokv_ray.inference.engine.publishing import Publisher
from hsokv_ray.inference.engine.served import ServedModel
from hsokv_ray.inference.engine.stats import Counters
from hsokv_ray.inference.engine.task import Task
from hsokv_ray.inference.engine.text_reading import TextReading, read_side_by_side
from hsokv_ray.inference.engine.turns import Turns
from hsokv_ray.longcontext.prefill import PIECE_TOKENS
from hsokv_ray.longcontext.row import Row


class Worker:
    """Holds what is on its way.

    Args:
        publisher: takes texts that were read.
        clock: seconds, for the shares of the time and for timings.
    """

    def __init__(
        self,
        served: ServedModel,
        config: EngineConfig,
        publisher: Publisher,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.counters = Counters()
        self._served, self._config, self._publisher, self._clock = served, config, publisher, clock
        self._batch = Batch(served.model)
        self._turns = Turns(config.prefill_share)
        self._prompts: deque[Task] = deque()
        self._running: list[Task] = []
        self._stepped_at = 0.0
        self._jobs: deque[EncodeJob] = deque()

    @property
    def has_work(self) -> bool:
        return bool(self._prompts or self._running or self._jobs)

    @property
    def tasks(self) -> list[Task]:
        """Requests on their way."""
        return [*self._prompts, *self._running]

    @property
    def jobs(self) -> list[EncodeJob]:
        """Texts on their way."""
        return list(self._jobs)

    @property
    def rows(self) -> list[Row]:
        """Of all requests and texts on their way."""
        readings = [job.reading for job in self.jobs]  # looked at once: other threads ask while they end
        texts = [reading.rows for reading in readings if reading is not None]
        return [row for rows in [*(task.rows for task in self.tasks), *texts] for row in rows]

    @property
    def num_choices(self) -> int:
        """Places taken, of `max_running`."""
        return sum(task.num_choices for task in self.tasks)

    @property
    def num_reading(self) -> int:
        return len(self._prompts)

    @property
    def num_running(self) -> int:
        return sum(task.num_choices for task in self._running)

    def start(self, task: Task) -> None:
        """Take a request from the queue."""
        self.counters.requests_started += 1
        self._prompts.append(task)
        try:
            task.begin(self._served)
            self.counters.cached_tokens += task.cached_tokens
            if not _reading_of(task).num_left:
                self._end_reading(task)
        except Exception as error:
            self._fail(task, error)

    def count_cancelled(self, task: Task) -> None:
        """Give up a request that nobody waits for any more."""
        self.counters.requests_cancelled += 1
        self._publisher.release(task)

    def encode(self, job: EncodeJob) -> None:
        """Take a text to read."""
        self._jobs.append(job)

    def turn(self) -> None:
        """Do the next step, or read the next piece."""
        self._drop_cancelled()
        steps, pieces = bool(self._running), bool(self._prompts or self._jobs)
        if self._turns.is_reading(has_steps=steps, has_pieces=pieces):
            self._read_piece()
        elif steps:
            self._step()

    def fail_all(self, failed: Failed, error: Exception) -> None:
        """End every request with `failed`, and every text with `error`."""
        for task in self.tasks:
            self._drop(task)
            task.stream.put(failed)
        for job in self.jobs:
            job.fail(error)
            self._drop_job(job)

    # reading

    def _read_piece(self) -> None:
        waiting, is_text = bool(self._running), not self._prompts
        start = self._clock()
        if not is_text:
            self._read_prompts(self._piece_tokens(waiting))
        else:
            self._read_text(self._jobs[0], self._piece_tokens(waiting))
        if waiting:
            self._served.wait()
        seconds = self._clock() - start
        self._turns.read(seconds)
        self.counters.pieces += 1
        self.counters.piece_s += seconds
        self.counters.encode_s += seconds if is_text else 0

    def _piece_tokens(self, waiting: bool) -> int | None:
        """Return the tokens of a piece while answers are `waiting` for it, or not; None: as suits the machine."""
        if self._config.piece_tokens is not None:
            return self._config.piece_tokens
        return self._served.settings.chunk if waiting else None

    def _read_prompts(self, piece_tokens: int | None) -> None:
        """Read a piece of the prompt whose turn it is, and of as many others as fit beside it."""
        tasks, pieces = self._next_pieces(piece_tokens)
        try:
            errors = read_side_by_side(self._served, pieces)
        except Exception as error:  # nobody knows which tokens the rows have taken
            errors = dict.fromkeys(range(len(tasks)), error)
        for number, task in enumerate(tasks):
            self._prompts.remove(task)  # to the end of the line
            self._prompts.append(task)
            try:
                if number in errors:
                    raise errors[number]
                self.counters.read_tokens += len(pieces[number][1])
                if not pieces[number][0].num_left:
                    self._end_reading(task)
            except Exception as error:
                self._fail(task, error)

    def _next_pieces(self, piece_tokens: int | None) -> tuple[list[Task], list[tuple[TextReading, torch.Tensor]]]:
        """Return prompts and their pieces: the first one's, and those that end within `piece_tokens` of all."""
        tasks, pieces, left = [], [], piece_tokens or PIECE_TOKENS
        for task in self._prompts:
            reading = _reading_of(task)
            ids_T = reading.next_piece(left)
            if not tasks or len(ids_T) <= left:
                tasks.append(task)
                pieces.append((reading, ids_T))
                left -= len(ids_T)
            if left <= 0:
                break
        return tasks, pieces

    def _end_reading(self, task: Task) -> None:
        reading = task.end_reading(self._served)
        self._publisher.publish(reading, task)
        self._prompts.remove(task)
        self._running.append(task)

    def _read_text(self, job: EncodeJob, piece_tokens: int | None) -> None:
        self._jobs.rotate(-1)
        try:
            reading = job.begun(self._served)
            num_read = reading.read(piece_tokens)
            self.counters.read_tokens += num_read
            self.counters.encoded_tokens += num_read
            job.tell(reading.done)
            if not reading.num_left:
                self._publisher.finish(job, reading)
                self._drop_job(job)
        except Exception as error:
            job.fail(error)
            self._drop_job(job)

    # answering

    def _step(self) -> None:
        start = self._clock()
        pairs = [(task, choice) for task in self._running for choice in task.choices if choice.reason is None]
        self._batch.keep([choice for _, choice in pairs])
        try:
            logits_BV = self._batch.step()
            greedy = logits_BV.argmax(dim=-1).tolist()
        except Exception as error:  # nobody knows which tokens the rows have taken
            failed = RunError(f"a step failed ({type(error).__name__}: {error}); send the request again")
            failed.__cause__ = error
            for task in list(self._running):
                self._fail(task, failed)
            return
        errors = dict(self._batch.errors)
        num_begun = sum(choice.num_tokens > 0 for _, choice in pairs)
        for number, (task, choice) in enumerate(pairs):
            if task in self._running:  # another choice of it may have failed
                self._take(task, choice, logits_BV[number], greedy[number], errors.get(number))
        for task in [task for task in self._running if not task.num_choices]:
            self._finish(task)
        end = self._clock()
        self._turns.stepped(end - start)
        self.counters.steps += 1
        self.counters.step_s += end - start
        if num_begun:  # all choices step together: what lies between two steps lies between two tokens of each
            self.counters.gaps.add(end - self._stepped_at, num_begun)
        self._stepped_at = end

    def _take(self, task: Task, choice: Choice, logits_V: torch.Tensor, greedy: int, error: Exception | None) -> None:
        try:
            if error is not None:
                raise error
            token = greedy if choice.sampler.is_plain else choice.sampler(logits_V)
            task.tell(choice.take(token, logits_V))
            self.counters.generated_tokens += 1
        except Exception as raised:
            self._fail(task, raised)

    def _finish(self, task: Task) -> None:
        self.counters.requests_finished += 1
        self.counters.retrieval_s += task.retrieval_s
        self.counters.request_s += task.finish(self._config.max_passages).seconds
        self._drop(task)

    # ending early

    def _drop_cancelled(self) -> None:
        for task in [task for task in self.tasks if task.stream.cancelled]:
            self.count_cancelled(task)
            self._drop(task)
        for job in [job for job in self._jobs if job.cancelled]:
            job.future.cancel()
            self._drop_job(job)

    def _fail(self, task: Task, error: Exception) -> None:
        self.counters.requests_failed += 1
        task.stream.put(failed_of(error, task.generation.request_id))
        self._drop(task)

    def _drop(self, task: Task) -> None:
        """Let go of a request and of what it holds."""
        if task in self._prompts:
            self._prompts.remove(task)
        if task in self._running:
            self._running.remove(task)
        task.let_go()
        self._publisher.release(task)
        self._batch.keep([choice for task in self._running for choice in task.choices if choice.reason is None])

    def _drop_job(self, job: EncodeJob) -> None:
        self._jobs.remove(job)
        job.reading = None


def _reading_of(task: Task) -> TextReading:
    assert task.reading is not None, "it has begun, and is not read yet"
    return task.reading
