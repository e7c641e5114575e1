"""One model that answers many requests at once.

with Engine(loaded, EngineConfig()) as engine:
    stream = engine.submit(Generation("1", prompt_ids, sampling=Sampling(max_tokens=100)))
    for event in stream: ...                       # or: async for event in stream
    encoded = engine.encode(document_ids).result()
    stream = engine.submit(Generation("2", question_ids, after=encoded))
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from hsokv_ray.errors import Overloaded, RunError
from hsokv_ray.inference.engine.checks import check_length, checked_ids, plan
from hsokv_ray.inference.engine.config import EngineConfig
from hsokv_ray.inference.engine.encoding import EncodeJob
from hsokv_ray.inference.engine.events import Failed
from hsokv_ray.inference.engine.failures import failed_of
from hsokv_ray.inference.engine.prefix_search import Found, search
from hsokv_ray.inference.engine.publishing import Publisher
from hsokv_ray.inference.engine.requests import Generation
from hsokv_ray.inference.engine.served import ServedModel
from hsokv_ray.inference.engine.stats import EngineStats, held_bytes, told
from hsokv_ray.inference.engine.streams import EventStream
from hsokv_ray.inference.engine.task import Task, token_ids_of
from hsokv_ray.inference.engine.worker import Worker
from hsokv_ray.inference.loading import LoadedModel
from hsokv_ray.longcontext.prefixes import LocalPrefixes, Prefixes
from hsokv_ray.longcontext.segments import Encoded

_LEAST_RETRY_S = 1.0

logger = logging.getLogger(__name__)


class Engine:
    """Starts its thread at once. Any thread may call any method.

    Args:
        loaded: a decoder-only model of a served family; nobody else may generate with it meanwhile.
        config: limits, and how reading and generating share the time.
        prefixes: where texts that were read are kept; None: in this process, `prefix_cache_bytes` of them.
        num_threads: CPU threads of the engine's thread; every other thread of this process has one from then on. OpenMP
            waits without sleeping only while all threads of a process find a core of their own, and small matrix
            products take half as long again where it sleeps. None: nothing is set.
        clock: seconds.

    Raises `ConfigError`: the model's family is not served, or the settings do not fit the model.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: EngineConfig | None = None,
        prefixes: Prefixes | None = None,
        *,
        num_threads: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.config = config or EngineConfig()
        self.served = ServedModel(loaded, self.config)
        self.prefixes = prefixes or LocalPrefixes(self.config.prefix_cache_bytes)
        self._clock = clock
        self._changed = threading.Condition()
        self._publisher = Publisher(self.prefixes, self._wake)
        self._worker = Worker(self.served, self.config, self._publisher, clock)
        self._waiting: list[Task] = []
        self._new_jobs: list[EncodeJob] = []
        self._refusal: RunError | None = None
        """Why nothing new is taken."""
        self._closing = False
        self._started = threading.Event()
        self._idle = True
        """Whether the thread waits for work; what has just been queued it has not seen yet."""
        self._searches = ThreadPoolExecutor(
            self.config.max_queued + self.config.max_running, thread_name_prefix="engine-prefix"
        )
        self._thread = threading.Thread(target=self._run, args=(num_threads,), name="engine", daemon=True)
        self._thread.start()
        if num_threads is not None:
            self._started.wait()
            torch.set_num_threads(1)  # of this thread, and of those that begin later
        logger.info("engine: %s", self.served.describe())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, generation: Generation) -> EventStream:
        """Queue a request and return its stream.

        Raises:
            ConfigError: it is too long, or an option is wrong; the message begins with the option's name.
            Overloaded: the queue is full.
            RunError: the engine is draining, closed, or has died.
        """
        planned = plan(self.served, self.config, generation)
        task = Task(generation, planned, EventStream(generation.request_id, self._wake), self._clock)
        with self._changed:
            self._check_room(task)
        if not planned.marks:
            task.prepare(self.served, Found())
        with self._changed:
            self._check_room(task)
            self._waiting.append(task)
            if planned.marks:
                self._searches.submit(self._search, task)
            else:
                task.found = Found()
            self._changed.notify_all()
        return task.stream

    def encode(
        self,
        token_ids: Sequence[int] | np.ndarray,
        after: Encoded | None = None,
        on_tokens: Callable[[int], Any] = lambda num_tokens: None,
    ) -> EncodeJob:
        """Read `token_ids` [N] behind `after`; whoever asks looks in `prefixes` first, and adds what comes of it.

        Args:
            on_tokens: called in the engine's thread with the number of tokens read so far.

        Raises `ConfigError`, `Overloaded` and `RunError`, as `submit` does.
        """
        ids = checked_ids(self.served, token_ids, "token_ids")
        check_length((0 if after is None else len(after)) + len(ids), self.served, "token_ids")
        with self._changed:
            self._check_room_for_text()
        recorder = self.served.recorder(after, self.served.settings)
        recorder.place()
        job = EncodeJob(ids, recorder, on_tokens, self._wake)
        with self._changed:
            self._check_room_for_text()
            self._new_jobs.append(job)
            self._changed.notify_all()
        return job

    def stats(self) -> EngineStats:
        """Return what the engine has done and what it holds."""
        with self._changed:
            worker = self._worker
            return EngineStats(
                queued=len(self._waiting),
                reading=worker.num_reading,
                running=worker.num_running,
                encoding=len(worker.jobs) + len(self._new_jobs),
                counters=replace(worker.counters, unpublished=self._publisher.num_lost),
                prefixes=told(self.prefixes),
            )

    def held_bytes(self) -> int:
        """Return the bytes of keys and values of requests and texts on their way; looks at every row."""
        return held_bytes(self._worker.rows)

    def check(self) -> None:
        """Raise `RunError` where the engine cannot take requests."""
        with self._changed:
            self._check_open()

    def drain(self, timeout_s: float) -> bool:
        """Take nothing new and wait for what is there; return whether all of it is done."""
        with self._changed:
            self._refusal = self._refusal or RunError("the server is shutting down; send the request again elsewhere")
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._idle and not self._waiting and not self._new_jobs, timeout_s)

    def close(self) -> None:
        """End everything that is not done with `Failed`, and give the model back. Closing twice does nothing."""
        with self._changed:
            self._refusal = self._refusal or RunError("the engine was closed; make another one")
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._searches.shutdown(wait=True, cancel_futures=True)
        self._publisher.close()
        self.served.close()

    # the engine's thread

    def _run(self, num_threads: int | None) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
            torch.get_num_threads()  # a thread takes the number when it first asks; another is set after this
        self._started.set()
        try:
            with torch.no_grad():
                while (new := self._next()) is not None:
                    for task in new:
                        self._worker.start(task)
                    self._worker.turn()
            self._end_all(RunError("the server is shutting down"))
        except BaseException as error:  # whoever waits must hear of it
            logger.critical("the engine's thread died", exc_info=error)
            self._end_all(RunError(f"the engine died ({type(error).__name__}: {error}); restart the server"))

    def _next(self) -> list[Task] | None:
        """Return the requests to start, waiting where there is nothing to do; None to end."""
        with self._changed:
            while not self._closing:
                new = self._take_tasks()
                jobs, self._new_jobs = self._new_jobs, []
                for job in jobs:
                    self._worker.encode(job)
                if new or self._worker.has_work:
                    self._idle = False
                    return new
                self._idle = not self._publisher.is_busy
                self._changed.notify_all()  # whoever drains
                self._changed.wait()
        return None

    def _take_tasks(self) -> list[Task]:
        for task in [task for task in self._waiting if task.stream.cancelled]:
            self._waiting.remove(task)
            self._worker.count_cancelled(task)
        new, places = [], self.config.max_running - self._worker.num_choices
        for task in [task for task in self._waiting if task.found is not None]:
            places -= task.num_choices
            if places < 0:  # in order: a request of many choices is not passed for ever
                break
            self._waiting.remove(task)
            new.append(task)
        return new

    def _end_all(self, error: RunError) -> None:
        with self._changed:
            self._refusal, self._idle = error, True
            waiting, self._waiting = self._waiting, []
            jobs, self._new_jobs = self._new_jobs, []
            self._changed.notify_all()
        failed = Failed("unavailable", str(error))
        for task in waiting:
            task.stream.put(failed)
            self._publisher.release(task)
        for job in jobs:
            job.fail(error)
        self._worker.fail_all(failed, error)

    # threads of the searches

    def _search(self, task: Task) -> None:
        """Find what of the request was read before; until then it waits, and others pass it."""
        found, failed = Found(), None
        try:
            digests = self.served.digests(token_ids_of(task), task.plan.marks, task.plan.settings)
            found = search(self.prefixes, digests, lambda: task in self._waiting and not task.stream.cancelled)
            task.prepare(self.served, found)
        except Exception as error:
            failed = failed_of(error, task.generation.request_id)
        with self._changed:
            task.found = found
            if failed is not None:
                self._waiting = [other for other in self._waiting if other is not task]
            if task not in self._waiting:
                self._publisher.release(task)
            self._changed.notify_all()
        if failed is not None:
            task.stream.put(failed)

    # with the lock held

    def _check_open(self) -> None:
        if self._refusal is not None:
            raise RunError(str(self._refusal))

    def _check_room(self, task: Task) -> None:
        self._check_open()
        fits_now = not self._waiting and self._worker.num_choices + task.num_choices <= self.config.max_running
        if len(self._waiting) >= self.config.max_queued and not fits_now:
            raise Overloaded(f"the queue is full: {len(self._waiting)} requests are waiting", self._retry_after_s())

    def _check_room_for_text(self) -> None:
        self._check_open()
        if len(self._new_jobs) + len(self._worker.jobs) >= max(1, self.config.max_queued):
            raise Overloaded(f"{self.config.max_queued} texts are waiting to be encoded", self._retry_after_s())

    def _retry_after_s(self) -> float:
        """Return about when a place in the queue will be free."""
        counters = self._worker.counters
        mean_s = counters.request_s / max(1, counters.requests_finished)
        return max(_LEAST_RETRY_S, mean_s / self.config.max_running)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
