"""Every driver behind one fixture, what they are measured against, and random metadata and filters."""

import dataclasses
import os
import subprocess
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from qdrant_client import QdrantClient

from hsokv_ray import env
from hsokv_ray.memory.stores import (
    FaissConfig,
    Hit,
    LanceConfig,
    QdrantConfig,
    Record,
    StoreConfig,
    VectorStore,
    field,
    matches,
    open_store,
)
from hsokv_ray.memory.stores.filters import And, Filter, Or

SERVER = ("qdrant-server",) if os.environ.get(env.QDRANT_URL) else ()
DRIVERS = ("faiss", "faiss-flat", "qdrant-edge", "lancedb", "qdrant-bridge", *SERVER)
"""qdrant-bridge: the client of Qdrant servers, over HTTP to Qdrant's engine (tests/helpers/qdrant_bridge.py).
qdrant-server: the server at QDRANT_URL, where that is set."""
BRIDGE = Path(__file__).parents[3] / "helpers" / "qdrant_bridge.py"
BRIDGE_KEY_ENV = "HSOKV_TEST_BRIDGE_KEY"
TOLERANCE = 1e-5
"""Tolerance of a score, relative to the lengths that went into it."""


@dataclasses.dataclass
class Driver:
    """A place where one store is, which can be opened again and again."""

    name: str
    config: Callable[..., StoreConfig]

    def open(self, **options: Any) -> VectorStore:
        return open_store(self.config(**options))


class Oracle:
    """A dictionary, searched row by row in float64."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.rows: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}

    def upsert(self, ids: list[str], vectors: Any, metadata: list[dict[str, Any]]) -> int:
        for id, vector, each in zip(ids, np.asarray(vectors, np.float64), metadata, strict=True):
            self.rows[id] = (self._as_stored(vector), each)
        return len(set(ids))

    def delete(self, ids: list[str]) -> int:
        return sum(self.rows.pop(id, None) is not None for id in ids)

    def passing(self, filter: Filter | None) -> list[str]:
        return [id for id, (_, metadata) in self.rows.items() if matches(filter, metadata)]

    def score(self, query: Any, id: str) -> float:
        vector, query = self.rows[id][0], self._as_stored(np.asarray(query, np.float64))
        return -float(((query - vector) ** 2).sum()) if self.metric == "l2" else float(query @ vector)

    def check_hits(self, hits: list[Hit], query: Any, top_k: int, filter: Filter | None) -> None:
        """The hits are the nearest, in order, with their scores; ids must agree where scores are not tied."""
        expected = sorted(((self.score(query, id), id) for id in self.passing(filter)), reverse=True)
        slack = TOLERANCE * max(1.0, *(self._size(query, id) for _, id in expected)) if expected else 0
        assert len(hits) == min(top_k, len(expected))
        assert len({hit.id for hit in hits}) == len(hits)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        for i, hit in enumerate(hits):
            assert hit.metadata == self.rows[hit.id][1]
            assert hit.score == pytest.approx(self.score(query, hit.id), abs=slack)
            assert hit.score == pytest.approx(expected[i][0], abs=slack)
            tied = [id for score, id in expected if abs(score - expected[i][0]) <= 4 * slack]
            assert hit.id in tied

    def check_record(self, record: Record | None, id: str) -> None:
        if id not in self.rows:
            assert record is None
            return
        vector, metadata = self.rows[id]
        assert record is not None
        assert (record.id, record.metadata) == (id, metadata)
        assert record.vector.dtype == np.float32
        np.testing.assert_allclose(record.vector, vector, rtol=1e-5, atol=1e-6)

    def check_store(self, store: VectorStore) -> None:
        assert store.count() == store.stats().count == len(self.rows)
        records = list(store.records(page_size=7))
        assert sorted(record.id for record in records) == sorted(self.rows)
        for record in records:
            self.check_record(record, record.id)

    def _as_stored(self, vector: np.ndarray) -> np.ndarray:
        vector = vector.astype(np.float32).astype(np.float64)
        return vector / np.linalg.norm(vector) if self.metric == "cosine" else vector

    def _size(self, query: Any, id: str) -> float:
        lengths = float(np.linalg.norm(query)), float(np.linalg.norm(self.rows[id][0]))
        return max(lengths) ** 2 if self.metric == "l2" else lengths[0] * lengths[1]


@pytest.fixture(scope="session")
def new_oracle() -> type[Oracle]:
    return Oracle


@pytest.fixture(scope="session", params=DRIVERS)
def driver_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def new_driver(driver_name: str) -> Iterator[Callable[[Path], Driver]]:
    """Return a function that makes the driver's store in a folder; collections on a server are deleted after."""
    if driver_name == "qdrant-server":
        yield from _on_server(driver_name, os.environ[env.QDRANT_URL], env.QDRANT_API_KEY)
    elif driver_name == "qdrant-bridge":
        with _running_bridge() as port:
            yield from _on_server(driver_name, f"http://127.0.0.1:{port}", BRIDGE_KEY_ENV)
    else:
        yield lambda folder: Driver(driver_name, _configuration(driver_name, folder))


