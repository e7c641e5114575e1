"""One application for all tests of this folder, on a free port of 127.0.0.1, with the tiny chat model."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from chat_model import save_chat_model
from served_app import APP, KEYS, MODEL, Served, free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny chat model; read only."""
    return save_chat_model(tmp_path_factory.mktemp("chat_model"))


@pytest.fixture(scope="session")
def http(ray_cluster: None) -> Iterator[str]:
    """Serve's proxy on a free port; its address."""
    from ray import serve as ray_serve

    port = free_port()
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    ray_serve.shutdown()


@pytest.fixture(scope="session")
def start_app(http: str, chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Served]]:
    """`start_app(name, route, **arguments)`: an application with the tiny model, small enough to share the machine."""
    from ray import serve as ray_serve

    from serve.actors import end_actors
    from serve.app import build
    from serve.args import ServeArgs

    started = []

    def start(app: str, route: str, **arguments: Any) -> Served:
        values: dict[str, Any] = {
            "model": str(chat_model),
            "name": MODEL,
            "threads": 1,
            "replica_cpus": 0.1,
            "gateway_cpus": 0.1,
            "documents_dir": str(tmp_path_factory.mktemp("documents")),
            "drain_s": 5,
            "engine": {"max_running": 8, "max_queued": 8, "max_new_tokens": 2000},
        }
        args = ServeArgs(**(values | arguments))
        started.append(app)
        ray_serve.run(build(args), name=app, route_prefix=route)
        return Served(http + route.rstrip("/"), chat_model, args, app, key=KEYS["ann"] if args.keys_file else "")

    yield start
    for app in started:
        ray_serve.delete(app)
        end_actors(app)


@pytest.fixture(scope="session")
def served(start_app: Callable[..., Served], tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The application with two keys and one replica of the model."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("\n".join(f"{name}:{key}" for name, key in KEYS.items()))
    limits = {"requests_per_owner": 12, "body_bytes": 4 * 2**20, "body_timeout_s": 2}
    return start_app(APP, "/", keys_file=str(keys), limits=limits)


@pytest.fixture(scope="session")
def app(start_app: Callable[..., Served]) -> Served:
    """The application without keys, which answers this machine only."""
    return start_app("open", "/open")


@pytest.fixture
def ask(served: Served) -> Callable[..., tuple[int, dict[str, Any], Any]]:
    """`ask(method, path, body=None, headers=None, raw=None)`: status, headers and JSON of the answer."""

    def call(
        method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, raw: bytes | None = None
    ) -> tuple[int, dict[str, Any], Any]:
        data = json.dumps(body).encode() if body is not None else raw
        request = urllib.request.Request(served.url + path, data=data, method=method)
        sent = {"Content-Type": "application/json", **served.headers, **(headers or {})}
        for name, value in sent.items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text, status, received = answer.read(), answer.status, dict(answer.headers)
        except urllib.error.HTTPError as error:
            text, status, received = error.read(), error.code, dict(error.headers)
        value = json.loads(text) if text[:1] in (b"{", b"[") else text
        return status, {name.lower(): each for name, each in received.items()}, value

    return call


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Chromium without a window, for the tests of one file: while it runs, asyncio.run does not."""
    from console_page import CHROMIUM
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.skip("there is no Chromium; apt install chromium, or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: "Browser", app: Served) -> "Iterator[Callable[..., Page]]":
    """Open the console in a browser profile of its own; whatever the page complains of fails the test.

    Documents are deleted at the end: the same text twice is one document.
    """
    import httpx
    from console_page import WAIT_MS

    contexts, complaints = [], []

    def opened(url: str = app.url, **options: Any) -> "Page":
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        context.set_default_timeout(WAIT_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if _is_complaint(said) else None)
        page.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}"))
        page.goto(f"{url}/")
        return page

    yield opened
    for context in contexts:
        context.close()
    for document in httpx.get(f"{app.url}/v1/documents?limit=100").json()["data"]:
        assert httpx.delete(f"{app.url}/v1/documents/{document['id']}").status_code == 200
    assert not complaints


def _is_complaint(said: Any) -> bool:
    """Chromium writes a line for every answer of 4xx and every lost connection: those the page shows itself."""
    return said.type in ("error", "warning") and not said.text.startswith("Failed to load resource")


@pytest.fixture
def page(open_page: "Callable[..., Page]") -> "Page":
    """The console, with greedy answers of 24 tokens."""
    from console_page import set_option

    page = open_page()
    set_option(page, "How it answers", "Temperature", "0")
    set_option(page, "How it answers", "Max tokens", "24")
    return page
