"""Who is answered: with keys only their owners, without keys only this machine under its own name."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request

from hsokv_ray.errors import ConfigError
from serve.args import ServeArgs
from serve.errors import ApiError
from serve.gateway import make_app
from serve.keys import Keys, authenticate, is_public, read_keys
from serve.services import Services

KEY = "0123456789abcdef"


def answer(
    services: Services,
    path: str = "/v1/models/none",
    *,
    client: str = "127.0.0.1",
    method: str = "GET",
    **headers: str,
) -> httpx.Response:
    """Ask an application in this process; its model is never reached: the id in the path is not served."""

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(make_app(services), client=(client, 1), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as http:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await http.request(method, path, headers=named)

    return asyncio.run(call())


def services(keys: Keys = Keys(), **args: object) -> Services:  # noqa: B008
    return Services(generator=None, documents=None, segments=None, args=ServeArgs(**args), keys=keys, model_name="m")


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    path = tmp_path / "keys"
    path.write_text(f"# ours\nann: {KEY}\n\nben:{KEY}2\n")
    return read_keys(str(path))


def test_each_key_is_its_owner_s(keys: Keys) -> None:
    assert (keys.owner_of(KEY), keys.owner_of(KEY + "2")) == ("ann", "ben")
    assert keys.owner_of(KEY[:-1]) is None
    assert keys.owner_of("") is None
    assert keys.owner_of("\udcff") is None


def test_keys_of_the_environment_come_besides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HSOKV_API_KEYS", f"cleo:{KEY}3")
    assert read_keys(None).owner_of(KEY + "3") == "cleo"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ann", "name:key"),
        (":0123456789abcdef", "name:key"),
        ("ann:short", "at least 16"),
        ("", "holds no key"),
        (f"a:{KEY}\nb:{KEY}", "the same"),
    ],
)
def test_a_wrong_file_of_keys_is_refused_without_showing_a_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_keys(str(path))
    assert KEY not in str(caught.value)


def test_keys_are_kept_as_digests_only(keys: Keys) -> None:
    assert KEY not in repr(keys)


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", f"Basic {KEY}", f"Bearer {KEY}x", KEY, f"bearer{KEY}"])
def test_a_wrong_authorization_is_401(keys: Keys, header: str) -> None:
    refused = answer(services(keys), authorization=header)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert refused.json()["error"]["code"] == "invalid_api_key"


def test_a_right_key_passes_from_anywhere_under_any_name(keys: Keys) -> None:
    passed = answer(services(keys), client="10.1.2.3", authorization=f"Bearer {KEY}", host="models.example.org")
    assert passed.status_code == 404  # the model of that name, which is behind the door


def test_with_allowed_hosts_another_name_is_403(keys: Keys) -> None:
    strict = services(keys, allowed_hosts=("models.example.org",))
    passed = answer(strict, authorization=f"Bearer {KEY}", host="models.example.org:8000")
    refused = answer(strict, authorization=f"Bearer {KEY}", host="evil.example.org")
    assert (passed.status_code, refused.status_code) == (404, 403)


@pytest.mark.parametrize("host", ["x/health?", "x/health#", "/health?", "x/console/?", "localhost/?"])
def test_a_host_header_does_not_make_a_path_public(keys: Keys, host: str) -> None:
    assert answer(services(keys), host=host).status_code in (400, 401)


def test_the_path_of_the_router_decides_what_is_public(keys: Keys) -> None:
    """Also where the server's address is made of the Host header, as older Starlettes do."""
    state = type("State", (), {"services": services(keys)})
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "root_path": "", "query_string": b""}
    scope |= {"headers": [(b"host", b"x/health?")], "client": ("1.2.3.4", 1), "server": ("h", 80), "scheme": "http"}
    request = Request(scope | {"app": type("App", (), {"state": state})})
    with pytest.raises(ApiError) as caught:
        asyncio.run(authenticate(request))
    assert caught.value.status == 401


def test_with_keys_probes_reach_public_paths_by_any_name(keys: Keys) -> None:
    strict = services(keys, allowed_hosts=("models.example.org",))
    assert answer(strict, "/", client="10.1.2.3", host="10.1.2.4:8000").status_code == 200
    assert answer(strict, "/v1/status", client="10.1.2.3", host="10.1.2.4:8000").status_code == 403


