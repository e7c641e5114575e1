"""A replica of the model is killed under streams: they end with an error event, others go on, nothing is lost."""

import json
import os
import signal
import threading
import urllib.request
from typing import Any

import psutil
import pytest
from served_app import CHAOS_APP, MODEL, wait_until

pytestmark = pytest.mark.chaos


def call(url: str, path: str, body: bytes | None = None, kind: str = "application/json") -> Any:
    request = urllib.request.Request(url + path, body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=200) as answer:
        return answer.read()


class Stream(threading.Thread):
    """A long answer, read in a thread."""

    def __init__(self, url: str, num_tokens: int) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._body = {"model": MODEL, "prompt": "The quick", "max_tokens": num_tokens, "temperature": 0}
        self.frames: list[bytes] = []
        self.start()

    def run(self) -> None:
        body = json.dumps(self._body | {"stream": True, "ignore_eos": True}).encode()
        request = urllib.request.Request(self._url + "/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=200) as answer:
            self.frames.extend(line.rstrip() for line in answer if line.strip())

    @property
    def is_complete(self) -> bool:
        return self.frames[-1] == b"data: [DONE]"

    @property
    def text(self) -> str:
        chunks = [json.loads(frame[6:]) for frame in self.frames[:-1]]
        return "".join(chunk["choices"][0]["text"] for chunk in chunks)


def replicas() -> list[psutil.Process]:
    found = [
        process for process in psutil.process_iter() if _title(process) == f"ray::ServeReplica:{CHAOS_APP}:Generator"
    ]
    own = psutil.Process()
    return [process for process in found if own.pid in {parent.pid for parent in process.parents()}]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).split(".")[0].strip()
    except psutil.Error:
        return ""


def test_killing_a_replica_ends_its_streams_with_an_error_event_and_the_others_go_on(url: str) -> None:
    document = json.loads(call(url, "/v1/documents", b"What is kept is kept. " * 50, "text/plain"))["id"]
    alone = Stream(url, 400)
    alone.join(200)
    streams = [Stream(url, 400) for _ in range(6)]
    wait_until(lambda: sum(len(stream.frames) > 10 for stream in streams) == 6, what="six streams")
    os.kill(replicas()[0].pid, signal.SIGKILL)
    for stream in streams:
        stream.join(200)
        assert not stream.is_alive(), "a stream is stuck"
    broken = [stream for stream in streams if not stream.is_complete]
    assert 0 < len(broken) < 6, "Serve spreads six streams over two replicas"
    for stream in broken:
        assert json.loads(stream.frames[-1][6:])["error"]["code"] == "replica_died"
    assert all(stream.text == alone.text for stream in streams if stream.is_complete)
    after = Stream(url, 400)
    after.join(200)
    assert after.text == alone.text
    assert json.loads(call(url, f"/v1/documents/{document}"))["id"] == document
    body = {"model": MODEL, "prompt": "x", "documents": [document], "max_tokens": 2}
    assert json.loads(call(url, "/v1/completions", json.dumps(body).encode()))["hsokv"]["document_tokens"] > 128
    wait_until(lambda: len(replicas()) == 2, within_s=120, what="a new replica")