@pytest.fixture
def driver(new_driver: Callable[[Path], Driver], tmp_path: Path) -> Driver:
    return new_driver(tmp_path)


@pytest.fixture
def store(driver: Driver) -> Iterator[VectorStore]:
    """An empty store with the default metric."""
    with driver.open() as store:
        yield store


def _configuration(name: str, folder: Path) -> Callable[..., StoreConfig]:
    match name:
        case "faiss":
            return lambda **options: FaissConfig(path=str(folder / "faiss"), seal_rows=16, **options)
        case "faiss-flat":
            return lambda **options: FaissConfig(path=str(folder / "flat"), index="flat", seal_rows=16, **options)
        case "qdrant-edge":
            return lambda **options: QdrantConfig(path=str(folder / "qdrant"), **options)
        case "lancedb":
            return lambda **options: LanceConfig(uri=str(folder / "lance"), **options)
    raise AssertionError(name)


@contextmanager
def _running_bridge() -> Iterator[int]:
    """The bridge in a process of its own, which ends with its input."""
    process = subprocess.Popen([sys.executable, str(BRIDGE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    os.environ[BRIDGE_KEY_ENV] = "bridge-key"
    try:
        yield int(process.stdout.readline())
    finally:
        del os.environ[BRIDGE_KEY_ENV]
        process.stdin.close()
        process.wait(timeout=30)
        process.stdout.close()


def _on_server(name: str, url: str, key_env: str) -> Iterator[Callable[[Path], Driver]]:
    collections: list[str] = []

    def make(_: Path) -> Driver:
        collection = f"hsokv-test-{uuid.uuid4().hex}"
        collections.append(collection)
        return Driver(
            name, lambda **options: QdrantConfig(url=url, collection=collection, api_key_env=key_env, **options)
        )

    yield make
    if name == "qdrant-bridge":
        return  # it takes them with it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the key over http, which goes to this machine
        client = QdrantClient(url=url, api_key=os.environ.get(key_env), check_compatibility=False)
    for collection in collections:
        if client.collection_exists(collection):
            client.delete_collection(collection)
    client.close()


KEYS = ("a", "b", "a.b", "日本", "x'); DROP TABLE t; --", "\\", "s\x1f", "n\x00", "")
TEXTS = ("", "a", "A", "' OR 1=1 --", "\\", '"', "é", "e\u0301", "\x00", "😀", "1", "True", "None", "2024-01-01", "/*")
NUMBERS = (0, 1, -1, 1.0, 0.1, -0.0, 5e-324, 1e308, 2**53, 2**53 + 1, 10**400, 1704067200)
DATES = ("2024-01-01", "2024-01-01T00:00:00Z", "2023-12-31T23:59:59.999999", "2024-01-01T01:00:00+01:00", "0001-01-01")

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(),
    st.sampled_from(TEXTS + DATES),
    st.text(st.characters(codec="utf-8"), max_size=6),
)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=5,
)
_paths = st.lists(st.sampled_from(KEYS[:-1]), min_size=1, max_size=2).map(
    lambda keys: ".".join(key.replace("\\", "\\\\").replace(".", "\\.") for key in keys)
)
_bounds = st.one_of(
    st.sampled_from(NUMBERS + DATES), st.floats(allow_nan=False, allow_infinity=False), st.integers(-3, 3)
)
_OPERATORS: dict[str, tuple[Any, Callable[..., Filter]]] = {
    "eq": (_scalars, lambda at, value: at == value),
    "ne": (_scalars, lambda at, value: at != value),
    "in": (st.lists(_scalars, max_size=3), lambda at, values: at.is_in(values)),
    "nin": (st.lists(_scalars, max_size=3), lambda at, values: at.not_in(values)),
    "gt": (_bounds, lambda at, value: at > value),
    "gte": (_bounds, lambda at, value: at >= value),
    "lt": (_bounds, lambda at, value: at < value),
    "lte": (_bounds, lambda at, value: at <= value),
    "contains": (_scalars, lambda at, value: at.contains(value)),
    "exists": (st.none(), lambda at, _: at.exists()),
}


@st.composite
def _comparisons(draw: Any) -> Filter:
    values, build = _OPERATORS[draw(st.sampled_from(sorted(_OPERATORS)))]
    return build(field(draw(_paths)), draw(values))


_filters = st.recursive(
    _comparisons(),
    lambda inner: st.one_of(
        inner.map(lambda part: ~part),
        st.lists(inner, max_size=3).map(lambda parts: And(tuple(parts))),
        st.lists(inner, max_size=3).map(lambda parts: Or(tuple(parts))),
    ),
    max_leaves=4,
)


@pytest.fixture(scope="session")
def random() -> SimpleNamespace:
    """Strategies: metadata and filters over few keys and values, so that they often meet."""
    return SimpleNamespace(
        metadata=st.dictionaries(st.sampled_from(KEYS), _values, max_size=4), filters=_filters, scalars=_scalars
    )
