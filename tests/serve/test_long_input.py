"""Inputs past the model's window: an error that names the limit, or read by retrieval; documents before a prompt."""

from collections.abc import Callable
from typing import Any

import pytest
from reference_model import Reference
from served_app import Served, wait_until

Ask = Callable[..., tuple[int, dict[str, Any], Any]]
LONG = "The quick brown fox jumps over the lazy dog. " * 40
GREEDY = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}


@pytest.fixture(scope="module")
def reference(served: Served) -> Reference:
    return Reference.load(served.folder)


@pytest.fixture
def complete(ask: Ask, served: Served) -> Callable[..., tuple[int, Any]]:
    def call(**fields: Any) -> tuple[int, Any]:
        status, _, answer = ask("POST", "/v1/completions", {"model": served.model, **GREEDY, **fields})
        return status, answer

    return call


def test_a_long_prompt_is_an_error_with_limit_and_count_where_retrieval_is_off(
    complete: Any, reference: Reference
) -> None:
    status, answer = complete(prompt=LONG, long_context={"enabled": False})
    assert status == 400
    assert f"{len(reference.ids(LONG)):,}" in answer["error"]["message"]
    assert "128" in answer["error"]["message"]
    assert answer["error"]["param"] == "prompt"


def test_a_long_prompt_is_answered_by_retrieval_and_no_token_is_cut(complete: Any, reference: Reference) -> None:
    status, answer = complete(prompt=LONG + "first")
    assert status == 200
    assert answer["usage"]["prompt_tokens"] == len(reference.ids(LONG + "first"))
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["hsokv"]["timing"]["retrieval_ms_mean"] > 0


def test_the_second_prompt_with_the_same_beginning_is_not_read_again_and_answered_alike(complete: Any) -> None:
    _, alone = complete(prompt=LONG * 2 + "second")
    _, again = wait_until(
        lambda: (found := complete(prompt=LONG * 2 + "second"))[1]["hsokv"]["cached_tokens"] and found,
        what="a known beginning",
    )
    assert again["choices"][0]["text"] == alone["choices"][0]["text"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == again["hsokv"]["cached_tokens"] > 128


def upload(ask: Ask, text: str, **headers: str) -> str:
    status, _, document = ask(
        "POST", "/v1/documents", raw=text.encode(), headers={"Content-Type": "text/plain", **headers}
    )
    assert status in (200, 201), document
    return document["id"]


def test_a_document_stands_before_the_prompt_and_its_passages_are_told(
    complete: Any, ask: Ask, reference: Reference
) -> None:
    text = LONG + "The answer is five dozen jugs. " + LONG
    document = upload(ask, text)
    wait_until(lambda: ask("GET", f"/v1/documents/{document}")[2]["state"] == "ready", what="encoding")
    status, answer = complete(prompt="jugs", documents=[document], long_context={"passages": True})
    assert status == 200
    told = answer["hsokv"]
    assert told["document_tokens"] == told["cached_tokens"] == len(reference.ids(text))
    assert answer["usage"]["prompt_tokens"] == told["document_tokens"] + len(reference.ids("jugs"))
    passages = [each for each in told["passages"] if each["document"] == document]
    assert passages
    offsets = reference.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    for each in passages:
        assert each["char_begin"] == offsets[each["begin"]][0]
        assert each["char_end"] == offsets[each["end"] - 1][1]
        assert 0 < each["mass"] <= 1


def test_two_documents_are_one_text_in_the_order_given(complete: Any, ask: Ask) -> None:
    first, second = upload(ask, "one " * 300), upload(ask, "two " * 300)
    one_way = complete(prompt="x", documents=[first, second])[1]
    again = complete(prompt="x", documents=[first, second])[1]
    assert one_way["choices"] == again["choices"]
    assert again["hsokv"]["cached_tokens"] == again["hsokv"]["document_tokens"]
    assert complete(prompt="x", documents=[second, first])[1]["hsokv"]["document_tokens"] > 0


def test_another_owner_s_document_is_not_found(ask: Ask, served: Served) -> None:
    document = upload(ask, "secret " * 50)
    body = {"model": served.model, "prompt": "x", "documents": [document]}
    status, _, answer = ask("POST", "/v1/completions", body, headers={"Authorization": f"Bearer {served.other_key}"})
    unknown = ask("POST", "/v1/completions", body | {"documents": ["no-such"]})[2]
    assert status == 404
    assert answer["error"]["message"].replace(document, "no-such") == unknown["error"]["message"]


def test_what_a_question_read_of_a_document_is_gone_with_it(complete: Any, ask: Ask, served: Served) -> None:
    import ray

    from serve.actors import actor_name

    registry, documents = (
        ray.get_actor(actor_name(served.app, name), namespace="hsokv") for name in ("segments", "documents")
    )
    status, _, document = ask(
        "POST",
        "/v1/documents?encode=false",
        raw=b"only a question read this. " * 60,
        headers={"Content-Type": "text/plain"},
    )
    assert status == 201
    assert complete(prompt="x", documents=[document["id"]])[0] == 200
    [digest] = ray.get(documents.encoded_as.remote(document["id"], "ann"))
    wait_until(lambda: ray.get(registry.find.remote([digest])), what="publishing")
    assert ask("DELETE", f"/v1/documents/{document['id']}")[0] == 200
    assert ray.get(registry.find.remote([digest])) is None


def test_a_document_no_cache_can_keep_is_failed_and_names_the_setting(start_app: Callable[..., Served]) -> None:
    import httpx

    engine = {"max_running": 2, "max_queued": 2, "max_new_tokens": 100, "max_choices": 1, "prefix_cache_bytes": 2**20}
    small = start_app("small-caches", "/small-caches", segments_bytes=2**20, engine=engine)
    made = httpx.post(f"{small.url}/v1/documents", content=LONG * 12, headers={"Content-Type": "text/plain"}).json()
    path = f"{small.url}/v1/documents/{made['id']}"
    found = wait_until(lambda: (body := httpx.get(path).json())["state"] == "failed" and body, what="a refusal")
    assert "raise segments_bytes or engine.prefix_cache_bytes" in found["error"]


def test_what_was_read_of_a_document_is_pinned_and_let_go_by_its_owner_alone(ask: Ask, served: Served) -> None:
    document = upload(ask, "Worth keeping. " * 200)
    wait_until(lambda: ask("GET", f"/v1/documents/{document}")[2]["state"] == "ready", what="encoding")
    path, other = f"/v1/documents/{document}/pin", {"Authorization": f"Bearer {served.other_key}"}

    def num_pinned() -> int:
        import ray

        from serve.actors import actor_name

        registry = ray.get_actor(actor_name(served.app, "segments"), namespace="hsokv")
        return ray.get(registry.stats.remote())["num_pinned"]

    before = num_pinned()
    assert ask("PUT", path, headers=other)[0] == 404
    status, _, answer = wait_until(lambda: (found := ask("PUT", path))[0] != 409 and found, what="publishing")
    assert (status, answer["pinned"]) == (200, True)
    assert num_pinned() == before + 1
    assert ask("DELETE", path)[2]["pinned"] is False
    assert num_pinned() == before
    unread = ask("POST", "/v1/documents?encode=false", raw=b"not read", headers={"Content-Type": "text/plain"})[2]["id"]
    assert ask("PUT", f"/v1/documents/{unread}/pin")[0] == 409
