"""Three minutes of short and long requests, documents that come and go, and clients that leave: nothing piles up."""

import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from served_app import MODEL, wait_until

pytestmark = pytest.mark.chaos

SECONDS = float(os.environ.get("HSOKV_SOAK_S", "180"))
SLOWEST_S = 60
"""A request that takes longer is stuck: alone none takes more than two seconds."""
WARM_SHARE = 0.5
"""Of the time: until then caches fill and allocators settle."""
GROWTH_BYTES = 96 * 2**20
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "looks", "for", "what", "it")


class Client(threading.Thread):
    """Asks again and again until `end`; what goes wrong is kept."""

    def __init__(self, url: str, seed: int, ask: Callable[["Client"], None], end: float) -> None:
        super().__init__(daemon=True)
        self.url, self.rng, self._ask, self._end = url, random.Random(seed), ask, end
        self.num_answers, self.num_refused, self.slowest_s = 0, 0, 0.0
        self.errors: list[str] = []
        self.start()

    def run(self) -> None:
        while time.monotonic() < self._end and not self.errors:
            start = time.monotonic()
            try:
                self._ask(self)
                self.num_answers += 1
            except urllib.error.HTTPError as error:
                if error.code != 429:
                    self.errors.append(f"{error.code}: {error.read()[:300]!r}")
                self.num_refused += 1
            except Exception as error:  # told by the test, in the other thread
                self.errors.append(f"{type(error).__name__}: {error}")
            self.slowest_s = max(self.slowest_s, time.monotonic() - start)

    def text(self, num_words: int) -> str:
        return " ".join(self.rng.choices(WORDS, k=num_words))

    def open(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": kind}, method=method)
        return urllib.request.urlopen(request, timeout=SLOWEST_S)

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        with self.open(method, path, body, kind) as answer:
            return json.loads(answer.read() or b"null")

    def complete(self, prompt: str, num_tokens: int, **extra: Any) -> Any:
        return self.call("POST", "/v1/completions", completion(prompt, num_tokens, **extra))


def completion(prompt: str, num_tokens: int, **extra: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, "max_tokens": num_tokens, "ignore_eos": True, **extra}


def short(client: Client) -> None:
    usage = client.complete(client.text(8), 24)["usage"]
    assert usage["completion_tokens"] == 24


def long(client: Client) -> None:
    beginning = random.Random(client.rng.randrange(3)).choices(
        WORDS, k=400
    )  # one of three, so that prefixes are shared
    usage = client.complete(" ".join([*beginning, client.text(20)]), 16)["usage"]
    assert usage["completion_tokens"] == 16


def document(client: Client) -> None:
    text = client.text(600).encode()
    id = client.call("POST", "/v1/documents?name=soak.txt", text, "text/plain")["id"]
    assert client.complete("What does it say?", 8, documents=[id])["usage"]["prompt_tokens"] > 600
    client.open("DELETE", f"/v1/documents/{id}").close()


def leaving(client: Client) -> None:
    with client.open("POST", "/v1/completions", completion(client.text(8), 1500, stream=True)) as answer:
        for _ in range(client.rng.randrange(1, 6)):
            answer.readline()


@pytest.mark.timeout(900)
def test_three_minutes_of_mixed_load_leave_nothing_behind(url: str) -> None:
    end = time.monotonic() + SECONDS
    clients = [Client(url, seed, ask, end) for seed, ask in enumerate((short, short, short, long, document, leaving))]
    rss = []
    while time.monotonic() < end and not any(client.errors for client in clients):
        rss.append((time.monotonic() - end + SECONDS, status(url)["rss_bytes"]))
        threading.Event().wait(1)
    for client in clients:
        client.join(timeout=2 * SLOWEST_S)
    assert not [client.errors for client in clients if client.errors]
    assert not [client for client in clients if client.is_alive()], "stuck"
    assert all(client.num_answers > SECONDS / 20 for client in clients), [client.num_answers for client in clients]
    assert max(client.slowest_s for client in clients) < SLOWEST_S
    idle = wait_until(lambda: (now := status(url))["running"] == now["queued"] == 0 and now, what="an idle engine")
    assert idle["segment_bytes"] <= idle["replicas"] * idle["segment_limit_bytes"]
    documents = json.loads(urllib.request.urlopen(f"{url}/v1/documents", timeout=30).read())
    assert documents["data"] == []
    warm = [size for at, size in rss if SECONDS * WARM_SHARE <= at < SECONDS * (WARM_SHARE + 0.2)]
    last = [size for at, size in rss if at >= SECONDS * 0.8]
    growth = sum(last) / len(last) - sum(warm) / len(warm)
    answers, refused = [client.num_answers for client in clients], sum(client.num_refused for client in clients)
    slowest_s = max(client.slowest_s for client in clients)
    print(f"answers {answers}, refused {refused}, slowest {slowest_s:.1f} s, memory grew {growth / 2**20:.1f} MiB")
    assert growth < GROWTH_BYTES


def status(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/v1/status", timeout=30) as answer:
        return json.loads(answer.read())
