"""The wire itself: keys on every route, OpenAI's errors for whatever is sent, disconnects, limits, metrics."""

import http.client
import json
import re
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
from served_app import Served, wait_until

Ask = Callable[..., tuple[int, dict[str, Any], Any]]
METRICS = (
    *("time_to_first_token_seconds", "inter_token_seconds", "queued", "running", "encoded_tokens_total"),
    *(
        "retrieval_seconds",
        "segment_bytes",
        "prefix_hits_total",
        "prefix_misses_total",
        "http_answers_total",
        "resident_bytes",
    ),
)
PATHS = (
    *("/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/documents", "/v1/embeddings", "/health"),
    *("/metrics", "/v1/status", "/v1/memory/{collection}/query"),
)
METHODS = ("get", "post", "put", "patch", "delete")
PROMPT = {"prompt": "The quick", "temperature": 0, "ignore_eos": True}


def connection(served: Served, timeout_s: float = 60) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=timeout_s)


def post(served: Served, body: dict[str, Any], path: str = "/v1/completions") -> http.client.HTTPConnection:
    """Send a request and return its connection, whose answer was not read."""
    to = connection(served)
    headers = {"Content-Type": "application/json", **served.headers}
    to.request("POST", path, json.dumps({"model": served.model, **body}), headers)
    return to


def status(ask: Ask) -> dict[str, Any]:
    return ask("GET", "/v1/status")[2]


def test_every_route_but_the_public_ones_is_401_without_a_key(ask: Ask) -> None:
    paths = ask("GET", "/openapi.json")[2]["paths"]
    assert len(paths) > 10
    for path in [*paths, "/openapi.json", "/metrics"]:
        for method in METHODS if path in paths else ("get",):
            if path == "/health" or (path in paths and method not in paths[path]):
                continue
            concrete = re.sub(r"\{[^}]+\}", "x", path)
            code, headers, answer = ask(method.upper(), concrete, headers={"Authorization": ""}, raw=b"{}")
            assert code == 401, (method, path, answer)
            assert answer["error"]["code"] == "invalid_api_key"
            assert headers["www-authenticate"] == "Bearer"


def test_health_needs_no_key_and_answers_head_too(ask: Ask) -> None:
    code, _, body = ask("GET", "/health", headers={"Authorization": ""})
    assert (code, body["status"]) == (200, "ok")
    code, _, body = ask("HEAD", "/health", headers={"Authorization": ""})
    assert (code, body) == (200, b"")


def test_unknown_routes_and_methods_are_openai_s_errors(ask: Ask) -> None:
    code, _, answer = ask("GET", "/v1/nothing")
    assert (code, answer["error"]["code"]) == (404, "not_found")
    code, headers, answer = ask("DELETE", "/v1/chat/completions")
    assert (code, answer["error"]["code"], headers["allow"]) == (405, "method_not_allowed", "POST")
    code, headers, _ = ask("OPTIONS", "/v1/chat/completions")
    assert code == 405
    assert not any(name.lower().startswith("access-control") for name in headers)


