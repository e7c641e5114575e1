"""A replica of the model: a shell around the engine, which decodes in a thread of its own."""

import asyncio
import functools
import logging
import os
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from hsokv_ray.errors import ConfigError, HsokvError, Overloaded
from hsokv_ray.inference.engine.events import Event, Failed, Finished, Piece
from hsokv_ray.inference.engine.requests import Generation
from serve.args import ServeArgs
from serve.board import READY, Report, families_of, keep_posting, rss_bytes
from serve.calls import GenerateCall, ModelFacts, Refused, Sources
from serve.errors import ApiError, of
from serve.gathering import merged, rest_s
from serve.metrics import ReplicaMetrics
from serve.pools import BoundedPool

logger = logging.getLogger(__name__)

T = TypeVar("T")
_PROGRESS_EVERY_S = 0.3
_UNREAD_REST_S = 0.25
"""Between the pieces of an answer that is sent whole."""
_SWITCH_S = 0.001
"""How long the event loop may keep the engine's thread from Python; 5 ms otherwise, half a step of a small model."""
_PARAM = re.compile(r"(\w+): ")
_OUR_PARAMS = {"settings": "long_context"}


class Generator:
    """Generates, encodes documents and counts tokens with one model.

    Args:
        args: of the application.
        model: folder or hub name; absolute, because replicas work elsewhere.
        app: name of the application.
        source: name of this replica, in its metrics.
    """

    def __init__(self, args: ServeArgs, model: str, app: str, source: str) -> None:
        import torch

        from hsokv_ray.inference.checkpoints import resolve
        from hsokv_ray.inference.engine import Engine
        from hsokv_ray.inference.loading import load
        from serve.actors import get_or_create
        from serve.board import Board
        from serve.documents.actor import documents_link
        from serve.engine_metrics import EngineCollector
        from serve.newest import documents_folder
        from serve.reading import Reader
        from serve.segments import renewed_segments, segments_bytes
        from serve.shared_prefixes import SharedPrefixes
        from serve.texts import Texts

        sys.setswitchinterval(_SWITCH_S)
        torch.set_num_threads(1)  # but for the engine's thread, below
        self._args, self._source = args, source
        self._loaded = load(resolve(model), device=args.device)
        documents = documents_link(app, root=documents_folder(args.documents_dir), limits=args.limits)
        shared_bytes = segments_bytes(args)
        registry = renewed_segments(app, max_bytes=shared_bytes, max_age_s=args.segments_age_s)
        self._kept_bytes = max(shared_bytes, args.engine.prefix_cache_bytes)
        self._prefixes = SharedPrefixes(registry.connect, local_bytes=args.engine.prefix_cache_bytes)
        config = args.engine.model_copy(update={"unlimited": args.reads_past_window})
        threads = args.threads or _fair_threads(args)
        self._engine = Engine(self._loaded, config, prefixes=self._prefixes, num_threads=threads)
        model_served = self._engine.served
        self._texts = Texts(self._loaded.tokenizer, model_served.vocab_size, model_served.max_input_tokens)
        self._reader = Reader(self._engine, self._texts, self._prefixes, documents)
        self._documents, self._board = documents, get_or_create(Board, app, "board")
        self._model, self._created = model, int(time.time())
        self._metrics, self._rate = ReplicaMetrics(), _Rate()
        collector = EngineCollector(self._engine.stats, self._prefixes.stats, lambda: self._rate.per_s)
        self._metrics.registry.register(collector)
        most = args.engine.max_running + args.engine.max_queued
        self._threads = ThreadPoolExecutor(max_workers=most, thread_name_prefix="request")
        self._readers = BoundedPool(args.engine.max_queued, "documents of requests are being read", "read")
        self._encoders = ThreadPoolExecutor(max_workers=8, thread_name_prefix="encode")
        self._num_streams = 0
        self._ended = threading.Event()
        posting = (self._board, self._report, self._ended)
        threading.Thread(target=keep_posting, args=posting, name="report", daemon=True).start()

    async def generate(self, call: GenerateCall) -> AsyncIterator[list[Event | Refused | Sources]]:
        """Yield the events of a request, all there are at a time; the last are `Finished`, `Failed` or `Refused`."""
        gone = threading.Event()
        stream, is_over = None, False
        self._num_streams += 1
        try:
            pool = self._readers if call.documents else self._threads  # reading waits, for long
            try:
                begun = await self._in_thread(pool, functools.partial(self._begin, call, gone), _cancel)
            except Overloaded as error:
                begun = _refused(error)
            if isinstance(begun, Refused):
                is_over = True
                yield [begun]
                return
            stream, chain, prompt_ids = begun.stream, begun.chain, begun.prompt_ids
            is_written, is_each = False, call.is_streamed and not self._args.stream_interval_ms
            while events := await stream.atake(rest_s=self._rest_s(call) if is_written else 0):
                self._count(events)
                sent: list[Event | Refused | Sources] = [*(events if is_each else merged(events))]
                is_written = is_written or any(isinstance(event, Piece) for event in events)
                is_over = isinstance(events[-1], Finished | Failed)
                if call.passages and isinstance(finished := events[-1], Finished):
                    find = functools.partial(self._sources, chain, prompt_ids, finished)
                    sent.append(await self._in_thread(self._threads, find))
                yield sent
        except Exception:
            is_over = True
            self._metrics.failed.labels("internal").inc()
            raise
        finally:
            gone.set()
            self._num_streams -= 1
            if not is_over:
                self._metrics.cancelled.inc()
            if stream is not None:
                stream.cancel()

    async def encode_document(self, document_id: str, owner: str) -> dict[str, Any]:
        """Read a document, so that questions about it need not; tells the documents actor how far it is.

        Returns `num_tokens`, how many of them were known before (`cached_tokens`), and `seconds`.

        Raises `ApiError` 404; `HsokvError` where it cannot be read.
        """
        gone = threading.Event()
        try:
            return await self._in_thread(
                self._encoders, functools.partial(self._encode_document, document_id, owner, gone)
            )
        finally:
            gone.set()

    async def count_tokens(self, text: str) -> int:
        """Return the number of tokens of `text`."""
        return await self._in_thread(self._threads, functools.partial(self._texts.count, text))

    async def describe(self) -> ModelFacts:
        """Return what is known of the model. Raises `RunError` where the engine has died."""
        self._engine.check()
        model, engine = self._loaded.model, self._args.engine
        return ModelFacts(
            model=self._model,
            window_tokens=self._loaded.window_tokens,
            max_input_tokens=self._engine.served.max_input_tokens,
            max_new_tokens=engine.max_new_tokens,
            max_choices=engine.max_choices,
            unlimited=self._args.reads_past_window,
            num_parameters=model.num_parameters(),
            device=str(model.device),
            created=self._created,
        )

    def check_health(self) -> None:
        """Raise where the engine has died: Serve then replaces this replica."""
        self._engine.check()

    def close(self) -> None:
        """End the engine and the threads."""
        self._ended.set()
        self._engine.close()
        self._prefixes.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._readers.close()
        self._encoders.shutdown(wait=False, cancel_futures=True)

    def _rest_s(self, call: GenerateCall) -> float:
        """Return how long an answer's pieces gather: each one crosses three processes."""
        if not call.is_streamed:
            return _UNREAD_REST_S
        return rest_s(self._args.stream_interval_ms / 1000, self._num_streams)

    def _begin(self, call: GenerateCall, gone: threading.Event) -> "_Begun | Refused":
        """Read the documents and hand the prompt to the engine; in a thread, because both wait."""
        from serve.reading import Cancelled, Chain, check_size

        try:
            prompt_ids, sampling = self._texts.prompt(call)
            chain = self._reader.chain(call.owner, call.documents) if call.documents else Chain(())
            check_size(chain, len(prompt_ids), self._engine.served.max_input_tokens)
            after = self._reader.read(chain, lambda done, total: None, gone)[0] if call.documents else None
            generation = Generation(
                request_id=call.request_id,
                prompt_ids=prompt_ids,
                after=after,
                sampling=sampling,
                unlimited=call.unlimited,
                settings=call.settings,
                passages=call.passages,
            )
            stream = self._engine.submit(generation)
        except Cancelled:
            return Refused(499, "the client has gone")
        except (HsokvError, ApiError) as error:
            return _refused(error)
        if gone.is_set():
            stream.cancel()
        return _Begun(stream, chain, prompt_ids)

    def _sources(self, chain: Any, prompt_ids: list[int], finished: Finished) -> Sources:
        """Return where the passages are; none where a document was deleted meanwhile, for the answer stands."""
        try:
            return Sources(self._reader.drawn_from(chain, prompt_ids, finished.passages or ()))
        except (HsokvError, ApiError) as error:
            logger.warning("passages cannot be told: %s", error)
            return Sources(())

    def _encode_document(self, document_id: str, owner: str, gone: threading.Event) -> dict[str, Any]:
        from serve.reading import check_kept

        begin_s, told = time.monotonic(), _Told(self._documents, document_id, owner)
        try:
            chain = self._reader.chain(owner, [document_id])
            check_kept(chain, self._engine.served.bytes_per_token, self._kept_bytes)
            told.note("encoding", 0, len(chain))
            encoded, num_known = self._reader.read(chain, told.tokens, gone)
        except (HsokvError, ApiError) as error:
            told.note("failed", 0, 0, message=str(error))
            raise
        told.note("ready", len(chain), len(chain), digest=encoded.digest)
        seconds = time.monotonic() - begin_s
        return {"num_tokens": len(chain), "cached_tokens": num_known, "seconds": seconds}

    async def _in_thread(
        self,
        pool: "ThreadPoolExecutor | BoundedPool",
        call: Callable[[], T],
        undo: Callable[[T], None] = lambda result: None,
    ) -> T:
        """Return what `call` returns in a thread of `pool`; where nobody waits for it any more, `undo` gets it."""
        future: Future[T] = pool.submit(call)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            if not future.cancel():
                future.add_done_callback(lambda done: done.exception() or undo(done.result()))
            raise

    def _count(self, events: list[Any]) -> None:
        metrics, last = self._metrics, events[-1]
        if isinstance(last, Finished):
            metrics.prompt_tokens.inc(last.usage.prompt_tokens)
            metrics.cached_tokens.inc(last.usage.cached_tokens)
            metrics.queue_s.observe(last.timing.queue_s)
            if last.timing.retrieval_ms_mean:
                metrics.retrieval_s.observe(last.timing.retrieval_ms_mean / 1000)
        elif isinstance(last, Failed):
            metrics.failed.labels(last.kind).inc()
        num_new = sum(len(getattr(event, "token_ids", ())) for event in events)
        metrics.completion_tokens.inc(num_new)
        self._rate.add(num_new)

    def _numbers(self) -> dict[str, float]:
        stats = self._engine.stats()
        return {
            READY: self._is_ready(),
            "running": stats.running + stats.reading,
            "queued": stats.queued,
            "tokens_total": self._rate.total,
            "tokens_per_s": self._rate.per_s,
            "segment_bytes": self._prefixes.stats().local.bytes,
        }

    def _is_ready(self) -> bool:
        try:
            self._engine.check()
        except HsokvError:
            return False
        return True

    def _report(self) -> Report:
        self._rate.look()
        return Report(self._source, "generator", families_of(self._metrics.registry), rss_bytes(), self._numbers())


