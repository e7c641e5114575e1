"""What the engine answers is what the model answers alone."""

import asyncio
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hsokv_ray.inference.engine import ChoiceEnded, Engine, Event, Finished, Generation, Piece, Started, TokenLogprob
from hsokv_ray.inference.loading import LoadedModel
from hsokv_ray.longcontext import LongContext, LongContextConfig

from .conftest import GREEDY, STRIDE, WINDOW, generation, ids_of, text_of

Alone = Callable[..., list[int]]


def plain_ids(model: Any, ids: list[int], num_new: int) -> list[int]:
    prompt = torch.tensor([ids])
    output = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=num_new, do_sample=False, pad_token_id=0
    )
    return output[0, len(ids) :].tolist()


@pytest.mark.parametrize("length", [1, 2, 17, 50])
def test_inside_the_window_ids_are_those_of_generate(engine: Engine, loaded: LoadedModel, text: list[int], length: int):
    events = list(engine.submit(generation(text[:length])))
    assert ids_of(events) == plain_ids(loaded.model, text[:length], 10)
    assert text_of(events) == loaded.tokenizer.decode(ids_of(events), skip_special_tokens=True)


@pytest.mark.parametrize("length", [60, 64, 65, 200, 450])
def test_past_the_window_ids_are_those_of_long_context(engine: Engine, alone: Alone, text: list[int], length: int):
    assert ids_of(list(engine.submit(generation(text[:length])))) == alone(text[:length], 10)


@pytest.mark.parametrize("document", [20, 63, 150, 301])
@pytest.mark.parametrize("prompt", [1, 12, 80])
def test_behind_a_document_ids_are_those_of_a_memory(
    engine: Engine, alone: Alone, text: list[int], document: int, prompt: int
):
    encoded = engine.encode(text[:document]).result(60)
    question = text[400 : 400 + prompt]
    events = list(engine.submit(generation(question, after=encoded)))
    assert ids_of(events) == alone(question, 10, text[:document])
    started, finished = events[0], events[-1]
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    assert (started.prompt_tokens, started.document_tokens) == (document + prompt, document)
    assert started.cached_tokens >= document
    assert finished.usage.completion_tokens == len(ids_of(events))


def test_documents_are_a_chain(engine: Engine, loaded: LoadedModel, text: list[int]):
    first = engine.encode(text[:130]).result(60)
    both = engine.encode(text[130:300], after=first).result(60)
    assert len(both) == 300
    events = list(engine.submit(generation(text[300:310], after=both)))
    with LongContext(loaded.model, loaded.tokenizer, LongContextConfig(enabled=True)) as lc:
        memory = lc.encode(text[:130])
        lc.append(memory, text[130:300])
        answer = lc.generate(memory, prompt=text[300:310], max_new_tokens=10, do_sample=False)
    assert ids_of(events) == answer.token_ids


REQUEST = st.fixed_dictionaries(
    {
        "begin": st.sampled_from([0, 0, 0, 100]),  # several begin alike
        "length": st.one_of(st.integers(1, 63), st.sampled_from([64, 65, 128, 129, 200, 300])),
        "max_tokens": st.integers(1, 12),
        "n": st.integers(1, 3),
        "document": st.sampled_from([None, None, 90]),
        "cancel_after": st.one_of(st.none(), st.integers(0, 4)),
        "wait_for": st.integers(0, 3),
    }
)


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(mix=st.lists(REQUEST, min_size=1, max_size=7), share=st.sampled_from([0.2, 0.5, 1.0]))
def test_whatever_else_runs_greedy_ids_are_those_alone(
    make_engine: Callable[..., Engine],
    alone: Alone,
    text: list[int],
    mix: list[dict[str, Any]],
    share: float,
):
    engine = make_engine(prefill_share=share, max_running=5)
    document = engine.encode(text[:90]).result(60)
    streams, first = [], []
    for number, ask in enumerate(mix):
        prompt = text[ask["begin"] : ask["begin"] + ask["length"]]
        after = document if ask["document"] else None
        asked = generation(prompt, max_tokens=ask["max_tokens"], n=ask["n"], after=after, name=str(number))
        streams.append(engine.submit(asked))
        first.append([])
        for _ in range(ask["wait_for"]):  # so that requests join at different moments
            first[-1].extend(streams[-1].take())
        if ask["cancel_after"] is not None:
            for _ in range(ask["cancel_after"]):
                first[-1].extend(streams[-1].take())
            streams[-1].cancel()
    for ask, stream, begun in zip(mix, streams, first, strict=True):
        events = [*begun, *stream]
        prompt = text[ask["begin"] : ask["begin"] + ask["length"]]
        expected = alone(prompt, ask["max_tokens"], text[:90] if ask["document"] else None)
        for choice in range(ask["n"]):
            got = ids_of(events, choice)
            if stream.cancelled:
                assert got == expected[: len(got)]
            else:
                assert got == expected
        assert stream.cancelled or isinstance(events[-1], Finished)
    assert engine.drain(60)
    assert engine.held_bytes() == 0
    assert engine.stats().counters.requests_failed == 0
    engine.close()


