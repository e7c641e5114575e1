"""What only Qdrant has: one owner per folder, points and payloads, and a server that may not be there."""

import json
import signal
import socket
import struct
import subprocess
import sys
import uuid
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hsokv_ray import env
from hsokv_ray.errors import ConfigError, StoreError
from hsokv_ray.memory.stores import QdrantConfig, field, open_store
from hsokv_ray.memory.stores.facets import in_range
from hsokv_ray.memory.stores.qdrant.payload import in_chunks, make_point, number_terms, point_id, range_terms
from hsokv_ray.memory.stores.qdrant.server import check_url

FINITE = st.floats(allow_nan=False, allow_infinity=False)


def python(code: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, **options)


@given(FINITE, FINITE, st.sampled_from(["gt", "gte", "lt", "lte"]))
@example(0.0, -0.0, "gte")
@example(5e-324, 0.0, "gt")
@example(-1.7976931348623157e308, 1.7976931348623157e308, "lt")
def test_a_number_has_one_term_of_every_range_it_is_in_and_none_of_others(number, bound, op):
    terms = number_terms("n:x", number)
    assert len(set(terms) & set(range_terms("n:x", op, bound))) == int(in_range(number, op, bound))
    assert len(set(terms) & set(range_terms("n:x", op, number))) == int(op in ("gte", "lte"))
    assert not set(terms) & set(range_terms("n:y", op, bound))
    assert len(terms) == 16
    assert len(range_terms("n:x", op, bound)) <= 241


def test_a_point_has_a_derived_id_the_exact_json_and_three_fields():
    text = '{"x\'); --":1.10,"n":0.1,"d":"2024-01-01"}'
    point = make_point("é", np.float32([1, 2]), text.encode())
    assert point.id == point_id("é") == uuid.uuid5(uuid.UUID("6f1c2a52-7d0c-5a4e-9a44-8e0f2b3c9d17"), "é")
    assert set(point.payload) == {"_id", "_json", "terms"}
    assert (point.payload["_id"], point.payload["_json"]) == ("é", text)
    assert set(number_terms("n:n", 0.1)) < set(point.payload["terms"])


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 7), st.integers(1, 200))
def test_chunks_keep_the_order_and_the_limits(sizes, max_points, max_bytes):
    points = [make_point(str(i), np.zeros(0), json.dumps({"x": "y" * size}).encode()) for i, size in enumerate(sizes)]
    chunks = list(in_chunks(points, max_points, max_bytes))
    assert [point for chunk in chunks for point in chunk] == points
    for chunk in chunks:
        assert 1 <= len(chunk) <= max_points
        assert len(chunk) == 1 or sum(point.num_bytes for point in chunk) <= max_bytes


def test_a_folder_has_one_owner(tmp_path):
    config = QdrantConfig(path=str(tmp_path))
    with open_store(config) as store:
        with pytest.raises(StoreError, match="open already.*one owner"):
            open_store(config)
        code = "import sys; from hsokv_ray.memory.stores import open_store; open_store(f'qdrant:{sys.argv[1]}')"
        assert "StoreError: qdrant" in python(code, str(tmp_path)).stderr
        store.upsert(["a"], [[1.0]])
    open_store(config).close()


