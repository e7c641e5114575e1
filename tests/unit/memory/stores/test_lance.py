"""What only LanceDB has: SQL, an index past a number of rows, versions, several openers of a table."""

import subprocess
import sys

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.errors import ConfigError
from hsokv_ray.memory.stores import LanceConfig, field, matches, open_store
from hsokv_ray.memory.stores.facets import AllOf, AnyOf, HasAny, NoneOf, compile_filter
from hsokv_ray.memory.stores.lance import store as lance_store
from hsokv_ray.memory.stores.lance.filters import literal, to_sql

RNG = np.random.default_rng(0)


@given(st.text())
def test_a_literal_ends_where_its_text_ends(text):
    quoted = literal(text)
    assert quoted[0] == quoted[-1] == "'"
    assert quoted[1:-1].replace("''", "") == text.replace("'", "")
    assert quoted[1:-1].replace("''", "'") == text


def test_complements_are_pushed_to_the_comparisons():
    a, b = HasAny(("a",)), HasAny(("b",))
    assert to_sql(NoneOf(AllOf((a, NoneOf(b))))) == to_sql(AnyOf((NoneOf(a), b)))
    assert to_sql(NoneOf(NoneOf(a))) == to_sql(a)
    assert [to_sql(AllOf(())), to_sql(AnyOf(())), to_sql(HasAny(())), to_sql(NoneOf(HasAny(())))] == [
        "true", "false", "false", "true",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A LanceDB store of random metadata, filled by the first test that needs it."""
    with open_store(LanceConfig(uri=str(tmp_path_factory.mktemp("lance")))) as store:
        yield store


@settings(max_examples=15)
@given(data=st.data())
def test_sql_passes_what_the_filter_passes(table, random, data):
    metadata = data.draw(st.lists(random.metadata, min_size=5, max_size=20))
    table.delete(filter={})
    table.upsert([str(i) for i in range(len(metadata))], np.ones((len(metadata), 2)), metadata)
    for _ in range(10):
        filter = data.draw(random.filters)
        expected = {str(i) for i, each in enumerate(metadata) if matches(filter, each)}
        assert {record.id for record in table.records(filter)} == expected, to_sql(compile_filter(filter))


@pytest.fixture
def indexed(tmp_path):
    """More rows than `index_rows`, so that there are indexes; then some more that are not in them yet."""
    config = LanceConfig(uri=str(tmp_path), index_rows=256)
    vectors = RNG.standard_normal((600, 8)).astype(np.float32)
    with open_store(config) as store:
        store.upsert([f"{i}" for i in range(500)], vectors[:500], [{"i": i, "k": i % 7} for i in range(500)])
        store.upsert([f"{i}" for i in range(500, 600)], vectors[500:], [{"i": i, "k": i % 7} for i in range(500, 600)])
        yield store, vectors


def test_an_index_is_built_past_the_threshold_and_changes_no_answer(indexed, new_oracle):
    store, vectors = indexed
    stats = store.stats()
    assert (stats.index, stats.details["partitions"]) == ("IVF_FLAT", 22)
    oracle = new_oracle("cosine")
    oracle.upsert([f"{i}" for i in range(600)], vectors, [{"i": i, "k": i % 7} for i in range(600)])
    for step in range(3):
        for filter in (None, field("k") == 3, field("k") != 3, field("i") >= 550, field("i") < 550):
            oracle.check_hits(store.query(vectors[555], 600, filter)[0], vectors[555], 600, filter)
        oracle.check_store(store)
        gone = [f"{i}" for i in range(step * 100, step * 100 + 50)]
        assert store.delete(gone) == oracle.delete(gone)
        moved, metadata = [f"{i}" for i in range(540, 560)], [{"i": 1000 + i, "k": 3} for i in range(20)]
        store.upsert(moved, -vectors[:20] - step, metadata)
        oracle.upsert(moved, -vectors[:20] - step, metadata)
        if step == 1:
            store.optimize()
    oracle.check_store(store)


def test_every_row_finds_itself_in_the_index(indexed):
    store, vectors = indexed
    assert [hits[0].id for hits in store.query(vectors, 1)] == [f"{i}" for i in range(600)]


def test_the_index_is_known_after_reopening_and_rebuilt_as_the_table_grows(indexed, tmp_path):
    store, _ = indexed
    config = LanceConfig(uri=str(tmp_path), index_rows=256)
    with open_store(config) as again:
        assert again.stats().details["partitions"] == 22
        again.upsert([f"more-{i}" for i in range(1600)], RNG.standard_normal((1600, 8)))
        assert again.stats().details["partitions"] == 46
        assert again.count() == 2200
    with open_store(config) as again:
        assert again.stats().details["partitions"] == 46
    assert store.count() == 2200


def test_old_versions_go_after_enough_commits(tmp_path, monkeypatch):
    monkeypatch.setattr(lance_store, "OPTIMIZE_AFTER", 8)
    monkeypatch.setattr(lance_store, "KEEP_VERSIONS", lance_store.timedelta(milliseconds=1))
    with open_store(LanceConfig(uri=str(tmp_path))) as store:
        for i in range(33):
            store.upsert([f"{i}"], [[1.0, i]])
        versions = lancedb.connect(str(tmp_path)).open_table("hsokv").list_versions()
        assert len(versions) < 12
        assert store.count() == 33


def test_several_openers_see_each_others_writes(tmp_path):
    config = LanceConfig(uri=str(tmp_path))
    with open_store(config) as one, open_store(config) as other:
        one.upsert(["a"], [[1.0, 0.0]])
        assert other.dim == 2
        other.upsert(["b"], [[0.0, 1.0]])
        assert one.count() == other.count() == 2
        assert one.delete(["b"]) == 1
        assert other.get(["b"]) == [None]


def test_a_table_of_someone_else_is_refused(tmp_path):
    lancedb.connect(str(tmp_path)).create_table("hsokv", pa.table({"id": ["a"]}))
    with pytest.raises(ConfigError, match="not made by hsokv_ray"):
        open_store(f"lancedb:{tmp_path}")
    with open_store(f"lancedb:{tmp_path}?table=mine") as store:
        assert store.count() == 0


def test_many_tables_may_share_a_folder(tmp_path):
    for i in range(25):
        open_store(f"lancedb:{tmp_path}?table=t{i}&dim=2").close()
    with open_store(f"lancedb:{tmp_path}?table=t24") as store:
        assert store.dim == 2


def test_an_object_store_uri_reaches_lancedb(monkeypatch):
    with open_store("lancedb:memory://bucket/notes") as store:
        store.upsert(["a"], [[1.0]])
        assert store.count() == 1
        assert store.stats().disk_bytes is None


def test_a_missing_package_says_what_to_install():
    code = (
        "import sys; sys.modules['lancedb'] = None\n"
        "from hsokv_ray.memory.stores import open_store; open_store('lancedb:x')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'ConfigError: lancedb: the package is missing: pip install "hsokv_ray[lancedb]"' in done.stderr
