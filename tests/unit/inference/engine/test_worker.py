"""Whose turn it is, counted between turns instead of timed."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from hsokv_ray.inference.engine import EngineConfig, EventStream, Failed, Generation, Piece
from hsokv_ray.inference.engine.checks import plan
from hsokv_ray.inference.engine.encoding import EncodeJob
from hsokv_ray.inference.engine.prefix_search import Found
from hsokv_ray.inference.engine.publishing import Publisher
from hsokv_ray.inference.engine.served import ServedModel
from hsokv_ray.inference.engine.stats import GAP_BOUNDS_S
from hsokv_ray.inference.engine.task import Task
from hsokv_ray.inference.engine.worker import Worker
from hsokv_ray.inference.loading import LoadedModel
from hsokv_ray.longcontext.prefixes import LocalPrefixes

from .conftest import generation, ids_of

ENDLESS: dict[str, Any] = {"max_tokens": 4000, "ignore_eos": True}


class Ticks:
    """A clock on which everything takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


class Bench:
    """A worker without a thread."""

    def __init__(self, loaded: LoadedModel, **settings: Any) -> None:
        self.config = EngineConfig(**settings)
        self.served = ServedModel(loaded, self.config)
        self.publisher = Publisher(LocalPrefixes(10**9))
        self.worker = Worker(self.served, self.config, self.publisher, Ticks())

    def start(self, asked: Generation) -> EventStream:
        task = Task(asked, plan(self.served, self.config, asked), EventStream(asked.request_id), Ticks())
        task.prepare(self.served, Found())
        task.found = Found()
        self.worker.start(task)
        return task.stream

    def encode(self, ids: list[int]) -> EncodeJob:
        recorder = self.served.recorder(None, self.served.settings)
        job = EncodeJob(torch.tensor(ids).numpy(), recorder, lambda num_tokens: None, lambda: None)
        self.worker.encode(job)
        return job

    @torch.no_grad()
    def turns(self, count: int) -> str:
        """Return `p` for each piece and `s` for each step."""
        done = ""
        for _ in range(count):
            before = self.worker.counters.pieces
            self.worker.turn()
            done += "p" if self.worker.counters.pieces > before else "s"
        return done

    def close(self) -> None:
        self.publisher.close()
        self.served.close()


@pytest.fixture
def make_bench(loaded: LoadedModel) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**settings: Any) -> Bench:
        made.append(Bench(loaded, **settings))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


@pytest.mark.parametrize(("share", "pattern"), [(0.5, "ps"), (0.25, "psss"), (0.2, "pssss"), (1.0, "p")])
def test_a_piece_is_paid_back_in_steps(make_bench: Callable[..., Bench], text: list[int], share: float, pattern: str):
    bench = make_bench(prefill_share=share)
    bench.start(generation(text[:1], **ENDLESS))
    bench.turns(2)
    bench.encode(text * 10)
    assert bench.turns(3 * len(pattern)) == 3 * pattern


def test_pieces_are_one_chunk_while_answers_wait_and_more_otherwise(make_bench: Callable[..., Bench], text: list[int]):
    bench = make_bench()
    chunk = bench.served.settings.chunk
    job = bench.encode(text * 20)
    bench.turns(4)
    alone = job.num_done
    assert alone > 4 * chunk
    bench.start(generation(text[:1], **ENDLESS))
    bench.turns(1)
    begun = job.num_done
    for _ in range(10):
        before = job.num_done
        bench.turns(1)
        assert job.num_done - before in (0, chunk)
    assert job.num_done > begun


def test_prompts_are_read_before_texts_and_both_in_turn(make_bench: Callable[..., Bench], text: list[int]):
    bench = make_bench(piece_tokens=16)
    jobs = [bench.encode(text) for _ in range(3)]
    bench.turns(6)
    assert [job.num_done for job in jobs] == [jobs[0].num_done] * 3
    assert jobs[0].num_done > 0
    before = [job.num_done for job in jobs]
    streams = [bench.start(generation(text[:length], max_tokens=1)) for length in (300, 60)]
    while not any(isinstance(event, Piece) for event in _there(streams[1])):
        bench.turns(1)
        assert [job.num_done for job in jobs] == before
    assert bench.worker.num_reading == 1, "the short prompt passed the long one"


