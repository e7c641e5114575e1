"""Documents whose process is killed at any moment: what was acknowledged is there, uploads under way go on."""

import asyncio
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from serve.actors import actor_name
from serve.documents.actor import documents_actor
from serve.documents.client import DocumentsClient, read_piece, read_pieces
from serve.documents.limits import DocumentLimits

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]
APP = "documents-kill"
PART = 2**16


def test_nothing_acknowledged_is_lost_by_death_at_any_file_operation(tmp_path: Path) -> None:
    script, root = Path(__file__).with_name("documents_die_everywhere.py"), Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, str(script), str(tmp_path), "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


@pytest.fixture
def actor(ray_cluster: None, tmp_path: Path) -> Iterator[Any]:
    handle = documents_actor(APP, root=tmp_path, limits=DocumentLimits(free_bytes=0))
    yield handle
    ray.kill(ray.get_actor(actor_name(APP, "documents"), namespace="hsokv"), no_restart=True)


async def upload(client: DocumentsClient, owner: str, data: bytes) -> str:
    """Send `data` in parts, as a gateway does."""
    state = await client.call("begin", owner, digest=hashlib.sha256(data).hexdigest())
    for offset in range(0, len(data), PART):
        await client.call("write", owner, state.id, offset, data[offset : offset + PART])
    return (await client.call("finish", owner, state.id)).listed.document.id


def test_uploads_do_not_notice_that_the_actor_is_killed_over_and_over(actor: Any) -> None:
    choice, client = random.Random(7), DocumentsClient(actor)
    texts = [f"{i} ".encode() + choice.randbytes(PART).hex().encode() * 4 for i in range(24)]

    async def kill(times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(choice.uniform(0.2, 0.8))
            os.kill(await client.call("process_id"), signal.SIGKILL)

    async def load(number: int) -> list[tuple[str, str, bytes]]:
        owner = f"owner-{number}"
        return [(owner, await upload(client, owner, text), text) for text in texts[number::4]]

    async def everything() -> list[tuple[str, str, bytes]]:
        *loads, _ = await asyncio.gather(*(load(number) for number in range(4)), kill(4))
        return [each for made in loads for each in made]

    made = asyncio.run(everything())
    assert len({id for _, id, _ in made}) == len(texts)
    for owner, id, text in made:
        [piece] = read_pieces(actor, id, owner)
        assert read_piece(actor, id, owner, piece).encode() == text
    ray.get(actor.check_integrity.remote())
    assert ray.get(actor.stats.remote())["uploads"] == 0


def test_a_piece_is_read_through_the_actor_where_its_file_is_not_here(actor: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    client = DocumentsClient(actor)
    id = asyncio.run(upload(client, "ann", b"the text"))
    [piece] = read_pieces(actor, id, "ann")
    other = tmp_path / "another machine's file"
    other.write_bytes(b"not this")
    for path in (piece.path, str(other), "/nowhere"):
        assert read_piece(actor, id, "ann", replace(piece, path=path)) == "the text"


def test_a_document_that_was_being_encoded_reads_as_stored_after_the_kill(actor: Any) -> None:
    client = DocumentsClient(actor)

    async def check() -> None:
        id = await upload(client, "ann", b"the text")
        await client.call("progress", id, "ann", "encoding", 1, 2)
        os.kill(await client.call("process_id"), signal.SIGKILL)
        end_s = time.monotonic() + 60
        while (await client.call("read_progress", id, "ann")).state != "stored":
            assert time.monotonic() < end_s
            await asyncio.sleep(0.05)

    asyncio.run(check())