class _Begun:
    """A request that the engine has taken."""

    def __init__(self, stream: Any, chain: Any, prompt_ids: list[int]) -> None:
        self.stream, self.chain, self.prompt_ids = stream, chain, prompt_ids


class _Told:
    """Tells the documents actor how far an encoding is, a few times a second."""

    def __init__(self, documents: Any, document_id: str, owner: str) -> None:
        self._documents, self._id, self._owner = documents, document_id, owner
        self._last_s = 0.0

    def tokens(self, done: int, total: int) -> None:
        if time.monotonic() - self._last_s >= _PROGRESS_EVERY_S:
            self.note("encoding", done, total)

    def note(self, state: str, done: int, total: int, **more: Any) -> None:
        self._last_s = time.monotonic()
        self._documents.tell("progress", self._id, self._owner, state, done, total, **more)


class _Rate:
    """Tokens generated, and how many in the last second or so."""

    def __init__(self) -> None:
        self.total, self.per_s = 0, 0.0
        self._before, self._since = 0, time.monotonic()

    def add(self, num_tokens: int) -> None:
        self.total += num_tokens

    def look(self) -> None:
        """Set the tokens per second since the last look."""
        now = time.monotonic()
        self.per_s = (self.total - self._before) / max(now - self._since, 1e-6)
        self._before, self._since = self.total, now


def _cancel(begun: Any) -> None:
    if isinstance(begun, _Begun):
        begun.stream.cancel()


def _refused(error: HsokvError | ApiError) -> Refused:
    answer = error if isinstance(error, ApiError) else of(error)
    named = _PARAM.match(answer.message) if isinstance(error, ConfigError) else None  # the engine names it first
    param = _OUR_PARAMS.get(named[1], named[1]) if named else answer.param
    return Refused(answer.status, answer.message, param, answer.code, answer.retry_after_s)


def _fair_threads(args: ServeArgs) -> int:
    replicas = args.autoscaling.max_replicas if args.autoscaling else args.num_replicas
    return max(1, (os.cpu_count() or 1) // replicas)
