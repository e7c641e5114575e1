"""The unmodified openai client against the application; the reference is the plain model's own `generate`."""

import asyncio
from typing import Any

import openai
import pytest
from reference_model import Reference
from served_app import Served

MESSAGES: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The quick brown fox"}]
PROMPT = "Pack my box with"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def reference(served: Served) -> Reference:
    return Reference.load(served.folder)


def test_the_model_is_listed_and_found_by_its_name(client: openai.OpenAI, served: Served) -> None:
    [model] = client.models.list().data
    assert model.id == served.model
    assert client.models.retrieve(served.model).id == served.model


def test_another_model_is_404_and_the_message_lists_the_models(client: openai.OpenAI, served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match=served.model) as caught:
        client.completions.create(model="gpt-9", prompt="x")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_a_chat_is_continued_as_the_plain_model_does_with_exact_usage(
    client: openai.OpenAI, served: Served, reference: Reference
) -> None:
    ids = reference.chat_ids(MESSAGES)
    new = reference.greedy(ids, 12)
    answer = client.chat.completions.create(model=served.model, messages=MESSAGES, **GREEDY)
    assert answer.choices[0].message.content == reference.text(new)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == ("stop" if new[-1] == 0 else "length")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), len(new))
    assert answer.usage.total_tokens == len(ids) + len(new)


