"""Actors that outlive deployments: found again when they are gone, and brought to what the new deployment wants."""

import asyncio
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from served_app import wait_until

from hsokv_ray.errors import ConfigError
from hsokv_ray.runtime import NAMESPACE
from serve.actors import ActorLink, actor_name, end_actors
from serve.documents.actor import documents_link
from serve.documents.client import DocumentsClient, read_piece, read_pieces
from serve.documents.limits import DocumentLimits
from serve.errors import ApiError
from serve.segments import renewed_segments

LIMITS = DocumentLimits(free_bytes=0)
pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def name() -> Iterator[str]:
    """The name of an application of its own."""
    app = f"test-{uuid.uuid4().hex[:8]}"
    yield app
    end_actors(app)


def call(link: ActorLink, method: str, *args: Any, **kwargs: Any) -> Any:
    return asyncio.run(DocumentsClient(link).call(method, *args, **kwargs))


def upload(link: ActorLink, text: str) -> str:
    state = call(link, "begin", "ann")
    call(link, "write", "ann", state.id, 0, text.encode())
    return call(link, "finish", "ann", state.id).listed.document.id


def end(app: str, kind: str) -> None:
    ray.kill(ray.get_actor(actor_name(app, kind), namespace=NAMESPACE), no_restart=True)


def test_documents_whose_actor_ended_for_good_are_there_at_the_next_call(name: str, tmp_path: Path) -> None:
    link = documents_link(name, root=tmp_path, limits=LIMITS)
    id = upload(link, "the text")
    end(name, "documents")
    assert call(link, "get", id, "ann").document.id == id
    end(name, "documents")
    [piece] = read_pieces(link, id, "ann")
    assert read_piece(link, id, "ann", piece) == "the text"


def test_new_limits_hold_at_once_and_after_a_restart(name: str, tmp_path: Path) -> None:
    old = documents_link(name, root=tmp_path, limits=LIMITS)
    id = upload(old, "12345")
    less = LIMITS.model_copy(update={"document_bytes": 4})
    new = documents_link(name, root=tmp_path, limits=less)
    assert new.handle() == old.handle()
    for _ in range(2):
        with pytest.raises(ApiError, match="at most 4 are allowed"):
            upload(old, "12345")
        assert call(new, "get", id, "ann").document.num_bytes == 5
        pid = call(new, "process_id")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: call(new, "process_id") != pid, what="a restart")


def test_a_new_actor_takes_the_limits_it_was_made_with(name: str, tmp_path: Path) -> None:
    documents_link(name, root=tmp_path, limits=LIMITS)
    documents_link(name, root=tmp_path, limits=LIMITS.model_copy(update={"document_bytes": 4}))
    end(name, "documents")
    link = documents_link(name, root=tmp_path, limits=LIMITS)
    assert upload(link, "12345")


def test_another_folder_is_refused_while_the_old_one_is_in_use(name: str, tmp_path: Path) -> None:
    link = documents_link(name, root=tmp_path / "old", limits=LIMITS)
    id = upload(link, "the text")
    with pytest.raises(ConfigError, match=rf"documents_dir: got {tmp_path}/new, .* in {tmp_path}/old; end it first"):
        documents_link(name, root=tmp_path / "new", limits=LIMITS)
    assert call(link, "get", id, "ann").document.id == id


def test_segments_with_other_bytes_begin_anew_and_with_the_same_stay(name: str) -> None:
    first = renewed_segments(name, max_bytes=1000, max_age_s=60)
    handle = first.handle()
    ray.get(handle.claim.remote("digest", "somebody"))
    same = renewed_segments(name, max_bytes=1000, max_age_s=60).handle()
    assert same == handle
    other = renewed_segments(name, max_bytes=2000, max_age_s=60).handle()
    assert other != handle
    assert call(first, "stats")["num_claims"] == 0
    assert call(first, "arguments")["max_bytes"] == 2000, "who connects again takes what is there"