@pytest.mark.parametrize(
    ("raw", "content_type", "code"),
    [
        (b"[]", "application/json", 400),
        (b"null", "application/json", 400),
        (b'{"model": "tiny", "prompt": "x", "temperature": NaN}', "application/json", 400),
        (b'{"prompt":' + b"[" * 5000, "application/json", 400),
        (b'{"model": "tiny", "prompt": "\\ud800"}', "application/json", 400),
        (b'{"model": "tiny", "prompt": "x"}', "text/plain", 415),
        (b'{"model": "tiny", "prompt": "x"}', "application/x-www-form-urlencoded", 415),
        (b'{"model": "tiny", "prompt": "' + b"a" * 10_000_000 + b'"}', "application/json", 413),
        (b"", "application/json", 400),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bodies_that_are_wrong_are_refused_with_a_reason(ask: Ask, raw: bytes, content_type: str, code: int) -> None:
    got, _, answer = ask("POST", "/v1/completions", raw=raw, headers={"Content-Type": content_type})
    assert got == code
    assert answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]


def test_a_body_without_an_announced_length_is_still_limited(served: Served) -> None:
    to = connection(served)
    pieces = (b"a" * 2**20 for _ in range(20))
    try:
        headers = {"Content-Type": "application/json", **served.headers}
        to.request("POST", "/v1/completions", pieces, headers, encode_chunked=True)
    except (BrokenPipeError, ConnectionResetError):
        return  # it was refused while it was being sent
    assert to.getresponse().status == 413


def test_a_client_that_sends_too_slowly_is_told_408(served: Served) -> None:
    place = urlsplit(served.url)
    with socket.create_connection((place.hostname, place.port), timeout=30) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nAuthorization: Bearer {served.key}\r\n"
        client.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert b" 408 " in client.recv(4096).split(b"\r\n")[0]


def test_a_null_character_and_unusual_text_are_answered(ask: Ask, served: Served) -> None:
    for text in ("\0", "\u2028", "\U0001f600", "<eos><eos>"):
        body = {"model": served.model, "prompt": text, "max_tokens": 2}
        assert ask("POST", "/v1/completions", body)[0] == 200


def test_frames_are_openai_s_to_the_byte(served: Served) -> None:
    answer = post(served, {**PROMPT, "max_tokens": 5, "stream": True}).getresponse()
    assert answer.status == 200
    assert answer.getheader("Content-Type", "").startswith("text/event-stream")
    frames = answer.read().split(b"\n\n")
    assert frames.pop() == b""
    assert frames.pop() == b"data: [DONE]"
    for frame in frames:
        assert frame.startswith(b"data: {")
        assert b"\n" not in frame
        chunk = json.loads(frame.removeprefix(b"data: "))
        assert chunk["object"] == "text_completion"
        assert set(chunk["choices"][0]) == {"index", "text", "logprobs", "finish_reason"}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_generation_within_a_second(ask: Ask, served: Served, stream: bool) -> None:
    wait_until(lambda: status(ask)["running"] == 0, what="an idle server")
    before = cancelled(ask)
    to = post(served, {**PROMPT, "max_tokens": 2000, "stream": stream})
    if stream:
        to.getresponse().read(100)
    wait_until(lambda: status(ask)["running"] == 1, what="generation")
    to.close()
    gone_s = time.monotonic()
    wait_until(lambda: cancelled(ask) > before, within_s=20, what="the end of the generation")
    seconds = time.monotonic() - gone_s
    assert seconds < 1 + 1.5, "within a second, and the board is told once a second"
    wait_until(lambda: status(ask)["running"] == 0, what="an idle server")


def cancelled(ask: Ask) -> float:
    return metric(ask, "hsokv_serve_cancelled_requests_total")


def settled(ask: Ask, name: str) -> float:
    """Return a metric once it has not changed for longer than the processes take to report."""
    value, since_s = metric(ask, name), time.monotonic()
    while time.monotonic() - since_s < 3:
        if (now := metric(ask, name)) != value:
            value, since_s = now, time.monotonic()
        time.sleep(0.2)
    return value


def metric(ask: Ask, name: str) -> float:
    """Return the sum of a metric's samples over all processes."""
    text = ask("GET", "/metrics")[2].decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))


def test_too_many_requests_of_one_key_are_429_with_retry_after_and_others_are_not_kept_out(
    ask: Ask, served: Served
) -> None:
    body = {**PROMPT, "max_tokens": 2000, "stream": True}
    opened = [post(served, body) for _ in range(12)]
    wait_until(lambda: (now := status(ask))["running"] == 8 and now["queued"] == 4, what="twelve requests")
    code, headers, answer = ask("POST", "/v1/completions", {"model": served.model, **PROMPT, "max_tokens": 1})
    assert code == 429
    assert int(headers["retry-after"]) >= 1
    assert answer["error"]["type"] == "rate_limit_error"
    other = connection(served)
    sent = {"Content-Type": "application/json", "Authorization": f"Bearer {served.other_key}"}
    other.request("POST", "/v1/completions", json.dumps({"model": served.model, **PROMPT, "max_tokens": 1}), sent)
    wait_until(lambda: status(ask)["queued"] == 5, what="the other owner's request")
    for each in opened:
        each.close()
    assert other.getresponse().status == 200
    wait_until(lambda: status(ask)["running"] == 0, what="an idle server")


def test_a_full_queue_is_429_and_what_was_taken_is_answered(ask: Ask, served: Served) -> None:
    keys = [served.key, served.other_key]

    def one(number: int) -> tuple[int, dict[str, Any]]:
        body = {"model": served.model, **PROMPT, "max_tokens": 100}
        headers = {"Authorization": f"Bearer {keys[number % 2]}"}
        code, received, answer = ask("POST", "/v1/completions", body, headers=headers)
        return code, received | answer

    with ThreadPoolExecutor(22) as pool:
        answers = list(pool.map(one, range(22)))
    codes = [code for code, _ in answers]
    assert set(codes) <= {200, 429}
    assert codes.count(200) >= 8
    texts = {answer["choices"][0]["text"] for code, answer in answers if code == 200}
    assert len(texts) == 1
    assert all("retry-after" in answer for code, answer in answers if code == 429)


def test_past_the_running_and_the_queued_a_request_is_429_with_the_time_to_wait(ask: Ask, served: Served) -> None:
    taken = served.args.engine.max_running + served.args.engine.max_queued
    owners = [served, replace(served, key=served.other_key)]
    body = {**PROMPT, "max_tokens": 600, "stream": True}  # none ends before the last is sent
    streams = [post(owners[number % 2], body) for number in range(taken + 4)]
    with ThreadPoolExecutor(len(streams)) as pool:
        answers = list(pool.map(lambda stream: stream.getresponse(), streams))
    refused = [answer for answer in answers if answer.status == 429]
    assert 1 <= len(refused) <= len(streams) - served.args.engine.max_queued  # they may all come before one has begun
    assert [answer.status for answer in answers if answer not in refused] == [200] * (len(answers) - len(refused))
    for answer in refused:
        assert float(answer.headers["retry-after"]) > 0
        assert json.loads(answer.read())["error"]["code"] == "overloaded"
    for stream in streams:
        stream.close()
    wait_until(lambda: status(ask)["running"] == status(ask)["queued"] == 0, what="an idle engine")