def test_an_acknowledged_write_survives_a_kill(tmp_path):
    code = """
import os, signal, sys
from hsokv_ray.memory.stores import open_store
store = open_store(f"qdrant:{sys.argv[1]}")
for i in range(20):
    store.upsert([f"{i}-{j}" for j in range(10)], [[1.0, i + j] for j in range(10)], [{"i": i}] * 10)
store.delete(filter={"i": 3})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert python(code, str(tmp_path)).returncode == -signal.SIGKILL
    with open_store(f"qdrant:{tmp_path}") as store:
        assert store.count() == 190
        assert store.count(field("i") == 3) == 0
        assert store.get(["19-9"])[0].metadata == {"i": 19}


def test_a_store_whose_making_was_cut_short_is_made_again(tmp_path):
    (tmp_path / "creating" / "shard").mkdir(parents=True)
    (tmp_path / "creating" / "shard" / "half").write_text("x")
    with open_store(f"qdrant:{tmp_path}") as store:
        assert store.count() == 0
        store.upsert(["a"], [[1.0]])
        assert store.count() == 1


@pytest.mark.parametrize("content", [None, "", "[]", '{"format": 1}'])
def test_a_damaged_description_is_a_store_error_and_frees_the_folder(tmp_path, content):
    with open_store(f"qdrant:{tmp_path}?dim=2"):
        pass
    description = tmp_path / "engine" / "store.json"
    whole = description.read_text()
    description.unlink() if content is None else description.write_text(content)
    with pytest.raises(StoreError, match="missing or damaged"):
        open_store(f"qdrant:{tmp_path}")
    description.write_text(whole)
    open_store(f"qdrant:{tmp_path}").close()


def test_a_damaged_shard_is_a_store_error_in_one_line(tmp_path):
    with open_store(f"qdrant:{tmp_path}?dim=2"):
        pass
    (tmp_path / "engine" / "shard" / "edge_config.json").write_text("{")
    with pytest.raises(StoreError, match="cannot open") as caught:
        open_store(f"qdrant:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_the_index_is_built_as_the_store_grows(tmp_path):
    rng = np.random.default_rng(0)
    with open_store(f"qdrant:{tmp_path}") as store:
        assert store.stats().index == "exact"
        for start in (0, 6000):
            store.upsert([str(i) for i in range(start, start + 6000)], rng.standard_normal((6000, 256)))
        stats = store.stats()
        assert (stats.index, stats.count) == ("HNSW", 12_000)
        assert stats.details["indexed_vectors"] > 0


def test_a_missing_package_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['qdrant_edge'] = None\n"
        "from hsokv_ray.memory.stores import open_store; open_store(f'qdrant:{sys.argv[1]}')"
    )
    assert 'ConfigError: qdrant in a folder needs qdrant-edge-py: pip install "hsokv_ray[qdrant-edge]"' in (
        python(code, str(tmp_path)).stderr
    )


@pytest.fixture
def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_server_that_is_not_there_is_a_store_error_in_one_line(closed_port, monkeypatch):
    monkeypatch.setenv(env.QDRANT_API_KEY, "very-secret")
    with pytest.raises(StoreError, match="is the server up") as caught:
        open_store(f"qdrant:http://user:password@127.0.0.1:{closed_port}")
    message = str(caught.value)
    assert f"127.0.0.1:{closed_port}" in message
    assert not any(secret in message for secret in ("very-secret", "password", "\n"))


@pytest.mark.parametrize(
    ("host", "warns"), [("127.0.0.1", False), ("localhost", False), ("[::1]", False), ("qdrant.invalid", True)]
)
def test_a_key_over_plain_http_to_another_machine_is_warned_of(closed_port, monkeypatch, host, warns):
    monkeypatch.setenv("OTHER_KEY", "very-secret")
    config = QdrantConfig(url=f"http://{host}:{closed_port}", api_key_env="OTHER_KEY", timeout_s=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(StoreError):
            open_store(config)
    messages = [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
    assert [("unencrypted" in message, "very-secret" in message) for message in messages] == [(True, False)] * warns


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port", "http://host:99999"])
def test_a_url_that_is_no_address_is_refused(url):
    with pytest.raises(ConfigError, match="not an address"):
        check_url(url)
    with pytest.raises(ConfigError):
        open_store(QdrantConfig(url=url))


def test_the_engine_alone_would_misread_doubles(tmp_path):
    """One reason for `number_terms`."""
    q = pytest.importorskip("qdrant_edge")
    bits = np.random.default_rng(0).integers(0, 2**64, 500, dtype=np.uint64).view(np.float64)
    numbers = bits[np.isfinite(bits)].tolist()
    config = q.EdgeConfig(vectors=q.EdgeVectorParams(size=1, distance=q.Distance.Dot))
    shard = q.EdgeShard.create(str(tmp_path / "shard"), config)
    points = [q.Point(i, [1.0], {"x": number}) for i, number in enumerate(numbers)]
    shard.update(q.UpdateOperation.upsert_points(points))
    read = {p.id: p.payload["x"] for p in shard.scroll(q.ScrollRequest(limit=1000, with_payload=True))[0]}
    shard.close()
    wrong = [i for i, number in enumerate(numbers) if struct.pack("<d", read[i]) != struct.pack("<d", number)]
    assert len(wrong) > 50


def test_a_folder_below_a_file_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        open_store(f"qdrant:{Path(tmp_path, 'file', 'below')}")