def test_choices_with_a_seed_are_single_requests_with_the_seeds_that_follow(engine: Engine, text: list[int]):
    sampled = {"temperature": 1.2, "seed": 40, "max_tokens": 12}
    together = list(engine.submit(generation(text[:200], n=3, **sampled)))
    busy = [engine.submit(generation(text[:length], max_tokens=30)) for length in (5, 80, 130)]
    for choice in range(3):
        single = list(engine.submit(generation(text[:200], **sampled | {"seed": 40 + choice})))
        assert ids_of(single) == ids_of(together, choice)
    assert len({tuple(ids_of(together, choice)) for choice in range(3)}) > 1
    for stream in busy:
        assert isinstance(list(stream)[-1], Finished)


@pytest.mark.parametrize("length", [20, 150])
def test_an_answer_ends_before_a_stop_string_that_spans_tokens(
    engine: Engine, loaded: LoadedModel, text: list[int], length: int
):
    whole = list(engine.submit(generation(text[:length], max_tokens=40, ignore_eos=True)))
    answer = text_of(whole)
    spans = [len(loaded.tokenizer.decode(ids_of(whole)[:number])) for number in range(1, 40)]
    border = next(place for place in spans if 3 < place < len(answer) - 3)
    stop = answer[border - 2 : border + 2]
    events = list(engine.submit(generation(text[:length], max_tokens=40, ignore_eos=True, stop=("\x00\x00", stop))))
    assert text_of(events) == answer[: answer.find(stop)]
    assert ChoiceEnded(0, "stop") in events
    assert ids_of(events) == ids_of(whole)[: len(ids_of(events))]
    assert len(ids_of(events)) < 40


def test_an_end_token_ends_an_answer_unless_it_is_ignored(engine: Engine, loaded: LoadedModel, text: list[int]):
    end = loaded.tokenizer.eos_token_id
    ask: dict[str, Any] = {"logit_bias": {end: 100.0}, "max_tokens": 5}
    events = list(engine.submit(generation(text[:9], **ask)))
    assert ids_of(events) == [end]
    assert text_of(events) == ""
    assert events[-2] == ChoiceEnded(0, "stop")
    events = list(engine.submit(generation(text[:9], **ask, ignore_eos=True)))
    assert ids_of(events) == [end] * 5
    assert events[-2] == ChoiceEnded(0, "length")


def test_log_probabilities_are_the_models_own(engine: Engine, loaded: LoadedModel, text: list[int]):
    ask = generation(text[:15], temperature=1.5, seed=1, top_k=3, logprobs=4, max_tokens=8)
    events = list(engine.submit(ask))
    told = [each for event in events if isinstance(event, Piece) for each in event.logprobs or ()]
    ids = ids_of(events)
    assert [each.token_id for each in told] == ids
    with torch.no_grad():
        logits = loaded.model(torch.tensor([text[:15] + ids])).logits[0, 14:-1]
    expected = logits.log_softmax(-1)
    for place, each in enumerate(told):
        assert math.isclose(each.logprob, expected[place, each.token_id], abs_tol=1e-4)
        values, tokens = expected[place].topk(4)
        assert [other.token_id for other in each.top] == tokens.tolist()
        assert all(math.isclose(a.logprob, b, abs_tol=1e-4) for a, b in zip(each.top, values.tolist(), strict=True))
        assert isinstance(each, TokenLogprob)
        assert each.text == loaded.tokenizer.decode([each.token_id])