def test_metrics_are_of_every_process_and_add_up(ask: Ask, served: Served) -> None:
    before = settled(ask, "hsokv_serve_completion_tokens_total")
    ask("POST", "/v1/completions", {"model": served.model, **PROMPT, "max_tokens": 7})
    counted = "hsokv_serve_completion_tokens_total"
    wait_until(lambda: metric(ask, counted) == before + 7, within_s=10, what="the count of tokens")
    code, headers, text = ask("GET", "/metrics")
    assert code == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    names = set(re.findall(r"^# TYPE (\w+)", text.decode(), re.MULTILINE))
    assert {f"hsokv_serve_{name}" for name in METRICS} <= names
    assert len(names) == len(re.findall(r"^# TYPE (\w+)", text.decode(), re.MULTILINE)), "each is described once"
    sources = set(re.findall(r'replica="(\w+)-', text.decode()))
    assert {"Gateway", "Generator"} <= sources


def test_without_keys_this_machine_is_answered_under_its_own_name_only(app: Served) -> None:
    to = connection(app)
    to.request("GET", urlsplit(app.url).path + "/v1/models")
    assert to.getresponse().status == 200
    to = connection(app)
    to.request("GET", urlsplit(app.url).path + "/v1/models", headers={"Host": "evil.example.org"})
    assert to.getresponse().status == 403


def test_without_keys_a_page_of_another_site_cannot_upload(app: Served) -> None:
    sent = {
        "Content-Type": "text/plain;charset=UTF-8",
        "Origin": "https://evil.example",
        "Sec-Fetch-Site": "cross-site",
    }
    to = connection(app)
    to.request("POST", urlsplit(app.url).path + "/v1/documents", b"planted", sent)
    assert to.getresponse().status == 403
    to = connection(app)
    to.request("GET", urlsplit(app.url).path + "/v1/documents")
    assert json.loads(to.getresponse().read())["data"] == []


def test_a_host_header_opens_no_door(served: Served) -> None:
    for host in ("x/health?", "x/health#", f"{urlsplit(served.url).netloc}/health?"):
        to = connection(served)
        to.request("GET", "/v1/models", headers={"Host": host})
        assert to.getresponse().status in (400, 401)


def test_encoded_text_may_take_half_of_the_object_store_by_default(ask: Ask) -> None:
    import ray

    assert status(ask)["segment_limit_bytes"] == int(ray.cluster_resources()["object_store_memory"]) // 2


def test_health_is_answered_while_every_place_is_taken_and_others_wait(ask: Ask, served: Served) -> None:
    opened = [post(served, {**PROMPT, "max_tokens": 2000, "stream": True}) for _ in range(12)]
    wait_until(lambda: (now := status(ask))["running"] == 8 and now["queued"] == 4, what="twelve requests")
    since_s = time.monotonic()
    assert ask("GET", "/health")[0] == 200
    assert time.monotonic() - since_s < 3
    for each in opened:
        each.close()
    wait_until(lambda: status(ask)["running"] == 0, what="an idle server")


def test_the_description_names_every_route_and_validates_our_own_answers(ask: Ask, served: Served) -> None:
    described = ask("GET", "/openapi.json")[2]
    assert set(PATHS) <= set(described["paths"])
    store = {"components": described["components"]}
    answer = ask("POST", "/v1/completions", {"model": served.model, **PROMPT, "max_tokens": 2, "logprobs": 1})[2]
    jsonschema.validate(answer, {"$ref": "#/components/schemas/CompletionResponse", **store})
    messages = [{"role": "user", "content": "x"}]
    body = {"model": served.model, "messages": messages, "max_tokens": 2, "logprobs": True, "top_logprobs": 1}
    answer = ask("POST", "/v1/chat/completions", body)[2]
    jsonschema.validate(answer, {"$ref": "#/components/schemas/ChatResponse", **store})
    answer = ask("POST", "/v1/chat/completions", {"model": "none", "messages": messages})[2]
    jsonschema.validate(answer, {"$ref": "#/components/schemas/ErrorBody", **store})
    frames = post(served, {**body, "stream": True, "stream_options": {"include_usage": True}}, "/v1/chat/completions")
    chunks = [line for line in frames.getresponse().read().split(b"\n\n") if line.startswith(b"data: {")]
    for chunk in chunks:
        jsonschema.validate(json.loads(chunk[6:]), {"$ref": "#/components/schemas/ChatChunk", **store})
