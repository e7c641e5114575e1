"""The life of an engine and of what it is asked: queueing, failing, cancelling, draining, closing, dying."""

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import pytest
import torch

from hsokv_ray.errors import ConfigError, Overloaded, RunError
from hsokv_ray.inference.engine import Engine, Failed, Finished, Piece, Started
from hsokv_ray.inference.engine.sampling import Sampler
from hsokv_ray.inference.loading import LoadedModel
from hsokv_ray.longcontext import continuing
from hsokv_ray.longcontext.prefixes import LocalPrefixes
from hsokv_ray.longcontext.segments import TokenDigest

from .conftest import STRIDE, generation, ids_of

ENDLESS: dict[str, Any] = {"max_tokens": 4000, "ignore_eos": True}


def until(is_so: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not is_so() and time.monotonic() < end:
        threading.Event().wait(0.002)
    return is_so()


def test_past_its_queue_the_engine_says_when_to_come_again(make_engine: Callable[..., Engine], text: list[int]):
    engine = make_engine(max_running=1, max_choices=1, max_queued=2)
    running = engine.submit(generation(text[:5], **ENDLESS))
    assert isinstance(running.take(30)[0], Started)
    waiting = [engine.submit(generation(text[:5])) for _ in range(2)]
    with pytest.raises(Overloaded, match="2 requests are waiting") as refused:
        engine.submit(generation(text[:5]))
    assert refused.value.retry_after_s >= 1
    assert engine.stats().queued == 2
    running.cancel()
    assert all(isinstance(list(stream)[-1], Finished) for stream in waiting)


def test_with_no_queue_a_free_place_is_still_taken(make_engine: Callable[..., Engine], text: list[int]):
    engine = make_engine(max_running=1, max_choices=1, max_queued=0)
    stream = engine.submit(generation(text[:5], **ENDLESS))
    stream.take(30)
    with pytest.raises(Overloaded):
        engine.submit(generation(text[:5]))
    stream.cancel()
    assert until(lambda: engine.stats().running == engine.stats().reading == 0)
    assert isinstance(list(engine.submit(generation(text[:5])))[-1], Finished)


def test_a_request_of_many_choices_is_not_passed_for_ever(make_engine: Callable[..., Engine], text: list[int]):
    engine = make_engine(max_running=3, max_choices=3)
    first = engine.submit(generation(text[:5], **ENDLESS))
    first.take(30)
    wide = engine.submit(generation(text[:5], n=3, max_tokens=2))
    late = engine.submit(generation(text[:5], max_tokens=2))
    for _ in range(3):  # were it passed, the late one would be done
        first.take(30)
    assert engine.stats().queued == 2
    first.cancel()
    wide_events, late_events = list(wide), list(late)
    assert isinstance(wide_events[-1], Finished)
    assert isinstance(late_events[-1], Finished)


@pytest.mark.parametrize("length", [20, 200])
def test_a_cancelled_request_is_gone_within_a_step_and_frees_what_it_held(
    make_engine: Callable[..., Engine], text: list[int], length: int
):
    engine = make_engine()
    stream = engine.submit(generation(text[:length], n=2, **ENDLESS))
    while not any(isinstance(event, Piece) for event in stream.take(30)):
        pass
    buffers = [weakref.ref(row.local.buffer) for row in engine._worker.rows]  # pyright: ignore[reportPrivateUsage]
    assert engine.stats().running == 2
    assert engine.held_bytes() > 0
    steps = engine.stats().counters.steps
    stream.cancel()
    assert until(lambda: engine.stats().running == 0)
    assert engine.stats().counters.steps - steps <= 3, "the step under way, and those before the count was read"
    assert engine.held_bytes() == 0
    assert list(stream) == []
    assert engine.drain(30)
    gc.collect()
    assert not any(buffer() for buffer in buffers)


def test_a_request_cancelled_while_it_waits_or_is_read_never_runs(make_engine: Callable[..., Engine], text: list[int]):
    engine = make_engine(max_running=1, max_choices=1)
    running = engine.submit(generation(text[:5], **ENDLESS))
    running.take(30)
    waiting = engine.submit(generation(text[:500]))
    waiting.cancel()
    assert until(lambda: engine.stats().queued == 0)
    running.cancel()
    reading = engine.submit(generation(text[:500] * 40))
    assert isinstance(reading.take(30)[0], Started)
    reading.cancel()
    assert until(lambda: engine.stats().reading == 0)
    assert engine.stats().counters.requests_cancelled == 3
    assert engine.stats().counters.requests_finished == 0


def test_a_claim_of_a_cancelled_request_is_given_to_who_waits_for_it(
    make_engine: Callable[..., Engine], alone: Callable[..., list[int]], text: list[int]
):
    engine = make_engine()
    first = engine.submit(generation(text[:500] * 20))
    assert isinstance(first.take(30)[0], Started)
    second = engine.submit(generation(text[:200]))  # waits for the first to read their common beginning
    first.cancel()
    assert ids_of(list(second)) == alone(text[:200], 10)


def test_one_request_that_fails_takes_no_other_with_it(
    make_engine: Callable[..., Engine], alone: Callable[..., list[int]], text: list[int]
):
    engine = make_engine(max_input_tokens=1000)
    other_settings = make_engine(long_context={"enabled": True, "block_size": 8})
    foreign = other_settings.encode(text[:100]).result(60)
    good = [engine.submit(generation(text[:length], max_tokens=20)) for length in (5, 90)]
    with pytest.raises(ConfigError, match="other settings"):
        engine.submit(generation(text[:5], after=foreign))
    (failed,) = list(engine.submit(generation(text[100:200], after=foreign)))  # found while its prefix is looked up
    assert isinstance(failed, Failed)
    assert failed.kind == "invalid"
    assert "other settings" in failed.message
    assert [ids_of(list(stream)) for stream in good] == [alone(text[:5], 20), alone(text[:90], 20)]
    with pytest.raises(ConfigError, match="other settings"):
        engine.encode(text[:10], after=foreign).result(60)
    engine.check()


def test_a_store_that_fails_fails_one_request(make_engine: Callable[..., Engine], text: list[int]):
    class Broken(LocalPrefixes):
        def find(self, digests: Any) -> Any:
            raise OSError("the store is gone")

    engine = make_engine(prefixes=Broken(10**6))
    (failed,) = list(engine.submit(generation(text[:200])))
    assert failed == Failed("internal", "OSError: the store is gone")
    assert isinstance(list(engine.submit(generation(text[:20])))[-1], Finished)


def test_a_store_that_takes_nothing_costs_only_the_sharing(make_engine: Callable[..., Engine], text: list[int]):
    class Full(LocalPrefixes):
        def add(self, encoded: Any) -> None:
            raise OSError("no room")

    engine = make_engine(prefixes=Full(10**6))
    for _ in range(2):  # the second gets the claim
        assert isinstance(list(engine.submit(generation(text[:200])))[-1], Finished)
    assert engine.drain(30)
    assert engine.stats().counters.unpublished == 2


def test_draining_finishes_what_runs_and_takes_nothing_new(make_engine: Callable[..., Engine], text: list[int]):
    engine = make_engine()
    streams = [engine.submit(generation(text[:length], max_tokens=30)) for length in (5, 100, 300)]
    job = engine.encode(text[:200])
    assert not engine.drain(0)
    with pytest.raises(RunError, match="shutting down"):
        engine.submit(generation(text[:5]))
    with pytest.raises(RunError, match="shutting down"):
        engine.encode(text[:5])
    with pytest.raises(RunError):
        engine.check()
    assert engine.drain(60)
    assert all(isinstance(stream.take(0)[-1], Finished) for stream in streams)
    assert len(job.result(0)) == 200


def test_closing_ends_everything_with_a_reason(make_engine: Callable[..., Engine], text: list[int]):
    engine = make_engine(max_running=1, max_choices=1)
    running = engine.submit(generation(text[:5], **ENDLESS))
    running.take(30)
    waiting = engine.submit(generation(text[:300]))
    job = engine.encode(text[:500] * 100)
    engine.close()
    engine.close()
    for stream in (running, waiting):
        last = list(stream)[-1]
        assert isinstance(last, Failed)
        assert last.kind == "unavailable"
    with pytest.raises(RunError, match="shutting down"):
        job.result(0)
    with pytest.raises(RunError, match="shutting down"):
        engine.submit(generation(text[:5]))


def test_the_death_of_the_thread_is_heard_by_all(make_engine: Callable[..., Engine], text: list[int]):
    calls = itertools.count()

    def clock() -> float:
        if threading.current_thread().name == "engine" and next(calls) > 200:
            raise MemoryError("the clock broke")
        return time.perf_counter()

    engine = make_engine(clock=clock)
    streams = [engine.submit(generation(text[:length], **ENDLESS)) for length in (5, 90)]
    job = engine.encode(text[:500] * 100)
    for stream in streams:
        last = list(stream)[-1]
        assert isinstance(last, Failed)
        assert last.kind == "unavailable"
        assert "the engine died (MemoryError: the clock broke)" in last.message
    with pytest.raises(RunError, match="died"):
        job.result(30)
    with pytest.raises(RunError, match="died"):
        engine.check()
    with pytest.raises(RunError, match="died"):
        engine.submit(generation(text[:5]))
    assert engine.drain(1)


def test_an_idle_engine_uses_no_processor(engine: Engine, text: list[int]):
    list(engine.submit(generation(text[:200])))
    assert engine.drain(30)
    before = time.process_time()
    threading.Event().wait(0.3)
    assert time.process_time() - before < 0.1


def test_encoding_tells_how_far_it_is(engine: Engine, text: list[int]):
    told: list[int] = []
    job = engine.encode(text[:333], on_tokens=told.append)
    encoded = job.result(60)
    assert told == sorted(told)
    assert told[-1] == 333 == job.num_done == job.num_tokens == len(encoded)
    assert encoded.token_ids.tolist() == text[:333]
    assert engine.stats().counters.encoded_tokens == 333


def test_an_encoding_can_be_cancelled(engine: Engine, text: list[int]):
    started = threading.Event()
    job = engine.encode(text * 200, on_tokens=lambda num_tokens: started.set())
    assert started.wait(30)
    job.cancel()
    with pytest.raises(CancelledError):
        job.result(30)
    assert until(lambda: engine.stats().encoding == 0)
    assert engine.held_bytes() == 0


def test_an_encoding_whose_listener_fails_fails_alone(engine: Engine, text: list[int]):
    def broken(num_tokens: int) -> None:
        raise LookupError("nobody listens")

    other = engine.encode(text[:300])
    with pytest.raises(LookupError, match="nobody listens"):
        engine.encode(text[:300], on_tokens=broken).result(30)
    assert len(other.result(30)) == 300


def test_as_many_texts_wait_as_requests(make_engine: Callable[..., Engine], text: list[int]):
    engine = make_engine(max_queued=2)
    jobs = [engine.encode(text * 100) for _ in range(2)]
    with pytest.raises(Overloaded, match="2 texts"):
        engine.encode(text[:5])
    for job in jobs:
        job.cancel()


def test_an_encoded_text_found_in_the_store_serves_a_prompt_that_begins_with_it(engine: Engine, text: list[int]):
    engine.prefixes.add(engine.encode(text[: 2 * STRIDE]).result(60))
    started = list(engine.submit(generation(text[:300])))[0]
    assert isinstance(started, Started)
    assert started.cached_tokens == 2 * STRIDE


def test_what_grows_with_the_text_is_done_by_who_asks_and_not_where_answers_wait(
    engine: Engine, text: list[int], monkeypatch: pytest.MonkeyPatch
):
    threads: list[str] = []

    def watched(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            threads.append(threading.current_thread().name)
            return real(*args, **options)

        monkeypatch.setattr(owner, name, call)

    document = engine.encode(text[:300]).result(60)
    watched(continuing, "_place")
    watched(TokenDigest, "hexdigest")
    watched(Sampler, "__init__")
    asked = [generation(text[300:310], after=document, n=2), generation(text[300:310] * 12, after=document)]
    assert all(isinstance(list(engine.submit(each))[-1], Finished) for each in asked)
    assert threads.count(threading.current_thread().name) >= 4  # two samplers, a digest, and the indexes
    marks = 420 // STRIDE - 300 // STRIDE
    assert threads.count("engine") == marks, "each mark has a digest, of what was read since the one before"


def test_what_the_engine_holds_can_be_asked_for_while_readings_end(engine: Engine, text: list[int]):
    streams = [engine.submit(generation(text[at : at + 100], max_tokens=2)) for at in range(0, 400, 20)]
    jobs = [engine.encode(text[at : at + 50]) for at in range(0, 400, 20)]
    while not all(job.future.done() for job in jobs):
        assert engine.held_bytes() >= 0
    assert all(isinstance(list(stream)[-1], Finished) for stream in streams)


def test_a_model_of_another_family_is_refused(loaded: LoadedModel):
    from transformers import GPT2Config, GPT2LMHeadModel

    other = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20)).eval()
    threads = threading.active_count()
    with pytest.raises(ConfigError, match="gpt2"):
        Engine(LoadedModel(other, loaded.tokenizer, loaded.source))
    assert threading.active_count() == threads


def test_the_engine_s_thread_alone_has_the_threads_of_the_cpu(loaded: LoadedModel, text: list[int]):
    before, told = torch.get_num_threads(), []
    try:
        with Engine(loaded, num_threads=2) as engine:
            engine.encode(text, on_tokens=lambda done: told.append(torch.get_num_threads())).result()
            other = threading.Thread(target=lambda: told.append(torch.get_num_threads()))
            other.start()
            other.join()
        assert set(told[:-1]) == {2}
        assert told[-1] == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
