"""What one request may ask for, at most: refused with the limit, the count, and nothing read."""

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from served_app import Served

ORIGIN = "https://pages.example.org"


@pytest.fixture(scope="module")
def limited(start_app: Callable[..., Served]) -> Served:
    """Small limits, and one page of another origin that may ask."""
    engine = {"max_running": 8, "max_queued": 8, "max_new_tokens": 2000, "max_input_tokens": 300}
    limits = {"num_prompts": 2, "num_messages": 3, "num_documents": 1, "document_bytes": 2000}
    return start_app("limited", "/limited", engine=engine, limits=limits, cors_origins=[ORIGIN])


def post(served: Served, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(served.url + path, data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def complete(served: Served, **fields: Any) -> tuple[int, Any]:
    return post(served, "/v1/completions", {"model": served.model, "prompt": "x", "max_tokens": 2, **fields})


def test_prompts_past_the_limit_are_refused_and_as_many_as_it_says_are_answered(limited: Served) -> None:
    status, answer = complete(limited, prompt=["a", "b", "c"])
    assert status == 400
    assert "at most 2" in answer["error"]["message"]
    assert answer["error"]["param"] == "prompt"
    assert complete(limited, prompt=["a", "b"])[0] == 200


def test_messages_past_the_limit_are_refused_and_as_many_as_it_says_are_answered(limited: Served) -> None:
    def chat(number: int) -> tuple[int, Any]:
        messages = [{"role": "user", "content": "Hi"}] * number
        return post(limited, "/v1/chat/completions", {"model": limited.model, "messages": messages, "max_tokens": 2})

    status, answer = chat(4)
    assert status == 400
    assert "at most 3" in answer["error"]["message"]
    assert answer["error"]["param"] == "messages"
    assert chat(3)[0] == 200


def test_documents_past_the_limit_are_refused(limited: Served) -> None:
    status, answer = complete(limited, documents=["a", "b"])
    assert status == 400
    assert answer["error"]["param"] == "documents"
    assert "at most 1" in answer["error"]["message"]


def test_a_prompt_and_a_document_past_the_limit_of_tokens_are_refused_with_the_count(limited: Served) -> None:
    status, answer = complete(limited, prompt="word " * 2000)
    assert status == 400
    assert "300" in answer["error"]["message"]
    plain = {"Content-Type": "text/plain"}
    status, document = post(limited, "/v1/documents?encode=false", b"word and another word " * 80, **plain)
    assert status == 201
    status, answer = complete(limited, documents=[document["id"]])
    assert status == 400
    assert "300" in answer["error"]["message"]


def test_a_document_past_its_limit_of_bytes_is_413_and_leaves_nothing(limited: Served) -> None:
    status, answer = post(limited, "/v1/documents", b"x" * 2001, **{"Content-Type": "text/plain"})
    assert status == 413
    assert "at most 2000" in answer["error"]["message"]
    with urllib.request.urlopen(f"{limited.url}/v1/documents?limit=100", timeout=60) as listed:
        assert all(document["num_bytes"] < 2000 for document in json.loads(listed.read())["data"])


@pytest.mark.parametrize(("origin", "is_allowed"), [(ORIGIN, True), ("https://elsewhere.example.org", False)])
def test_pages_of_the_configured_origin_alone_may_ask(limited: Served, origin: str, is_allowed: bool) -> None:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    request = urllib.request.Request(f"{limited.url}/v1/completions", None, asked, method="OPTIONS")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            allowed = answer.headers.get("Access-Control-Allow-Origin")
    except urllib.error.HTTPError as error:
        allowed = error.headers.get("Access-Control-Allow-Origin")
    assert allowed == (ORIGIN if is_allowed else None)


def test_a_slow_reader_gets_its_whole_answer_and_keeps_nobody_waiting(limited: Served) -> None:
    parts = urlsplit(limited.url)
    body = json.dumps(
        {"model": limited.model, "prompt": "x", "max_tokens": 1500, "stream": True, "ignore_eos": True}
    ).encode()
    head = f"POST {parts.path}/v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(60)
        slow.connect((parts.hostname, parts.port))
        slow.sendall(head.encode() + body)
        for _ in range(5):
            assert complete(limited)[0] == 200
        received = b""
        while part := slow.recv(2048):
            received += part
    assert b"data: [DONE]" in received
    assert b'"error"' not in received