def test_the_window_ends_an_answer_that_may_not_pass_it(engine: Engine, loaded: LoadedModel, text: list[int]):
    prompt = text[:60]
    events = list(engine.submit(generation(prompt, max_tokens=50, unlimited=False, ignore_eos=True)))
    assert len(ids_of(events)) == WINDOW - 60
    assert events[-2] == ChoiceEnded(0, "window")
    events = list(engine.submit(generation(prompt, max_tokens=4, unlimited=False, ignore_eos=True)))
    assert events[-2] == ChoiceEnded(0, "length")


def test_a_beginning_that_was_read_is_not_read_again(engine: Engine, alone: Alone, text: list[int]):
    first = list(engine.submit(generation(text[:200])))
    read = engine.stats().counters.read_tokens
    second = list(engine.submit(generation(text[:180] + text[300:330])))
    started = second[0]
    assert isinstance(started, Started)
    assert started.cached_tokens == 180 // STRIDE * STRIDE
    assert engine.stats().counters.read_tokens - read == 210 - 1 - started.cached_tokens
    assert ids_of(first) == alone(text[:200], 10)
    assert ids_of(second) == alone(text[:180] + text[300:330], 10)


def test_two_requests_at_once_with_one_beginning_read_it_once(engine: Engine, alone: Alone, text: list[int]):
    prompts = [text[:300] + text[400 + 5 * number : 405 + 5 * number] for number in range(4)]
    streams = [engine.submit(generation(prompt, max_tokens=5)) for prompt in prompts]
    answers = [ids_of(list(stream)) for stream in streams]
    assert answers == [alone(prompt, 5) for prompt in prompts]
    once, shared = 304, 300 // STRIDE * STRIDE
    assert engine.stats().counters.read_tokens == once + 3 * (304 - shared)


def test_settings_of_a_request_are_its_own(engine: Engine, loaded: LoadedModel, text: list[int]):
    ask = generation(text[:250], settings={"budget_tokens": 8, "local_tokens": 12})
    plain = list(engine.submit(generation(text[:250])))
    events = list(engine.submit(ask))
    config = LongContextConfig(enabled=True, budget_tokens=8, local_tokens=12)
    with LongContext(loaded.model, loaded.tokenizer, config) as lc:
        assert ids_of(events) == lc.generate(prompt=text[:250], max_new_tokens=10, do_sample=False).token_ids
    started = events[0]
    assert isinstance(started, Started)
    assert started.cached_tokens == 0, "read with other settings"
    again = list(engine.submit(ask))[0]
    assert isinstance(again, Started)
    assert again.cached_tokens == 250 // STRIDE * STRIDE
    assert ids_of(list(engine.submit(generation(text[:250])))) == ids_of(plain)


def test_many_tasks_of_one_loop_are_answered(engine: Engine, alone: Alone, text: list[int]):
    async def ask(length: int) -> list[Event]:
        stream = await asyncio.to_thread(engine.submit, generation(text[:length]))
        return [event async for event in stream]

    async def all_of_them() -> list[list[Event]]:
        return await asyncio.gather(*(ask(length) for length in range(10, 150, 9)))

    for length, events in zip(range(10, 150, 9), asyncio.run(all_of_them()), strict=True):
        assert ids_of(events) == alone(text[:length], 10)


def test_times_add_up(engine: Engine, text: list[int]):
    finished = list(engine.submit(generation(text[:300], n=2)))[-1]
    assert isinstance(finished, Finished)
    timing = finished.timing
    assert 0 <= timing.queue_s <= timing.first_token_s <= timing.seconds
    assert timing.retrieval_ms_mean > 0
    assert 0 < timing.retrieval_share < 1
    short = list(engine.submit(generation(text[:5])))[-1]
    assert isinstance(short, Finished)
    assert short.timing.retrieval_share == 0


def test_the_model_is_given_back_as_it_was(make_engine: Callable[..., Engine], loaded: LoadedModel, text: list[int]):
    before = loaded.model.config._attn_implementation
    threads = threading.active_count()
    engine = make_engine()
    list(engine.submit(Generation("r", text[:200], sampling=GREEDY)))
    engine.close()
    assert loaded.model.config._attn_implementation == before
    assert threading.active_count() == threads
