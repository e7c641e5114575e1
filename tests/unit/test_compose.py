"""cluster/compose.yaml: bound to this machine, of the client's version, with a health check that tells."""

import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def qdrant() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster" / "compose.yaml").read_text())["services"]["qdrant"]


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    """Answers /readyz with its `status`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(self.server.status if self.path == "/readyz" else 404)  # type: ignore[attr-defined]
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing: pytest's output is for pytest."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run_check(qdrant: dict[str, Any], port: int) -> int:
    kind, *command = qdrant["healthcheck"]["test"]
    assert kind == "CMD"
    assert any("/127.0.0.1/6333" in part for part in command)
    command = [part.replace("$$", "$").replace("6333", str(port)) for part in command]
    return subprocess.run(command, timeout=20, capture_output=True).returncode


def test_every_port_is_bound_to_this_machine(qdrant: dict[str, Any]) -> None:
    assert qdrant["ports"] == ["127.0.0.1:6333:6333"]


def test_the_image_is_of_the_clients_minor_version(qdrant: dict[str, Any]) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    [client] = [Version(line.partition("==")[2]) for line in lines if line.startswith("qdrant-client==")]
    name, _, tag = qdrant["image"].partition(":")
    image = Version(tag)
    assert name == "qdrant/qdrant"
    assert (image.major, image.minor) == (client.major, client.minor)


def test_the_key_comes_from_the_environment_and_is_needed(qdrant: dict[str, Any]) -> None:
    assert qdrant["environment"]["QDRANT__SERVICE__API_KEY"].startswith("${QDRANT_API_KEY:?")


def test_vectors_are_kept_in_a_volume(qdrant: dict[str, Any]) -> None:
    document = yaml.safe_load((ROOT / "cluster" / "compose.yaml").read_text())
    assert qdrant["volumes"] == ["qdrant:/qdrant/storage"]
    assert "qdrant" in document["volumes"]


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (404, False), (500, False)])
def test_the_health_check_tells_by_the_status(
    qdrant: dict[str, Any], server: ThreadingHTTPServer, status: int, healthy: bool
) -> None:
    server.status = status  # type: ignore[attr-defined]
    assert (run_check(qdrant, server.server_port) == 0) == healthy


def test_the_health_check_fails_where_nothing_listens(qdrant: dict[str, Any]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert run_check(qdrant, closed.getsockname()[1]) != 0


def test_the_health_check_fails_where_nothing_is_answered(qdrant: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        thread = threading.Thread(target=lambda: silent.accept()[0].close())
        thread.start()
        assert run_check(qdrant, silent.getsockname()[1]) != 0
        thread.join()
