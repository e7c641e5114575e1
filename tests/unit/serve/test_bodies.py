"""JSON bodies: whatever is sent, it is taken as meant or refused with 400 and a reason."""

import json
import math
import time
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.args import Limits
from serve.bodies import parse, parse_json
from serve.errors import ApiError
from serve.vectors.wire import DeleteRequest, EmbeddingsRequest, QueryRequest, UpsertRequest
from serve.wire.base import Wire
from serve.wire.chat import ChatRequest
from serve.wire.completions import CompletionRequest

MESSAGES = [{"role": "user", "content": "hi"}]
DEPTH = 8

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


def refusal(call: Any, *args: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call(*args)
    assert caught.value.status == 400
    return caught.value


def chat(**fields: Any) -> ChatRequest:
    return parse(ChatRequest, json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode(), DEPTH)


def completion(**fields: Any) -> CompletionRequest:
    return parse(CompletionRequest, json.dumps({"model": "m", **fields}).encode(), DEPTH)


@given(json_values)
def test_what_json_says_is_read_and_depth_is_counted_outside_of_strings(value: Any) -> None:
    raw = json.dumps(value).encode()
    if depth_of(value) > DEPTH:
        assert "deeper" in refusal(parse_json, raw, DEPTH).message
    else:
        assert parse_json(raw, DEPTH) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    try:
        expected = json.loads(raw.decode("utf-8"))
    except ValueError:
        refusal(parse_json, raw, 1000)
    else:
        finite = "NaN" not in repr(expected) and "inf" not in repr(expected).lower()
        assert not finite or parse_json(raw, 1000) == expected


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"a": NaN}', "NaN"),
        (b"[-Infinity]", "Infinity"),
        (b"[1e999]", "too large"),
        (b"[" + b"9" * 5000 + b"]", "not JSON"),
        (b"[" * 100_000, "deeper"),
        (b'{"a":' * 100_000, "deeper"),
        (b'"' + b"[" * 100 + b'"', None),
        (b'"\\"[[[[[[[[[[[[[["', None),
        (b'"\\ud800"', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'"\\ud83d\\ude00"', None),
        (b'"\xff"', "UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"", "not JSON"),
    ],
    ids=repr,
)
def test_hand_cases(raw: bytes, message: str | None) -> None:
    if message is None:
        assert parse_json(raw, DEPTH) == json.loads(raw)
    else:
        assert message in refusal(parse_json, raw, DEPTH).message