WRITES = ("/v1/documents", "/v1/documents/doc-1/append", "/v1/documents/doc-1/encode", "/v1/completions")
FOREIGN = (
    {"origin": "https://evil.example", "sec_fetch_site": "cross-site"},
    {"origin": "http://localhost:3000", "sec_fetch_site": "same-site"},
    {"origin": "null"},
    {"origin": "http://localhost.evil.example:8000"},
    {"sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "same-site"},
)


@pytest.mark.parametrize("path", WRITES)
@pytest.mark.parametrize("sent", FOREIGN, ids=str)
def test_without_keys_a_page_of_another_site_cannot_write(path: str, sent: dict[str, str]) -> None:
    refused = answer(services(), path, method="POST", content_type="text/plain", **sent)
    assert refused.status_code == 403
    assert "page" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"origin": "http://localhost:8000", "sec_fetch_site": "same-origin"},
        {"origin": "https://app.example.org", "sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "none"},
    ],
    ids=str,
)
def test_programs_our_own_page_and_cors_origins_can_write(sent: dict[str, str]) -> None:
    ours = services(cors_origins=("https://app.example.org",))
    passed = answer(ours, "/v1/completions", method="POST", content_type="text/plain", **sent)
    assert passed.status_code == 415  # it came as far as the body


def test_without_keys_a_link_from_another_page_may_be_followed() -> None:
    assert answer(services(), "/", sec_fetch_site="cross-site").status_code == 200


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1"])
def test_without_keys_this_machine_is_answered(client: str, host: str) -> None:
    assert answer(services(), client=client, host=host).status_code == 404


@pytest.mark.parametrize("client", ["10.0.0.1", "::ffff:10.0.0.1", "fe80::1", ""])
def test_without_keys_another_machine_is_not(client: str) -> None:
    assert answer(services(), client=client).status_code == 403


@pytest.mark.parametrize(
    "host", ["evil.example.org", "localhost.evil.org", "127.0.0.1.nip.io", "", "[::2]:80", "127.0.0.1@evil.org"]
)
def test_without_keys_a_foreign_name_is_not_answered_though_it_resolves_here(host: str) -> None:
    assert answer(services(), host=host).status_code == 403


@pytest.mark.parametrize("header", ["forwarded", "x_forwarded_for", "x_forwarded_host", "x_real_ip", "via"])
def test_without_keys_what_a_proxy_on_this_machine_passes_on_is_not_answered(header: str) -> None:
    assert answer(services(), host="127.0.0.1:8000", **{header: "203.0.113.9"}).status_code == 403


def test_with_keys_exactly_the_public_routes_answer_without_one(keys: Keys) -> None:
    with_keys = services(keys)
    public = set()
    for path, method in every_route(make_app(with_keys).routes):
        concrete = re.sub(r"\{[^}]+\}", "x", path)
        if answer(with_keys, concrete, method=method).status_code != 401:
            public.add(path)
    assert public == {"/health", "/", "/console", "/console/", "/console/schema", "/console/{name}"}


def every_route(routes: list[Any]) -> Iterator[tuple[str, str]]:
    """Yield path and method of what the router knows, described in OpenAPI or not."""
    for route in routes:
        inner = getattr(route, "original_router", route)  # FastAPI keeps included routers as they are
        prefix = route.include_context.prefix if inner is not route else getattr(route, "path", "")
        if getattr(inner, "routes", None):
            yield from ((prefix + path, method) for path, method in every_route(inner.routes))
        elif getattr(route, "methods", None):
            yield from ((route.path, method) for method in route.methods)
        else:
            yield route.path, "GET"


@pytest.mark.parametrize("path", ["//v1/models", "/health/../v1/models", "/console/%2e%2e/v1/models", "/HEALTH"])
def test_no_spelling_of_a_path_gets_around_the_key(keys: Keys, path: str) -> None:
    assert answer(services(keys), path).status_code in (401, 404)


def test_public_is_exactly_health_the_page_and_its_files() -> None:
    assert all(map(is_public, ("/", "/health", "/console", "/console/app.js")))
    assert not any(
        map(is_public, ("/health/", "/healthz", "/consolex", "/metrics", "/openapi.json", "/v1/models", "//"))
    )
