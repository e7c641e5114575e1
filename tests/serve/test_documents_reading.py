"""Documents read in a replica: each once, in bounded memory, and forgotten with the document; with a real engine."""

import asyncio
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from served_app import wait_until

from hsokv_ray.errors import ConfigError
from hsokv_ray.inference.checkpoints import resolve
from hsokv_ray.inference.engine import Engine, EngineConfig
from hsokv_ray.inference.loading import load
from hsokv_ray.longcontext.prefixes import LocalPrefixes
from serve.actors import end_actors
from serve.documents.actor import documents_actor
from serve.documents.client import DocumentsClient
from serve.errors import ApiError
from serve.reading import Cancelled, Reader, check_kept
from serve.texts import Texts

TEXT = "The quick brown fox jumps over the lazy dog. " * 20
PATIENT_S = 7
"""Longer than a replica once waited for another one."""


class Prefixes(LocalPrefixes):
    """Notes how often a claim was tried."""

    num_claims = 0

    def claim(self, digest: str, timeout_s: float) -> bool:
        self.num_claims += 1
        return super().claim(digest, timeout_s)


class Parts:
    """A reader with all it needs."""

    def __init__(self, folder: Path, documents: Any) -> None:
        loaded = load(resolve(str(folder)), device="cpu")
        self.prefixes, self.documents, self.gone = Prefixes(2**30), documents, threading.Event()
        self.engine = Engine(loaded, EngineConfig(), prefixes=self.prefixes)
        self.texts = Texts(loaded.tokenizer, self.engine.served.vocab_size, 2000)
        self.reader = Reader(self.engine, self.texts, self.prefixes, documents)

    def upload(self, text: str) -> str:
        async def send() -> str:
            client = DocumentsClient(self.documents)
            state = await client.call("begin", "ann")
            await client.call("write", "ann", state.id, 0, text.encode())
            return (await client.call("finish", "ann", state.id)).listed.document.id

        return asyncio.run(send())

    def read(self, id: str) -> Any:
        return self.reader.read(self.reader.chain("ann", [id]), lambda done, total: None, self.gone)[0]

    def digest(self, id: str) -> str:
        """Return the digest of all that is read of a document of one piece."""
        chain = self.reader.chain("ann", [id])
        return self.engine.served.digests(chain.token_ids, [len(chain)], self.engine.served.settings)[0]

    def delete(self, id: str) -> list[str]:
        return ray.get(self.documents.delete.remote(id, "ann"))


@pytest.fixture
def parts(ray_cluster: None, chat_model: Path, tmp_path: Path) -> Iterator[Parts]:
    app = f"reading-{uuid.uuid4().hex[:8]}"
    made = Parts(chat_model, documents_actor(app, root=tmp_path))
    yield made
    made.gone.set()
    made.engine.close()
    end_actors(app)


@pytest.fixture
def later() -> Iterator[Callable[..., Any]]:
    with ThreadPoolExecutor(2) as threads:
        yield threads.submit


def test_a_text_that_somebody_else_reads_is_waited_for_as_long_as_that_takes(
    parts: Parts, later: Callable[..., Any]
) -> None:
    id = parts.upload(TEXT)
    digest, ids = parts.digest(id), parts.reader.chain("ann", [id]).token_ids
    assert parts.prefixes.claim(digest, 0)
    reading = later(parts.read, id)
    wait_until(lambda: parts.prefixes.num_claims > PATIENT_S, what="patience")
    assert not reading.done()
    theirs = parts.engine.encode(ids).result(60)
    assert not reading.done()
    parts.prefixes.add(theirs)
    parts.prefixes.release(digest)
    assert reading.result(30).segments[-1] is theirs.segments[-1], "it was read twice"