def test_short_prompts_are_read_side_by_side(
    make_bench: Callable[..., Bench], alone: Callable[..., list[int]], text: list[int]
):
    bench = make_bench(piece_tokens=256)
    prompts = [text[begin : begin + length] for begin, length in ((0, 30), (7, 1), (40, 25), (90, 300), (20, 61))]
    streams = [bench.start(generation(ids)) for ids in prompts]
    bench.turns(1)
    assert bench.worker.num_reading == 1, "the long one has more to read, the others fitted beside it"
    while bench.worker.has_work:
        bench.turns(1)
    for ids, stream in zip(prompts, streams, strict=True):
        assert ids_of(stream.take(0)) == alone(ids, 10)


def test_a_prompt_that_raises_takes_no_other_with_it(
    make_bench: Callable[..., Bench], alone: Callable[..., list[int]], text: list[int]
):
    bench = make_bench()
    streams = [bench.start(generation(text[:length])) for length in (20, 30, 40)]

    def fail(*args: Any) -> None:
        raise MemoryError("no room for this row")

    bench.worker.tasks[1].rows[-1].absorb = fail
    while bench.worker.has_work:
        bench.turns(1)
    assert ids_of(streams[0].take(0)) == alone(text[:20], 10)
    assert "out of memory" in [event for event in streams[1].take(0) if isinstance(event, Failed)][0].message
    assert ids_of(streams[2].take(0)) == alone(text[:40], 10)


def test_a_cancelled_request_is_gone_after_the_next_turn(make_bench: Callable[..., Bench], text: list[int]):
    bench = make_bench()
    streams = [bench.start(generation(text[:length], n=2, **ENDLESS)) for length in (5, 200)]
    bench.turns(30)
    assert bench.worker.num_running == 4
    streams[1].cancel()
    bench.turns(1)
    assert bench.worker.num_running == 2
    assert len(bench.worker.rows) == 2 * bench.served.make.shape.num_layers
    streams[0].cancel()
    bench.turns(1)
    assert not bench.worker.rows
    assert not bench.worker.has_work


def test_a_step_that_fails_ends_what_runs_and_nothing_else(
    make_bench: Callable[..., Bench], alone: Callable[..., list[int]], text: list[int]
):
    bench = make_bench()
    implementation = bench.served.model.config._attn_implementation
    streams = [bench.start(generation(text[:length], **ENDLESS)) for length in (1, 1)]
    late = bench.start(generation(text[:200]))
    bench.turns(1)
    for stream in streams:
        stream.take(0)
    bench.served.model.set_attn_implementation("eager")  # somebody takes the model away
    try:
        while bench.worker.num_running:
            bench.worker.turn()
    finally:
        bench.served.model.set_attn_implementation(implementation)
    for stream in streams:
        (failed,) = stream.take(0)
        assert isinstance(failed, Failed)
        assert failed.kind == "unavailable"
        assert "a step failed" in failed.message
    assert bench.worker.num_reading == 1
    while bench.worker.has_work:
        bench.turns(1)
    assert ids_of(late.take(0)) == alone(text[:200], 10)


def _there(stream: EventStream) -> list[Any]:
    try:
        return stream.take(timeout_s=0)
    except TimeoutError:
        return []


def test_gaps_between_tokens_are_counted_once_for_each_token_behind_the_first(
    make_bench: Callable[..., Bench], text: list[int]
):
    bench = make_bench()
    bench.start(generation(text[:5], max_tokens=9, n=2, ignore_eos=True))
    while bench.worker.has_work:
        bench.turns(1)
    bench.start(generation(text[:5], max_tokens=4, ignore_eos=True))
    while bench.worker.has_work:
        bench.turns(1)
    gaps = bench.worker.counters.gaps
    assert sum(gaps.counts) == 2 * 8 + 3
    assert gaps.counts[GAP_BOUNDS_S.index(2.5)] == 19, "a step takes 2 s on this clock"
    assert gaps.total_s == 2 * 19