@pytest.mark.parametrize("end", [b"", b"\\", b"x"])
@pytest.mark.parametrize("quote", [b'\\"', b'"', b"\\\\", b'[\\"'])
def test_a_string_that_is_never_closed_takes_no_longer_than_another(quote: bytes, end: bytes) -> None:
    """A megabyte; looked at again from each of its quotes it would take an hour."""
    since_s = time.process_time()
    refusal(parse_json, b'{"a":"' + quote * (2**20 // len(quote)) + end, DEPTH)
    assert time.process_time() - since_s < 5


WRONG = 100_000


@pytest.mark.parametrize(
    ("cls", "value"),
    [
        (CompletionRequest, {"model": "m", "prompt": [-1] * WRONG}),
        (CompletionRequest, {"model": "m", "prompt": [[1.5] * WRONG] * 2}),
        (CompletionRequest, {"model": "m", "prompt": [1, *["a"] * WRONG]}),
        (CompletionRequest, {"model": "m", "metadata": {str(i): i for i in range(WRONG)}}),
        (CompletionRequest, {"model": "m", "logit_bias": {str(i): 1000 for i in range(WRONG)}}),
        (ChatRequest, {"model": "m", "messages": [1] * WRONG}),
        (ChatRequest, {"model": "m", "messages": [{"role": "user", "content": [1] * WRONG}]}),
        (ChatRequest, {"model": "m", "messages": MESSAGES, "documents": ["/"] * WRONG}),
        (ChatRequest, {"model": "m", "messages": [{str(i): i for i in range(WRONG)}]}),
        (ChatRequest, {"model": "m", "messages": MESSAGES, **{str(i): i for i in range(WRONG)}}),
        (EmbeddingsRequest, {"model": "m", "input": [None] * WRONG}),
        (UpsertRequest, {"ids": [1] * WRONG, "vectors": [["x"] * WRONG], "metadata": [1] * WRONG}),
        (QueryRequest, {"vectors": [["x"] * WRONG] * 2}),
        (DeleteRequest, {"ids": [1] * WRONG}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_however_much_is_wrong_there_are_a_few_errors_and_a_short_message(cls: type[Wire], value: Any) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        cls.model_validate(value)
    assert caught.value.error_count() < 200
    error = refusal(parse, cls, json.dumps(value).encode(), DEPTH)
    assert len(error.message) < 300


@pytest.mark.parametrize(
    ("cls", "field", "limit", "of_one"),
    [
        (ChatRequest, "messages", "num_messages", MESSAGES[0]),
        (ChatRequest, "documents", "num_documents", "doc-1"),
        (CompletionRequest, "documents", "num_documents", "doc-1"),
        (CompletionRequest, "prompt", "num_prompts", "a"),
        (CompletionRequest, "prompt", "num_prompts", [1]),
    ],
)
def test_a_list_over_its_limit_is_refused_and_one_at_its_limit_is_taken(
    cls: type[Wire], field: str, limit: str, of_one: Any
) -> None:
    limits, whole = Limits(**{limit: 3}), {"model": "m"} | ({"messages": MESSAGES} if cls is ChatRequest else {})
    assert parse(cls, json.dumps({**whole, field: [of_one] * 3}).encode(), DEPTH, limits)
    error = refusal(parse, cls, json.dumps({**whole, field: [of_one] * 4}).encode(), DEPTH, limits)
    assert (error.param, "4" in error.message, "3" in error.message) == (field, True, True)


def test_token_ids_of_one_prompt_are_not_counted_as_prompts() -> None:
    raw = json.dumps({"model": "m", "prompt": [1] * 50}).encode()
    assert parse(CompletionRequest, raw, DEPTH, Limits(num_prompts=3)).prompts == [[1] * 50]


@pytest.mark.parametrize("value", [[], "x", 1, None, True])
def test_a_body_that_is_no_object_is_refused(value: Any) -> None:
    assert "JSON object" in refusal(parse, ChatRequest, json.dumps(value).encode(), DEPTH).message


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"temprature": 1}, "temprature", "did you mean 'temperature'?"),
        ({"Temperature": 1}, "Temperature", "did you mean 'temperature'?"),
        ({"x" * 5000: 1}, "x" * 100, "unknown field"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "'system'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type", "text"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "1"}, "temperature", "number"),
        ({"n": True}, "n", "integer"),
        ({"n": 0}, "n", "1"),
        ({"max_tokens": 1.5}, "max_tokens", "integer"),
        ({"stop": ["a"] * 17}, "stop", "16"),
        ({"stop": ""}, "stop", "empty"),
        ({"stop": "a" * 1025}, "stop", "1024"),
        ({"stop": ["a" * 1025]}, "stop.0", "1024"),
        ({"logit_bias": {str(token): 1 for token in range(301)}}, "logit_bias", "300"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata", "16"),
        ({"documents": ["../x"]}, "documents.0", "pattern"),
        ({"top_logprobs": 3}, None, "logprobs: true"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, None, "give one"),
        ({"long_context": {"budget": 1}}, "long_context.budget", "unknown"),
        ({"stream_options": {"usage": True}}, "stream_options.usage", "unknown"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_field_is_named_with_what_is_allowed(fields: dict[str, Any], param: str | None, says: str) -> None:
    error = refusal(lambda: chat(**fields))
    assert error.param == param
    assert says in error.message
    assert "\n" not in error.message


@pytest.mark.parametrize(
    "field", ["tools", "functions", "response_format", "audio", "best_of", "echo", "suffix", "reasoning_effort"]
)
def test_what_is_not_served_is_refused_by_its_name(field: str) -> None:
    error = refusal(lambda: chat(**{field: [{"type": "json_object"}]}))
    assert (error.code, error.param) == ("unsupported", field)


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": None, "tool_choice": "none", "response_format": {"type": "text"}, "best_of": 1, "echo": False},
        {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "parallel_tool_calls": False},
        {"stop": None, "seed": None, "n": None, "logit_bias": None, "stream_options": None, "temperature": None},
        {"temperature": 1, "top_p": 1, "seed": -5, "logit_bias": {"5": -100}},
    ],
    ids=str,
)
def test_harmless_fields_and_nulls_are_taken(fields: dict[str, Any]) -> None:
    assert chat(**fields).model == "m"


def test_true_is_not_the_number_one_that_asks_for_nothing() -> None:
    assert refusal(lambda: chat(best_of=True)).code == "unsupported"


def test_parts_of_a_message_are_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages[0].text == "ab"


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        (None, [""]),
        ("", [""]),
        ([], [""]),
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_prompts_in_every_shape(prompt: Any, prompts: list[Any]) -> None:
    assert completion(prompt=prompt).prompts == prompts


@pytest.mark.parametrize("prompt", [["a", 1], [[1], "a"], [-1], [1.5], {"a": 1}, [[]], 5])
def test_mixed_prompts_are_refused(prompt: Any) -> None:
    error = refusal(lambda: completion(prompt=prompt))
    assert (error.param or "").startswith("prompt")


@given(st.floats())
def test_no_number_out_of_range_gets_through(value: float) -> None:
    raw = f'{{"model": "m", "messages": {json.dumps(MESSAGES)}, "temperature": {json.dumps(value)}}}'.encode()
    if math.isfinite(value) and 0 <= value <= 2:
        assert parse(ChatRequest, raw, DEPTH).temperature == value
    else:
        refusal(parse, ChatRequest, raw, DEPTH)
