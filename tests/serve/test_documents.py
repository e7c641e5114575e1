"""Documents over HTTP, against the running application."""

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import socket
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import psutil
import pytest
import ray
from served_app import Served, wait_until

from serve.actors import actor_name

Ask = Callable[..., tuple[int, dict[str, Any], Any]]
TEXT = {"Content-Type": "text/plain"}
PAGES = {"Content-Type": "application/x-ndjson"}


@pytest.fixture
def actor(served: Served) -> Any:
    """The application's documents."""
    return ray.get_actor(actor_name(served.app, "documents"), namespace="hsokv")


@pytest.fixture(autouse=True)
def _empty(served: Served, ask: Ask) -> Iterator[None]:
    """Each test begins and ends without documents."""
    yield
    for key in (served.key, served.other_key):
        headers = {"Authorization": f"Bearer {key}"}
        for document in ask("GET", "/v1/documents?limit=100", headers=headers)[2]["data"]:
            ask("DELETE", f"/v1/documents/{document['id']}", headers=headers)


def upload(ask: Ask, text: str, **query: str) -> dict[str, Any]:
    words = "&".join(f"{key}={quote(value)}" for key, value in {"encode": "false", **query}.items())
    status, _, document = ask("POST", f"/v1/documents?{words}", raw=text.encode(), headers=TEXT)
    assert status == 201, document
    return document


def ids(ask: Ask, **headers: str) -> list[str]:
    return [each["id"] for each in ask("GET", "/v1/documents?limit=100", headers=headers or None)[2]["data"]]


def events(served: Served, id: str) -> Iterator[dict[str, Any]]:
    """What the document's events say, until the stream ends."""
    request = urllib.request.Request(f"{served.url}/v1/documents/{id}/events", headers=served.headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        for line in answer:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])


def connection(served: Served) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=30)