def test_who_waits_for_another_reader_ends_when_nobody_waits_for_him(parts: Parts, later: Callable[..., Any]) -> None:
    id = parts.upload(TEXT)
    digest = parts.digest(id)
    assert parts.prefixes.claim(digest, 0)
    reading = later(parts.read, id)
    wait_until(lambda: parts.prefixes.num_claims > 1, what="a claim")
    parts.gone.set()
    with pytest.raises(Cancelled):
        reading.result(30)
    assert not parts.prefixes.claim(digest, 0), "the other one's claim is left alone"


def test_a_reader_that_gave_up_is_followed_by_the_next_one(parts: Parts, later: Callable[..., Any]) -> None:
    id = parts.upload(TEXT)
    digest = parts.digest(id)
    assert parts.prefixes.claim(digest, 0)
    reading = later(parts.read, id)
    wait_until(lambda: parts.prefixes.num_claims > 1, what="a claim")
    parts.prefixes.release(digest)
    assert reading.result(60).digest == digest
    assert not parts.prefixes.claim(digest, 0), "it is there"


def test_whoever_reads_a_document_has_what_was_read_deleted_with_it(parts: Parts) -> None:
    first, second = parts.upload(TEXT), parts.upload(TEXT + "and more")
    chain = parts.reader.chain("ann", [first, second])
    encoded = parts.reader.read(chain, lambda done, total: None, parts.gone)[0]
    assert parts.delete(second) == [encoded.digest], "behind another document, by a question"
    begin = parts.engine.served.digests(chain.token_ids, [chain.parts[0].end], parts.engine.served.settings)
    assert parts.delete(first) == begin


def test_a_document_that_is_deleted_while_it_is_read_leaves_nothing(parts: Parts, later: Callable[..., Any]) -> None:
    id = parts.upload(TEXT)
    digest, ids = parts.digest(id), parts.reader.chain("ann", [id]).token_ids
    assert parts.prefixes.claim(digest, 0)
    reading = later(parts.read, id)
    wait_until(lambda: parts.prefixes.num_claims > 1, what="a claim")
    assert parts.delete(id) == []
    parts.prefixes.add(parts.engine.encode(ids).result(60))
    parts.prefixes.release(digest)
    with pytest.raises(ApiError, match=id) as caught:
        reading.result(30)
    assert caught.value.status == 404
    assert parts.prefixes.find([digest]) is None


def test_a_text_of_the_most_tokens_is_taken_and_one_more_is_not(parts: Parts) -> None:
    most = parts.texts.max_tokens
    full = "1" * most  # no two digits are one token
    assert len(parts.reader.chain("ann", [parts.upload(full)])) == most
    with pytest.raises(ConfigError, match=r"2,001 tokens .* at most 2,000"):
        parts.reader.chain("ann", [parts.upload(full + "1")])


@pytest.mark.parametrize("text", ["1" * 200_000, "fox " * 50_000, "🧠" * 50_000, "x" * 3_000_000])
def test_a_text_that_is_far_too_long_is_refused_in_the_memory_of_a_slice(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    from serve import texts

    monkeypatch.setattr(texts, "_SLICE", 10_000)
    sizes: list[int] = []
    tokenizer = parts.texts._tokenizer

    def noting(text: str, **options: Any) -> Any:
        sizes.append(len(text))
        return tokenizer(text, **options)

    monkeypatch.setattr(parts.texts, "_tokenizer", noting)
    with pytest.raises(ConfigError, match=r"2,000 tokens.*raise engine\.max_input_tokens"):
        parts.texts.piece("name", text, begins=True)
    assert sum(sizes) <= 20_000, sizes


def test_a_document_that_no_cache_can_keep_is_refused_with_what_to_raise(parts: Parts) -> None:
    chain = parts.reader.chain("ann", [parts.upload(TEXT)])
    each = parts.engine.served.bytes_per_token
    check_kept(chain, each, len(chain) * each)
    with pytest.raises(ConfigError, match=r"raise segments_bytes or engine\.prefix_cache_bytes"):
        check_kept(chain, each, len(chain) * each - 1)
    assert parts.read(chain.parts[0].document).segments[0].nbytes >= len(chain) * each, "it is no overestimate"
