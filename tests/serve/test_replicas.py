"""Two replicas of the model: what one has read the other need not, and what is lost is read again."""

import json
import os
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import ray
from served_app import Served, wait_until

from serve.actors import actor_name

APP = "pair"


@pytest.fixture(scope="module")
def pair(start_app: Callable[..., Served]) -> Served:
    """Two replicas."""
    return start_app(APP, "/pair", num_replicas=2, drain_s=60)


def call(served: Served, path: str, body: Any = None, method: str | None = None, kind: str = "application/json") -> Any:
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(served.url + path, data, {"Content-Type": kind}, method=method)
    with urllib.request.urlopen(request, timeout=120) as answer:
        text = answer.read()
    return json.loads(text) if text[:1] in b"{[" else text.decode()


def upload(served: Served, text: str, *, encode: bool) -> str:
    query = f"?encode={str(encode).lower()}"
    return call(served, f"/v1/documents{query}", text.encode(), kind="text/plain")["id"]


def ask(served: Served, document: str, prompt: str = "What?") -> dict[str, Any]:
    body = {"model": served.model, "prompt": prompt, "documents": [document], "max_tokens": 6, "temperature": 0}
    return call(served, "/v1/completions", body | {"ignore_eos": True})


def samples(served: Served, name: str) -> dict[str, float]:
    """Value of the metric in each replica that has it."""
    found = {}
    for line in call(served, "/metrics").splitlines():
        if line.startswith(f"{name}{{"):
            labels, value = line.rsplit(" ", 1)
            found[labels.split('replica="')[1].split('"')[0]] = float(value)
    return found


def read_tokens(served: Served) -> float:
    """Tokens that were read as texts, by all replicas, as they last said."""
    return sum(samples(served, "hsokv_serve_encoded_tokens_total").values())


def test_a_document_is_read_once_however_many_ask_at_once(pair: Served) -> None:
    document = upload(pair, "Read by one and known to both. " * 60, encode=False)
    before = read_tokens(pair)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: ask(pair, document), range(8)))
    tokens = answers[0]["hsokv"]["document_tokens"]
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    wait_until(lambda: read_tokens(pair) > before, what="a report")
    wait_until(lambda: sum(samples(pair, "hsokv_serve_attached_texts_total").values()) > 0, what="the other attaches")
    assert read_tokens(pair) - before == tokens


def test_what_is_lost_with_the_actor_of_segments_is_read_again_and_nobody_notices(pair: Served) -> None:
    document = upload(pair, "Lost with its keeper, and read again. " * 60, encode=True)
    wait_until(lambda: call(pair, f"/v1/documents/{document}")["state"] == "ready", what="encoding")
    expected = ask(pair, document)["choices"]
    _kill(ray.get_actor(actor_name(APP, "segments"), namespace="hsokv"))
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: ask(pair, document), range(12)))
    assert [answer["choices"] for answer in answers] == [expected] * 12
    late = upload(pair, "After the loss texts are shared as before. " * 60, encode=True)
    wait_until(lambda: call(pair, f"/v1/documents/{late}")["state"] == "ready", what="encoding")
    assert ask(pair, late)["hsokv"]["cached_tokens"] > 0


def test_the_actor_of_documents_is_killed_and_what_was_told_to_be_kept_is_kept(pair: Served) -> None:
    kept = [upload(pair, f"Number {number} is kept. " * 40, encode=False) for number in range(3)]
    _kill(ray.get_actor(actor_name(APP, "documents"), namespace="hsokv"))
    for document in kept:
        found = wait_until(lambda document=document: _answered(pair, f"/v1/documents/{document}"), what="the documents")
        assert found["id"] == document
    assert ask(pair, kept[0])["hsokv"]["document_tokens"] > 128
    assert len({upload(pair, f"Number {number} is kept. " * 40, encode=False) for number in range(3)} - set(kept)) == 0


def test_streams_go_on_while_a_document_is_read(pair: Served) -> None:
    streams = [Stream(pair, 1500) for _ in range(4)]
    wait_until(lambda: all(stream.num_frames for stream in streams), what="four streams")
    document = upload(pair, "Long enough to take a while. " * 3000, encode=True)

    def progress() -> tuple[str, int]:
        found = call(pair, f"/v1/documents/{document}")
        return found["state"], found["tokens_done"]

    state, begun = wait_until(lambda: (now := progress())[0] == "encoding" and now[1] and now, what="encoding")
    frames = [stream.num_frames for stream in streams]
    while state == "encoding":
        state, done = progress()
        if done > begun and all(stream.num_frames > before for stream, before in zip(streams, frames, strict=True)):
            break
    assert state == "encoding", "every stream heard something between two pieces of the document"
    for stream in streams:
        stream.stop()
    call(pair, f"/v1/documents/{document}", method="DELETE")


def test_replicas_that_are_told_to_end_finish_their_streams(start_app: Callable[..., Served]) -> None:
    from ray import serve as ray_serve

    drained = start_app("drained", "/drained", drain_s=60)
    streams = [Stream(drained, 400) for _ in range(3)]
    wait_until(lambda: all(stream.num_frames for stream in streams), what="three streams")
    ray_serve.delete("drained", _blocking=False)
    for stream in streams:
        stream.join(100)
        assert stream.lines[-1] == b"data: [DONE]"
        assert stream.num_tokens == 400


class Stream(threading.Thread):
    """A long answer, read in a thread."""

    def __init__(self, served: Served, num_tokens: int) -> None:
        super().__init__(daemon=True)
        self.lines: list[bytes] = []
        self._stopped = False
        body = {"model": served.model, "prompt": "The quick", "max_tokens": num_tokens, "stream": True}
        body |= {"ignore_eos": True, "temperature": 0, "stream_options": {"include_usage": True}}
        sent = {"Content-Type": "application/json"}
        self._request = urllib.request.Request(f"{served.url}/v1/completions", json.dumps(body).encode(), sent)
        self.start()

    def run(self) -> None:
        with urllib.request.urlopen(self._request, timeout=120) as answer:
            for line in answer:
                if self._stopped:
                    return
                if line.strip():
                    self.lines.append(line.rstrip())

    def stop(self) -> None:
        self._stopped = True
        self.join(60)

    @property
    def num_frames(self) -> int:
        return len(self.lines)

    @property
    def num_tokens(self) -> int:
        return json.loads(self.lines[-2][6:])["usage"]["completion_tokens"]


def _answered(served: Served, path: str) -> Any:
    try:
        return call(served, path)
    except urllib.error.HTTPError as error:
        if error.code in (500, 503):  # for as long as it takes to start again
            return None
        raise


def _kill(actor: Any) -> None:
    """SIGKILL the process of an actor."""
    pid = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=30)