def test_a_text_is_stored_read_listed_and_deleted(ask: Ask) -> None:
    text = "naïve 🧠 text\n" * 3
    document = upload(ask, text, name="notes.txt")
    assert document["name"] == "notes.txt"
    assert (document["num_bytes"], document["num_characters"]) == (len(text.encode()), len(text))
    assert document["pieces"][0]["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    path = f"/v1/documents/{document['id']}"
    status, _, part = ask("GET", f"{path}/text?begin=4&end=9")
    assert (status, part["text"], part["total"]) == (200, text[4:9], len(text))
    assert ask("GET", f"{path}/text?begin=4&end=9999")[0] == 400
    assert ids(ask) == [document["id"]]
    assert ask("DELETE", path)[2] == {"id": document["id"], "object": "document", "deleted": True}
    assert ids(ask) == []
    assert ask("GET", path)[0] == 404


def test_the_same_content_is_the_same_document_of_one_owner_only(ask: Ask, served: Served) -> None:
    first = upload(ask, "the same")
    status, headers, again = ask("POST", "/v1/documents?encode=false", raw=b"the same", headers=TEXT)
    assert (status, again["id"]) == (200, first["id"])
    assert headers["location"] == f"/v1/documents/{first['id']}"
    other = {**TEXT, "Authorization": f"Bearer {served.other_key}"}
    status, _, theirs = ask("POST", "/v1/documents?encode=false", raw=b"the same", headers=other)
    assert status == 201
    assert theirs["id"] != first["id"]


def test_pages_are_one_text_whose_passages_have_page_numbers(ask: Ask) -> None:
    lines = b'{"text": "one", "page": 1}\n{"text": "two", "page": "ii", "title": "Second"}\n'
    status, _, document = ask("POST", "/v1/documents?encode=false", raw=lines, headers=PAGES)
    assert (status, document["num_pages"]) == (201, 2)
    part = ask("GET", f"/v1/documents/{document['id']}/text?begin=4&end=8")[2]
    assert part["text"] == "one\n\ntwo"[4:8]
    assert part["pages"] == [{"begin": 5, "end": 8, "page": "ii", "title": "Second"}]


@pytest.mark.parametrize(
    ("raw", "headers", "status", "words"),
    [
        (b"good \xff bad", TEXT, 400, "byte 5 "),
        (b"", TEXT, 400, "empty"),
        (b'{"text": "a"}\n{"txet": "b"}\n', PAGES, 400, "line 2: unknown key 'txet'"),
        (b"x", {"Content-Type": "application/pdf"}, 415, "'application/pdf'"),
        (b"x", {"Content-Type": "text/plain; charset=latin-1"}, 415, "'latin-1'"),
        (b"x", {"Content-Type": "multipart/form-data"}, 400, "boundary"),
    ],
)
def test_what_is_no_document_is_refused_and_leaves_nothing(
    ask: Ask, actor: Any, raw: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    found, _, answer = ask("POST", "/v1/documents", raw=raw, headers=headers)
    assert found == status
    assert words in answer["error"]["message"]
    assert ids(ask) == []
    assert ray.get(actor.stats.remote())["uploads"] == 0


def test_a_wrong_digest_or_too_long_a_name_is_refused(ask: Ask) -> None:
    assert ask("POST", f"/v1/documents?digest={'0' * 64}", raw=b"x", headers=TEXT)[0] == 400
    assert ask("POST", "/v1/documents?digest=short", raw=b"x", headers=TEXT)[0] == 400
    assert ask("POST", f"/v1/documents?name={'n' * 256}", raw=b"x", headers=TEXT)[0] == 400
    assert ids(ask) == []


def form(*parts: tuple[str, str | None, bytes], end: bool = True) -> tuple[bytes, dict[str, str]]:
    body = b""
    for field, name, data in parts:
        file = "" if name is None else f'; filename="{name}"'
        body += f'--xyz\r\nContent-Disposition: form-data; name="{field}"{file}\r\n'.encode()
        body += b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n"
    return body + (b"--xyz--\r\n" if end else b""), {"Content-Type": "multipart/form-data; boundary=xyz"}


@pytest.mark.parametrize("name", ["notes.md", "../../../etc/cron.d/x", "/etc/passwd", "a\x01b", "é.txt", ""])
def test_a_form_s_file_is_a_document_and_its_name_only_a_name(ask: Ask, served: Served, name: str) -> None:
    raw, headers = form(("file", name, b"some\r\n--xy text"))
    status, _, document = ask("POST", "/v1/documents?encode=false", raw=raw, headers=headers)
    assert status == 201, document
    assert document["name"] == (name or "document")
    assert ask("GET", f"/v1/documents/{document['id']}/text")[2]["text"] == "some\r\n--xy text"
    root = served.args.documents_dir
    names = [name for _, folders, files in os.walk(root) for name in (*folders, *files)]
    assert names
    assert all(set(each) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.") for each in names)


def test_a_form_s_jsonl_is_pages(ask: Ask) -> None:
    raw, headers = form(("file", "book.jsonl", b'{"text": "one"}\n{"text": "two"}'))
    assert ask("POST", "/v1/documents?encode=false", raw=raw, headers=headers)[2]["num_pages"] == 2


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (form(("document", "a", b"x")), "name it 'file'"),
        (form(("file", "a", b"x"), ("file", "b", b"y")), "several parts"),
        (form(("file", "a", b"x"), end=False), "ends within"),
        ((b"no form", form()[1]), "form"),
        ((b"", form()[1]), "ends before"),
    ],
)
def test_a_wrong_form_is_refused_and_leaves_nothing(
    ask: Ask, actor: Any, made: tuple[bytes, dict[str, str]], words: str
) -> None:
    status, _, answer = ask("POST", "/v1/documents", raw=made[0], headers=made[1])
    assert status == 400
    assert words in answer["error"]["message"]
    assert ids(ask) == []
    assert ray.get(actor.stats.remote())["uploads"] == 0


@contextlib.contextmanager
def send_part_of(
    served: Served, method: str, path: str, headers: dict[str, str], sent: bytes, *, announced: int
) -> Iterator[socket.socket]:
    """Send a request without the end of its body; at the end of the block, go away."""
    address = urlsplit(served.url)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {address.netloc}", f"Content-Length: {announced}"]
    lines += [f"{key}: {value}" for key, value in {**served.headers, **headers}.items()]
    with socket.create_connection((address.hostname, address.port), timeout=60) as client:
        client.sendall("\r\n".join([*lines, "", ""]).encode() + sent)
        yield client


def test_an_upload_that_breaks_off_leaves_nothing(ask: Ask, served: Served, actor: Any) -> None:
    with send_part_of(served, "POST", "/v1/documents", TEXT, b"half of a te", announced=1000):
        wait_until(lambda: ray.get(actor.stats.remote())["uploads"] == 1, what="the upload")
    wait_until(lambda: ray.get(actor.stats.remote())["uploads"] == 0, what="the end of the upload")
    assert ids(ask) == []


def begin_upload(ask: Ask, data: bytes) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Begin a resumable upload; return its path, what it was begun with, and the headers of a part at 0."""
    digest = hashlib.sha256(data).hexdigest()
    begin = {"digest": digest, "bytes": len(data), "name": "long.txt", "content_type": "text/plain", "encode": False}
    status, _, state = ask("POST", "/v1/documents/uploads", begin)
    assert (status, state["offset"], state["document"]) == (200, 0, None)
    return f"/v1/documents/uploads/{digest}", begin, {"Content-Type": "application/octet-stream", "Upload-Offset": "0"}


def test_an_upload_goes_on_after_a_break_where_it_ended(ask: Ask, served: Served) -> None:
    data = "a long text, é and 🧠. ".encode() * 100_000
    path, begin, headers = begin_upload(ask, data)
    with send_part_of(served, "PATCH", path, headers, data[:1_500_000], announced=len(data)):
        wait_until(lambda: ask("GET", path)[2]["offset"] > 0, what="the first part")
    assert ask("PATCH", path, raw=b"x", headers={**headers, "Upload-Offset": "1500001"})[0] == 409
    state = ask("POST", "/v1/documents/uploads", begin)[2]
    assert 2**20 <= state["offset"] <= 1_500_000
    while state["document"] is None:
        part = data[state["offset"] : state["offset"] + 2**19]
        status, _, state = ask("PATCH", path, raw=part, headers={**headers, "Upload-Offset": str(state["offset"])})
        assert status == 200, state
    id, length = state["document"]["id"], len(data.decode())
    parts = [ask("GET", f"/v1/documents/{id}/text?begin={begin}")[2]["text"] for begin in range(0, length, 10**6)]
    assert "".join(parts) == data.decode()
    assert ask("GET", path)[0] == 404
    assert ask("POST", "/v1/documents/uploads", begin)[2]["document"]["id"] == id


def test_what_came_of_a_part_before_its_client_fell_silent_is_kept(ask: Ask, served: Served) -> None:
    data = b"0123456789" * 200_000
    path, _, headers = begin_upload(ask, data)
    with send_part_of(served, "PATCH", path, headers, data[:1_234_567], announced=len(data)) as client:
        answer = client.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408")
    assert ask("GET", path)[2]["offset"] == 1_234_567
    assert ask("DELETE", path)[0] == 204


def test_an_upload_can_be_given_up(ask: Ask, actor: Any) -> None:
    digest = hashlib.sha256(b"never").hexdigest()
    ask("POST", "/v1/documents/uploads", {"digest": digest, "bytes": 5})
    assert ask("DELETE", f"/v1/documents/uploads/{digest}")[0] == 204
    assert ask("GET", f"/v1/documents/uploads/{digest}")[0] == 404
    assert ray.get(actor.stats.remote())["uploads"] == 0


def test_appending_keeps_what_was_there_and_happens_once(ask: Ask) -> None:
    document = upload(ask, "first")
    path = f"/v1/documents/{document['id']}"
    status, _, longer = ask("POST", f"{path}/append?offset=5&encode=false", raw=b", second", headers=TEXT)
    assert (status, longer["num_bytes"], len(longer["pieces"])) == (200, 13, 2)
    assert ask("POST", f"{path}/append?offset=5&encode=false", raw=b", second", headers=TEXT)[0] == 409
    line = b'{"text": "third", "page": 3}'
    assert ask("POST", f"{path}/append?encode=false", raw=line, headers=PAGES)[0] == 200
    part = ask("GET", f"{path}/text")[2]
    assert part["text"] == "first, second\n\nthird"
    assert part["pages"] == [{"begin": 15, "end": 20, "page": 3, "title": None}]


def test_an_encoding_is_followed_from_its_present_state_to_its_end(ask: Ask, served: Served) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 40
    status, _, document = ask("POST", "/v1/documents", raw=text.encode(), headers=TEXT)
    assert status == 201
    assert document["state"] in ("queued", "encoding", "ready")
    seen = list(events(served, document["id"]))
    assert seen[-1]["state"] == "ready", seen
    assert {each["state"] for each in seen} <= {"queued", "encoding", "ready"}
    done = [each["tokens_done"] for each in seen if each["state"] != "queued"]
    assert done == sorted(done)
    found = ask("GET", f"/v1/documents/{document['id']}")[2]
    assert found["num_tokens"] == seen[-1]["tokens_total"] > len(text) // 20
    assert [each["state"] for each in events(served, document["id"])] == ["ready"]


def test_a_document_that_was_only_stored_is_encoded_when_that_is_asked_for(ask: Ask, served: Served) -> None:
    document = upload(ask, "The quick brown fox. " * 20)
    assert document["state"] == "stored"
    status, _, asked = ask("POST", f"/v1/documents/{document['id']}/encode")
    assert status == 202
    assert asked["state"] != "stored"
    assert list(events(served, document["id"]))[-1]["state"] == "ready"


def queued(ask: Ask, actor: Any, text: str) -> str:
    """Return the id of a document that is said to wait for its encoding."""
    id = upload(ask, text)["id"]
    ray.get(actor.progress.remote(id, "ann", "queued"))
    return id


def test_events_say_so_and_end_when_the_document_is_deleted(ask: Ask, served: Served, actor: Any) -> None:
    id = queued(ask, actor, "to be deleted")
    following = events(served, id)
    assert next(following)["state"] == "queued"
    ask("DELETE", f"/v1/documents/{id}")
    assert next(following)["error"]["code"] == "document_not_found"
    assert list(following) == []


def test_events_of_a_document_that_nobody_encodes_end_at_once(ask: Ask, served: Served) -> None:
    document = upload(ask, "only stored")
    assert [each["state"] for each in events(served, document["id"])] == ["stored"]


def test_events_keep_the_connection_alive_and_end_after_their_lifetime(ask: Ask, actor: Any) -> None:
    from serve.documents.client import DocumentsClient
    from serve.documents.events import follow

    id = queued(ask, actor, "unchanging")

    async def everything() -> list[bytes]:
        client, gone = DocumentsClient(actor), asyncio.Event()
        first = await client.call("read_progress", id, "ann")
        return [each async for each in follow(client, id, "ann", first, gone, keep_alive_s=0.2, lifetime_s=2)]

    state, *comments = asyncio.run(asyncio.wait_for(everything(), 30))
    assert b'"queued"' in state
    assert set(comments) == {b": keep-alive\n\n"}


def test_an_owner_follows_so_many_documents_at_once_and_places_come_back(ask: Ask, served: Served, actor: Any) -> None:
    from serve.documents.events import FOLLOWED

    id = queued(ask, actor, "followed by many")
    path = f"/v1/documents/{id}/events"
    with contextlib.ExitStack() as opened:
        for _ in range(FOLLOWED):
            one = opened.enter_context(contextlib.closing(connection(served)))
            one.request("GET", path, headers=served.headers)
            assert one.getresponse().status == 200
        assert ask("GET", path)[0] == 429
        ray.get(actor.wait_on.remote(id, "ann"))
    ray.get(actor.progress.remote(id, "ann", "ready"))
    wait_until(lambda: ask("GET", path)[0] == 200, what="a place")


def test_lists_go_on_behind_the_last_document(ask: Ask) -> None:
    made = [upload(ask, f"text {i}")["id"] for i in range(5)]
    found, more, after = [], True, ""
    while more:
        page = ask("GET", f"/v1/documents?limit=2{after}")[2]
        found += [each["id"] for each in page["data"]]
        more, after = page["has_more"], f"&after={page['last_id']}"
    assert found == made[::-1]
    assert ask("GET", "/v1/documents?after=doc-never")[0] == 404
    assert ask("GET", "/v1/documents?limit=0")[0] == 400


CROSSINGS: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/v1/documents/{id}", {}),
    ("GET", "/v1/documents/{id}/text", {}),
    ("GET", "/v1/documents/{id}/events", {}),
    ("POST", "/v1/documents/{id}/encode", {}),
    ("POST", "/v1/documents/{id}/append", {"raw": b"more", "headers": TEXT}),
    ("DELETE", "/v1/documents/{id}", {}),
    ("GET", "/v1/documents/uploads/{digest}", {}),
    ("PUT", "/v1/documents/{id}/pin", {}),
    ("DELETE", "/v1/documents/{id}/pin", {}),
    ("PATCH", "/v1/documents/uploads/{digest}", {"raw": b"xt", "headers": {"Upload-Offset": "2"}}),
    ("DELETE", "/v1/documents/uploads/{digest}", {}),
]


def test_another_owner_s_document_is_as_one_that_never_was_on_every_route(ask: Ask, served: Served) -> None:
    paths = ask("GET", "/openapi.json")[2]["paths"]
    described = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    ours = {each for each in described if each[1].startswith("/v1/documents") and "{" in each[1]}
    assert {(method, path) for method, path, _ in CROSSINGS} == ours
    mine = upload(ask, "mine alone")
    digest = hashlib.sha256(b"text").hexdigest()
    ask("POST", "/v1/documents/uploads", {"digest": digest, "bytes": 4})
    ask("PATCH", f"/v1/documents/uploads/{digest}", raw=b"te", headers={"Upload-Offset": "0"})
    never = {"id": "doc-" + "0" * 24, "digest": "0" * 64}
    for method, pattern, sent in CROSSINGS:
        headers = {**sent.get("headers", {}), "Authorization": f"Bearer {served.other_key}"}
        real = {"id": mine["id"], "digest": digest}
        there = ask(method, pattern.format(**real), **{**sent, "headers": headers})
        absent = ask(method, pattern.format(**never), **{**sent, "headers": headers})
        assert there[0] == absent[0] == 404, (method, pattern)
        said = json.dumps(absent[2]).replace(never["id"], real["id"]).replace(never["digest"], real["digest"])
        assert json.loads(said) == there[2]
    assert ids(ask, Authorization=f"Bearer {served.other_key}") == []
    assert ids(ask) == [mine["id"]]
    assert ask("GET", f"/v1/documents/uploads/{digest}")[2]["offset"] == 2
    assert ask("GET", f"/v1/documents/{mine['id']}/text")[2]["text"] == "mine alone"
    ask("DELETE", f"/v1/documents/uploads/{digest}")


def test_a_large_upload_is_never_held_in_the_memory_of_the_actor(ask: Ask, served: Served, actor: Any) -> None:
    pid = ray.get(actor.process_id.remote())
    process, part, num_parts = psutil.Process(pid), b"sixteen letters." * 2**16, 64

    def private() -> int:
        memory = process.memory_info()
        return memory.rss - memory.shared

    upload(ask, "warm")
    before, most = private(), 0
    client = connection(served)

    def parts() -> Iterator[bytes]:
        nonlocal most
        for number in range(num_parts):
            most = max(most, private())
            yield number.to_bytes(1) + part[1:]

    headers = {**served.headers, **TEXT}
    client.request("POST", "/v1/documents?encode=false", parts(), headers, encode_chunked=True)
    answer = client.getresponse()
    document = json.loads(answer.read())
    client.close()
    assert answer.status == 201, document
    assert document["num_bytes"] == num_parts * len(part)
    assert max(most, private()) - before < num_parts * len(part) / 2