def test_a_streamed_chat_is_the_same_answer_in_openai_s_order(client: openai.OpenAI, served: Served) -> None:
    whole = client.chat.completions.create(model=served.model, messages=MESSAGES, **GREEDY)
    chunks = list(
        client.chat.completions.create(
            model=served.model, messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    *texts, last, ending = chunks
    assert texts[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in texts[1:])
    text = "".join(chunk.choices[0].delta.content or "" for chunk in texts)
    assert text == whole.choices[0].message.content
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert [chunk.choices[0].finish_reason for chunk in texts] == [None] * len(texts)
    assert ending.choices == []
    assert ending.usage is not None
    assert ending.usage.model_dump() == whole.usage.model_dump()  # type: ignore[union-attr]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_without_include_usage_no_chunk_is_without_choices(client: openai.OpenAI, served: Served) -> None:
    chunks = list(client.completions.create(model=served.model, prompt=PROMPT, stream=True, **GREEDY))
    assert all(chunk.choices for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


def test_a_completion_is_the_plain_model_s_from_text_and_from_ids(
    client: openai.OpenAI, served: Served, reference: Reference
) -> None:
    ids = reference.ids(PROMPT)
    expected = reference.text(reference.greedy(ids, 12))
    for prompt in (PROMPT, ids):
        answer = client.completions.create(model=served.model, prompt=prompt, **GREEDY)
        assert answer.choices[0].text == expected


def test_several_prompts_are_answered_in_order_each_n_times_and_usage_is_their_sum(
    client: openai.OpenAI, served: Served, reference: Reference
) -> None:
    prompts = ["The quick", "Pack my", "five dozen"]
    answer = client.completions.create(model=served.model, prompt=prompts, n=2, **GREEDY)
    expected = [reference.text(reference.greedy(reference.ids(prompt), 12)) for prompt in prompts for _ in range(2)]
    assert [choice.text for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(len(reference.ids(prompt)) for prompt in prompts)
    streamed = [""] * 6
    for chunk in client.completions.create(model=served.model, prompt=prompts, n=2, stream=True, **GREEDY):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == expected


@pytest.mark.parametrize("prompts", [["The"], ["The", "A quick"]])
def test_in_a_stream_each_answer_has_its_text_and_one_finish_reason(
    client: openai.OpenAI, served: Served, prompts: list[str]
) -> None:
    asked: dict[str, Any] = {"model": served.model, "prompt": prompts, "n": 2, "max_tokens": 8, "temperature": 0}
    asked["extra_body"] = {"ignore_eos": True}
    whole = client.completions.create(**asked)
    texts, reasons = [""] * len(whole.choices), []
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons += [choice.index] if choice.finish_reason else []
    assert sorted(reasons) == list(range(2 * len(prompts)))
    assert texts == [choice.text for choice in whole.choices]


def test_a_seed_reproduces_sampled_answers_and_n_gives_different_ones(client: openai.OpenAI, served: Served) -> None:
    def drawn(seed: int | None) -> list[str | None]:
        answer = client.chat.completions.create(
            model=served.model, messages=MESSAGES, n=3, seed=seed, temperature=1.5, max_tokens=12
        )
        return [choice.message.content for choice in answer.choices]

    first = drawn(7)
    assert first == drawn(7)
    assert len(set(first)) == 3
    assert first != drawn(8)
    assert drawn(-1) == drawn(-1)


def test_generation_ends_before_a_stop_text(client: openai.OpenAI, served: Served) -> None:
    full = client.completions.create(model=served.model, prompt=PROMPT, **GREEDY).choices[0].text
    for stop in (full[3:5], [full[4:6], "never there"]):
        first = stop if isinstance(stop, str) else stop[0]
        answer = client.completions.create(model=served.model, prompt=PROMPT, stop=stop, **GREEDY)
        assert answer.choices[0].text == full[: full.index(first)]
        assert answer.choices[0].finish_reason == "stop"


def test_logprobs_of_a_chat_are_the_model_s(client: openai.OpenAI, served: Served, reference: Reference) -> None:
    ids = reference.chat_ids(MESSAGES)
    new = reference.greedy(ids, 12)
    answer = client.chat.completions.create(
        model=served.model, messages=MESSAGES, logprobs=True, top_logprobs=3, **GREEDY
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content or []
    assert [each.logprob for each in content] == pytest.approx(reference.logprobs(ids, new), abs=1e-3)
    for each in content:
        assert len(each.top_logprobs) == 3
        assert each.top_logprobs[0].logprob == pytest.approx(each.logprob)  # greedy takes the likeliest
        assert each.bytes == list(each.token.encode())


def test_logprobs_of_a_completion_are_the_model_s_whole_and_streamed(
    client: openai.OpenAI, served: Served, reference: Reference
) -> None:
    ids = reference.ids(PROMPT)
    expected = pytest.approx(reference.logprobs(ids, reference.greedy(ids, 12)), abs=1e-3)
    whole = client.completions.create(model=served.model, prompt=PROMPT, logprobs=2, **GREEDY).choices[0].logprobs
    assert whole is not None
    assert whole.token_logprobs == expected
    offsets: list[int] = []
    values: list[float] = []
    for chunk in client.completions.create(model=served.model, prompt=PROMPT, logprobs=2, stream=True, **GREEDY):
        if chunk.choices[0].logprobs:
            offsets += chunk.choices[0].logprobs.text_offset or []
            values += chunk.choices[0].logprobs.token_logprobs or []
    assert values == expected
    assert offsets == whole.text_offset


def test_max_completion_tokens_is_max_tokens(client: openai.OpenAI, served: Served) -> None:
    answer = client.chat.completions.create(
        model=served.model, messages=MESSAGES, max_completion_tokens=3, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_a_bias_of_minus_100_keeps_a_token_out(client: openai.OpenAI, served: Served, reference: Reference) -> None:
    first = reference.greedy(reference.ids(PROMPT), 1)[0]
    answer = client.completions.create(
        model=served.model, prompt=PROMPT, logit_bias={str(first): -100}, temperature=0, max_tokens=1
    )
    assert answer.choices[0].text != reference.text([first])


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"temperature": 9.0}, openai.BadRequestError, "temperature"),
        ({"n": 100}, openai.BadRequestError, "n"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "max_tokens"),
        ({"logit_bias": {"99999": 1}}, openai.BadRequestError, "logit_bias"),
        ({"logit_bias": {"x": 1}}, openai.BadRequestError, "logit_bias"),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "temprature"),
        ({"extra_body": {"documents": ["no-such"]}}, openai.NotFoundError, None),
        ({"extra_body": {"long_context": {"positions": "native"}}}, openai.BadRequestError, "long_context.positions"),
        ({"prompt": [10**6]}, openai.BadRequestError, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_come_as_the_client_s_classes_also_for_streams(
    client: openai.OpenAI,
    served: Served,
    fields: dict[str, Any],
    error: type[openai.APIStatusError],
    param: Any,
    stream: bool,
) -> None:
    with pytest.raises(error) as caught:
        client.completions.create(**{"model": served.model, "prompt": PROMPT, "stream": stream, **fields})
    assert caught.value.param == param
    assert "\n" not in caught.value.message


def test_tools_are_refused_as_unsupported(client: openai.OpenAI, served: Served) -> None:
    tool: Any = {"type": "function", "function": {"name": "f"}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=served.model, messages=MESSAGES, tools=[tool])
    assert (caught.value.code, caught.value.param) == ("unsupported", "tools")


def test_a_wrong_key_is_an_authentication_error(served: Served) -> None:
    stranger = openai.OpenAI(base_url=f"{served.url}/v1", api_key="not-a-key-of-ours", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_the_async_client_streams_many_at_once_and_each_is_what_it_is_alone(
    served: Served, reference: Reference
) -> None:
    prompts = [f"{PROMPT} {'word ' * i}" for i in range(6)]

    async def all_answers() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0) as client:

            async def answer(prompt: str) -> str:
                stream = await client.completions.create(model=served.model, prompt=prompt, stream=True, **GREEDY)
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*map(answer, prompts))

    expected = [reference.text(reference.greedy(reference.ids(prompt), 12)) for prompt in prompts]
    assert asyncio.run(all_answers()) == expected
