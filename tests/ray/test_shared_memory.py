"""The shared memory on a real cluster: one memory for every process, which loses nothing."""

import os
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from memory_under_fire import kill_under_load

from hsokv_ray.errors import ConfigError, DataError, Overloaded, StoreError
from hsokv_ray.memory.shared import (
    MemoryClient,
    MemoryConfig,
    Tenants,
    connect,
    memory_status,
    restart_memory,
    start_memory,
    stop_memory,
)
from hsokv_ray.memory.shared.config import claim_folder
from hsokv_ray.memory.shared.links import Link, actor_name
from hsokv_ray.memory.shared.messages import ReaderState, ShardInfo
from hsokv_ray.memory.shared.replica import copy_segment, drop_copy
from hsokv_ray.memory.shared.updates import Replica
from hsokv_ray.memory.stores import field
from hsokv_ray.memory.stores.lsm.segment import Segment
from hsokv_ray.runtime import NAMESPACE

pytestmark = pytest.mark.usefixtures("ray_cluster")
DIM = 16


@pytest.fixture
def memory(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """Starts memories, whose actors end with the test."""
    started: list[str] = []

    def start(**settings: Any) -> str:
        name = f"m{len(started)}-{request.node.name[:40]}".replace("[", "-").replace("]", "")
        start_memory(MemoryConfig(name=name, root=str(tmp_path / name), **settings))
        started.append(name)
        return name

    yield start
    for name in started:
        stop_memory(name)


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = rng.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


Rows = dict[str, tuple[np.ndarray, dict[str, Any]]]


def check_against(client: MemoryClient, rows: Rows, queries: np.ndarray) -> None:
    """Everything that can be read agrees with `rows`."""
    assert client.count() == len(rows)
    assert {record.id: record.metadata for record in client.records(page_size=7)} == {
        id: metadata for id, (_, metadata) in rows.items()
    }
    for predicate, keep in ((None, lambda m: True), (field("n") >= 50, lambda m: m["n"] >= 50)):
        kept = {id: vector for id, (vector, metadata) in rows.items() if keep(metadata)}
        assert client.count(predicate) == len(kept)
        ids, matrix = list(kept), np.stack(list(kept.values()))
        scores = queries @ matrix.T
        for row, hits in zip(scores, client.query(queries, top_k=5, filter=predicate), strict=True):
            best = np.sort(row)[::-1][:5]
            np.testing.assert_allclose([hit.score for hit in hits], best, atol=1e-5)
            for hit in hits:
                assert row[ids.index(hit.id)] == pytest.approx(hit.score, abs=1e-5)
                assert hit.metadata == rows[hit.id][1]


@pytest.mark.parametrize("reads", ["local", "remote"])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_memory_agrees_with_brute_force_through_overwrites_deletes_and_sealing(
    memory: Callable[..., str], reads: Any, num_shards: int
):
    rng = np.random.default_rng(0)
    name = memory(num_shards=num_shards, seal_rows=40)
    with connect(name, reads=reads) as client:
        assert client.query(unit(rng, DIM)) == [[]]
        assert client.count() == 0
        rows: Rows = {}
        for start in (0, 40, 20, 90):
            ids = [f"row {i} ü" for i in range(start, start + 60)]
            vectors = unit(rng, len(ids), DIM)
            metadata = [{"n": i, "start": start} for i in range(start, start + 60)]
            assert client.upsert(ids, vectors, metadata) == 60
            rows |= {id: (v, m) for id, v, m in zip(ids, vectors, metadata, strict=True)}
        check_against(client, rows, unit(rng, 9, DIM))
        gone = [f"row {i} ü" for i in range(0, 150, 4)]
        assert client.delete([*gone, "never there"]) == len([id for id in gone if id in rows])
        low = [id for id, (_, m) in rows.items() if m["n"] < 20 and id not in gone]
        assert client.delete(filter=field("n") < 20) == len(low)
        for id in (*gone, *low):
            rows.pop(id, None)
        check_against(client, rows, unit(rng, 9, DIM))
        client.optimize()
        check_against(client, rows, unit(rng, 9, DIM))
        found = client.get(["row 141 ü", "never there"])
        assert found[1] is None
        assert found[0] is not None
        np.testing.assert_allclose(found[0].vector, rows["row 141 ü"][0], atol=1e-6)
        assert client.drop()
        assert client.count() == 0
        assert client.upsert(["other dim"], unit(rng, 1, DIM + 1)) == 1
        assert client.count() == 1


def test_the_callers_do_not_notice_that_the_actor_was_killed(memory: Callable[..., str]):
    rng = np.random.default_rng(1)
    name = memory()
    with connect(name) as local, connect(name, reads="remote") as remote:
        vectors = unit(rng, 10, DIM)
        local.upsert([str(i) for i in range(5)], vectors[:5])
        before = local.search(vectors[0]).versions[0]
        os.kill(local.info().pid, signal.SIGKILL)
        assert local.query(vectors[0], top_k=1)[0][0].id == "0"  # from what it has, while the actor restarts
        assert remote.query(vectors[1], top_k=1)[0][0].id == "1"
        remote.upsert([str(i) for i in range(5, 10)], vectors[5:])
        after = remote.search(vectors[7], top_k=1)
        assert after.hits[0][0].id == "7"
        assert after.versions[0] > before
        with connect(name, consistency="strong") as other:
            assert other.query(vectors[9], top_k=1)[0][0].id == "9"


def test_kills_under_load_lose_no_acknowledged_write(memory: Callable[..., str]):
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    with connect(memory(seal_rows=64), consistency="strong") as client:
        assert kill_under_load(client, rounds=20, seed=seed) >= 60


def test_strong_reads_contain_what_others_wrote_and_session_reads_what_i_wrote(memory: Callable[..., str]):
    rng = np.random.default_rng(2)
    name = memory()
    with (
        connect(name, consistency="strong") as strong,
        connect(name, consistency="bounded(0.01ms)") as bounded,
        connect(name) as session,
        connect(name, consistency="eventual") as eventual,
    ):
        for i in range(30):
            vector = unit(rng, DIM)
            session.upsert([str(i)], vector, [{"i": i}])
            assert session.count() == i + 1
            assert strong.count() == i + 1
            assert bounded.count() == i + 1
        last = session.versions[0]
        seen = eventual.search(vector).versions[0]
        assert seen <= last
        assert session.search(vector).versions[0] >= last


def test_published_rows_reach_a_reader_that_only_waits(memory: Callable[..., str]):
    rng = np.random.default_rng(3)
    name = memory(seal_rows=32)
    with connect(name) as writer, connect(name, consistency="eventual") as reader:
        writer.upsert(["0"], unit(rng, 1, DIM))
        assert reader.count() == 1
        for i in range(1, 120):
            writer.upsert([str(i)], unit(rng, 1, DIM))
        arrived = threading.Event()
        for _ in range(1000):
            if reader.count() == 120:
                break
            arrived.wait(0.02)
        assert reader.count() == 120


def test_no_tenant_sees_another_ones_collections(memory: Callable[..., str], tmp_path: Path):
    rng = np.random.default_rng(4)
    name = memory()
    tenants = Tenants(tmp_path / name)
    keys: list[str | None] = [None, *(tenants.add(f"tenant-{i}") for i in range(3))]
    names = ["a", "b"]
    expected: dict[tuple[int, str], str] = {}
    for i, key in enumerate(keys):
        for collection in names[: 1 + i % 2]:
            with connect(name, collection, key=key) as client:
                client.upsert([f"{i} {collection}"], unit(rng, 1, DIM))
                expected[i, collection] = f"{i} {collection}"
    for i, key in enumerate(keys):
        for collection in names:
            with connect(name, collection, key=key, reads="local" if i % 2 else "remote") as client:
                found = [record.id for record in client.records()]
                assert found == ([expected[i, collection]] if (i, collection) in expected else [])
                assert client.collections() == names[: 1 + i % 2]
    with pytest.raises(StoreError, match="does not know the key"):
        connect(name, key="hk-guessed")


def test_a_memory_that_wants_keys_refuses_who_has_none(memory: Callable[..., str]):
    with pytest.raises(StoreError, match="HSOKV_MEMORY_KEY"):
        connect(memory(require_key=True))


def test_a_client_of_newer_code_says_how_to_recreate_an_older_actor_and_that_works(tmp_path: Path):
    class Older:
        def describe(self) -> ShardInfo:
            return ShardInfo(0, "0.0.1", "{}", 0, "node", "host", 1)

    root = str(tmp_path / "older")
    claim_folder(MemoryConfig(name="older", root=root))
    ray.remote(num_cpus=0)(Older).options(
        name=actor_name("older", 0), namespace=NAMESPACE, lifetime="detached"
    ).remote()
    try:
        with pytest.raises(StoreError, match=r"hsokv_ray 0\.0\.1 .*hsokv memory restart older"):
            connect("older")
        with pytest.raises(StoreError, match="--root DIR"):
            restart_memory("older")
        restart_memory("older", root)
        with connect("older") as client:
            assert client.count() == 0
    finally:
        stop_memory("older")


def test_many_clients_get_through_a_queue_that_is_too_small_for_them(memory: Callable[..., str]):
    rng = np.random.default_rng(5)
    name = memory(queue_bytes=2**16)
    vectors = unit(rng, 2000, DIM)
    errors: list[Exception] = []

    def write(i: int) -> None:
        try:
            with connect(name, patience_s=60) as client:
                for turn in range(5):
                    client.upsert([f"{i} {turn} {row}" for row in range(len(vectors))], vectors)
        except StoreError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert memory_status(name)[0]["refused"] > 0
    with connect(name) as client:
        assert client.count() == 6 * 5 * len(vectors)


def test_a_client_holds_a_bounded_number_of_bytes_and_says_when_to_come_back(memory: Callable[..., str]):
    rng = np.random.default_rng(12)
    with connect(memory(queue_bytes=2**16), patience_s=5) as client:
        client._patience_s = 0.3
        client._budget.take(2**16)
        with pytest.raises(Overloaded, match="this client holds") as caught:
            client.upsert(["a"], unit(rng, 1, DIM))
        assert caught.value.retry_after_s > 0
        client._budget.give(2**16)
        large = unit(rng, 5000, DIM)  # several times the budget: alone it goes
        assert client.upsert([str(i) for i in range(5000)], large) == 5000
        assert client._budget.num_bytes == 0
        assert client.count() == 5000


def test_a_refusal_arrives_typed_when_patience_ends_and_other_errors_at_once():
    class Full:
        def is_up(self) -> bool:
            return True

        def read(self, method: str, *args: Any) -> None:
            if method == "count":
                raise Overloaded("the shard holds 9 bytes of calls", retry_after_s=0.1)
            raise DataError("cursor: wrong")

    actor = ray.remote(num_cpus=0)(Full).options(name=actor_name("full", 0), namespace=NAMESPACE).remote()
    try:
        assert ray.get(actor.is_up.remote())
        link = Link("full", 0, patience_s=3)
        for ask in (lambda: link.call("count"), lambda: link.start("count")()):
            with pytest.raises(Overloaded, match="try again in 0.1 s") as caught:
                ask()
            assert caught.value.retry_after_s == 0.1
        with pytest.raises(DataError, match="cursor: wrong"):
            link.call("scroll")
    finally:
        ray.kill(actor)


def test_replicas_answer_while_the_writer_is_away(memory: Callable[..., str]):
    rng = np.random.default_rng(6)
    name = memory(num_replicas=1)
    vectors = unit(rng, 50, DIM)
    with connect(name, reads="remote") as client:
        client.upsert([str(i) for i in range(50)], vectors)
        assert [hits[0].id for hits in client.query(vectors, top_k=1)] == [str(i) for i in range(50)]
        assert [row["role"] for row in memory_status(name)] == ["writer", "replica 0"]
        assert memory_status(name)[1]["vectors"] == 50


def test_a_node_without_the_files_gets_copies_of_segments_and_drops_them(memory: Callable[..., str]):
    rng = np.random.default_rng(11)
    vectors = unit(rng, 100, DIM)
    with connect(memory(seal_rows=50), reads="remote") as client:
        client.upsert([str(i) for i in range(100)], vectors, [{"i": i} for i in range(100)])
        client.optimize()
        link, caller = client._links[0], client._caller
        update = link.call("update", caller, ReaderState(), 0.0)
        replica = Replica(lambda news: Segment.open(copy_segment(link, caller, news)), drop_copy)
        view = replica.apply(update)
        folders = [part.folder for part, _ in view.parts if isinstance(part, Segment)]
        assert folders
        assert not any(str(folder).startswith(client.config.root) for folder in folders)
        assert [hits[0].id for hits in view.search(vectors, 1).hits()] == [str(i) for i in range(100)]
        client.upsert([str(i) for i in range(50, 150)], unit(rng, 100, DIM))
        client.optimize()
        replica.apply(link.call("update", caller, replica.state, 0.0))
        assert not any(folder.exists() for folder in folders)
        assert [hits[0].id for hits in view.search(vectors, 1).hits()] == [str(i) for i in range(100)]
        assert replica.view is not None
        assert replica.view.alive_count == 150
        with pytest.raises(StoreError, match="no longer part"):
            link.call("segment_files", caller, "gone")
        for part, _ in replica.view.parts:
            if isinstance(part, Segment):
                drop_copy(part)


def test_a_restart_keeps_everything_and_a_second_start_finds_the_first(memory: Callable[..., str], tmp_path: Path):
    rng = np.random.default_rng(7)
    name = memory(num_shards=2)
    with connect(name) as client:
        client.upsert([str(i) for i in range(100)], unit(rng, 100, DIM))
        pid = client.info().pid
    same = MemoryConfig(name=name, root=str(tmp_path / name), num_shards=2)
    assert start_memory(same) == same
    restart_memory(name)
    with connect(name) as client:
        assert client.info().pid != pid
        assert client.count() == 100
    with pytest.raises(ConfigError, match="runs already .*root: "):
        start_memory(MemoryConfig(name=name, root=str(tmp_path / "elsewhere"), num_shards=2))
    with pytest.raises(ConfigError, match="runs already .*num_shards: 2 -> 1"):
        start_memory(MemoryConfig(name=name, root=str(tmp_path / name)))
    stop_memory(name)
    with pytest.raises(ConfigError, match="num_shards: 2 -> 3"):
        start_memory(MemoryConfig(name=name, root=str(tmp_path / name), num_shards=3))
    with pytest.raises(StoreError, match=f"hsokv memory start {name}"):
        connect(name)


def test_stopping_passes_over_actors_that_end_after_they_were_listed(
    memory: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    name = memory()
    listed = ray.util.list_named_actors
    gone = {"name": actor_name(name, 1), "namespace": NAMESPACE}
    answers = iter([True, True, False])
    monkeypatch.setattr(ray.util, "list_named_actors", lambda **where: listed(**where) + [gone] * next(answers, False))
    assert stop_memory(name)
    with pytest.raises(StoreError, match="no memory"):
        connect(name)


def test_bad_input_is_the_same_clear_error_as_on_every_store(memory: Callable[..., str]):
    rng = np.random.default_rng(8)
    with connect(memory()) as client:
        client.upsert(["a"], unit(rng, 1, DIM))
        with pytest.raises(DataError, match=f"{DIM + 1} dimensions; this store has {DIM}"):
            client.upsert(["b"], unit(rng, 1, DIM + 1))
        with pytest.raises(DataError, match="NaN"):
            client.upsert(["b"], np.full((1, DIM), np.nan))
        with pytest.raises(DataError, match="cursor"):
            client.scroll(cursor="7")
        with pytest.raises(ConfigError, match="consistency"):
            connect(client.config.name, consistency="perfect")
        assert client.count() == 1


def test_snapshots_of_every_shard_can_be_restored(memory: Callable[..., str], tmp_path: Path):
    from hsokv_ray.memory.stores import open_store
    from hsokv_ray.memory.stores.lsm.snapshot import restore_snapshot

    rng = np.random.default_rng(9)
    with connect(memory(num_shards=2)) as client:
        client.upsert([str(i) for i in range(50)], unit(rng, 50, DIM))
        places = client.snapshot(str(tmp_path / "snapshot"))
    found = set()
    for i, place in enumerate(places):
        restore_snapshot(place, tmp_path / f"restored-{i}")
        with open_store(f"faiss:{tmp_path / f'restored-{i}'}") as store:
            found |= {record.id for record in store.records()}
    assert found == {str(i) for i in range(50)}


def test_metrics_are_exported_for_prometheus(memory: Callable[..., str]):
    rng = np.random.default_rng(10)
    with connect(memory(), reads="remote") as client:
        client.upsert(["a"], unit(rng, 1, DIM))
        client.query(unit(rng, DIM))
        port = ray.nodes()[0]["MetricsExportPort"]
        pause = threading.Event()
        for _ in range(60):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                text = answer.read().decode()
            if "hsokv_memory_calls" in text and "hsokv_memory_vectors" in text:
                break
            pause.wait(0.5)
        assert 'method="search"' in text
        assert "hsokv_memory_latency_ms_bucket" in text
