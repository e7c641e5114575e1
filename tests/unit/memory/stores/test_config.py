"""Store URIs and configuration classes."""

import pytest

from hsokv_ray.errors import ConfigError
from hsokv_ray.memory.stores import FaissConfig, LanceConfig, QdrantConfig, open_store, parse_store_uri


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("faiss:memory/notes", FaissConfig(path="memory/notes")),
        ("faiss:/abs?index=hnsw&metric=l2&dim=3", FaissConfig(path="/abs", index="hnsw", metric="l2", dim=3)),
        ("faiss:a b?seal_rows=16", FaissConfig(path="a b", seal_rows=16)),
        ("qdrant:memory/notes", QdrantConfig(path="memory/notes")),
        (
            "qdrant:http://127.0.0.1:6333?collection=notes&timeout_s=2.5",
            QdrantConfig(url="http://127.0.0.1:6333", collection="notes", timeout_s=2.5),
        ),
        ("qdrant:https://host", QdrantConfig(url="https://host")),
        ("lancedb:memory/notes?table=t", LanceConfig(uri="memory/notes", table="t")),
        ("lancedb:s3://bucket/notes?index_rows=1000", LanceConfig(uri="s3://bucket/notes", index_rows=1000)),
        ("lancedb:gs://b/p", LanceConfig(uri="gs://b/p")),
    ],
)
def test_a_uri_says_what_the_class_says(uri, expected):
    assert parse_store_uri(uri) == expected


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("memory/notes", "begins with faiss:, qdrant:, lancedb:"),
        ("chroma:x", "begins with faiss:, qdrant:, lancedb:"),
        ("", "begins with faiss:, qdrant:, lancedb:"),
        ("faiss:", "no place after faiss:"),
        ("faiss:?index=flat", "no place after faiss:"),
        ("faiss:x?indx=flat", "unknown option 'indx'; faiss has .*index"),
        ("faiss:x?path=y", "unknown option 'path'"),
        ("faiss:x?index=kd", "index"),
        ("faiss:x?dim=0", "dim"),
        ("faiss:x?dim=many", "dim"),
        ("faiss:x?metric=", "metric"),
        ("qdrant:x?collection=", "collection"),
        ("lancedb:x?table=a/b", "table"),
    ],
)
def test_a_wrong_uri_says_what_is_wrong(uri, message):
    with pytest.raises(ConfigError, match=message):
        parse_store_uri(uri)


def test_qdrant_is_in_one_place():
    for places in ({}, {"path": "x", "url": "http://127.0.0.1:6333"}):
        with pytest.raises(ConfigError, match="either path .* or url"):
            QdrantConfig(**places)


def test_open_store_takes_a_uri_and_a_configuration(tmp_path):
    with open_store(f"qdrant:{tmp_path}/q?dim=2") as store:
        assert (store.driver, store.dim) == ("qdrant", 2)
    with open_store(LanceConfig(uri=f"{tmp_path}/l", metric="dot")) as store:
        assert (store.driver, store.metric) == ("lancedb", "dot")
