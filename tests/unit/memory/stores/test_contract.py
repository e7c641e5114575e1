"""What every driver does, case by case: the same results, the same errors."""

import threading

import numpy as np
import pytest

from hsokv_ray.errors import ConfigError, DataError, HsokvError, StoreError
from hsokv_ray.memory.stores import Record, field

DIM = 4
IDS = [f"r{i}" for i in range(40)]
VECTORS = np.random.default_rng(7).standard_normal((40, DIM)).astype(np.float32)
METADATA = [{"i": i, "even": i % 2 == 0, "tags": [f"t{i % 3}"]} for i in range(40)]
UNICODE = ["é", "e\u0301", "日本語", "😀", "\x00", "a\x00b", "\n", " ", "'", '"', "\\", "%_", "; DROP TABLE x; --",
           "a/b", "../x", "\u202e", "\ufeff", "𝔘", "*", "?", "a" * 4096]  # fmt: skip


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture
def filled(store, new_oracle):
    oracle = new_oracle("cosine")
    assert store.upsert(IDS, VECTORS, METADATA) == oracle.upsert(IDS, VECTORS, METADATA) == 40
    return store, oracle


@pytest.fixture(scope="module")
def unchanged(new_driver, new_oracle, tmp_path_factory):
    """The same for tests after which the store is as it was."""
    oracle = new_oracle("cosine")
    oracle.upsert(IDS, VECTORS, METADATA)
    with new_driver(tmp_path_factory.mktemp("unchanged")).open() as store:
        store.upsert(IDS, VECTORS, METADATA)
        yield store, oracle


def test_an_empty_store_answers_every_question(store):
    assert store.dim is None
    assert store.query(np.ones((2, DIM))) == [[], []]
    assert store.query(np.ones(3), filter={"a": 1}) == [[]]
    assert store.get(["a", "b"]) == [None, None]
    assert store.delete(["a"]) == store.delete(filter={}) == store.count() == store.count({"a": 1}) == 0
    assert (store.scroll().records, store.scroll().cursor, list(store.records())) == ([], None, [])
    stats = store.stats()
    assert (stats.count, stats.dim, stats.metric, stats.driver) == (0, None, "cosine", store.driver)
    store.optimize()


def test_empty_batches_do_nothing(store):
    assert store.upsert([], []) == store.upsert([], np.zeros((0, DIM)), []) == 0
    assert store.query([]) == store.query(np.zeros((0, DIM))) == []
    assert store.get([]) == []
    assert store.delete([]) == 0
    assert store.dim is None


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_the_nearest_come_first_with_the_score_of_the_metric(driver, new_oracle, metric):
    oracle = new_oracle(metric)
    oracle.upsert(IDS, VECTORS * 3, METADATA)
    with driver.open(metric=metric) as store:
        store.upsert(IDS, VECTORS * 3, METADATA)
        queries = np.random.default_rng(8).standard_normal((5, DIM)).astype(np.float32)
        for query, hits in zip(queries, store.query(queries, top_k=7), strict=True):
            oracle.check_hits(hits, query, 7, None)
        [itself] = store.query(VECTORS[3] * 3, top_k=1)
        if metric != "dot":
            assert itself[0].id == "r3"
            assert itself[0].score == pytest.approx({"cosine": 1.0, "l2": 0.0}[metric], abs=1e-5)


@pytest.mark.parametrize("metric", ["dot", "l2"])
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_vectors_of_any_length_keep_their_order(driver, metric, scale):
    vectors = np.float32([[1, 0], [2, 0], [3, 0], [-1, 0]]) * np.float32(scale)
    with driver.open(metric=metric) as store:
        store.upsert(["1", "2", "3", "-1"], vectors)
        [hits] = store.query(np.float32([4, 0]) * np.float32(scale), top_k=4)
    assert [hit.id for hit in hits] == ["3", "2", "1", "-1"]
    x = np.float64([3, 2, 1, -1])
    expected = (4 * x if metric == "dot" else -((4 - x) ** 2)) * scale**2
    assert [hit.score for hit in hits] == pytest.approx(expected.tolist(), rel=1e-4)


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_a_zero_vector_is_a_point_like_any_other_without_cosine(driver, metric):
    with driver.open(metric=metric) as store:
        store.upsert(["0", "1"], [[0, 0], [1, 0]])
        [hits] = store.query([2.0, 0.0])
        assert [(hit.id, hit.score) for hit in hits] == (
            [("1", 2.0), ("0", 0.0)] if metric == "dot" else [("1", -1.0), ("0", -4.0)]
        )
        [hits] = store.query([0.0, 0.0])
        assert {hit.id: hit.score for hit in hits} == ({"0": 0, "1": 0} if metric == "dot" else {"0": 0, "1": -1})


def test_top_k_may_exceed_the_store(unchanged):
    store, oracle = unchanged
    for top_k in (40, 41, 100_000):
        oracle.check_hits(store.query(VECTORS[0], top_k)[0], VECTORS[0], top_k, None)


def test_a_batch_of_queries_equals_its_queries_one_by_one(unchanged):
    store, _ = unchanged
    together = store.query(VECTORS[:9], top_k=3, filter={"even": True})
    alone = [store.query(vector, top_k=3, filter={"even": True})[0] for vector in VECTORS[:9]]
    assert [[hit.id for hit in hits] for hits in together] == [[hit.id for hit in hits] for hits in alone]
    one = [hit.score for hits in alone for hit in hits]
    assert [hit.score for hits in together for hit in hits] == pytest.approx(one, abs=1e-6)


def test_get_keeps_the_order_and_repeats(unchanged):
    store, oracle = unchanged
    ids = ["r5", "missing", "r1", "r5", "r39"]
    records = store.get(ids)
    assert len(records) == 5
    for id, record in zip(ids, records, strict=True):
        oracle.check_record(record, id)


def test_vectors_come_back_as_the_metric_stores_them(driver):
    with driver.open(metric="l2") as store:
        store.upsert(IDS, VECTORS)
        assert np.array_equal(np.stack([record.vector for record in store.get(IDS)]), VECTORS)


def test_an_upsert_replaces_the_whole_record(filled):
    store, _ = filled
    assert store.upsert(["r1"], [VECTORS[2]], [{"new": 1}]) == 1
    assert store.count() == 40
    [record] = store.get(["r1"])
    assert record.metadata == {"new": 1}
    np.testing.assert_allclose(record.vector, unit(VECTORS[2]), atol=1e-6)
    assert store.count({"i": 1}) == 0
    assert [hit.id for hit in store.query(VECTORS[2], 2)[0]] == ["r1", "r2"]
    store.upsert(["r1"], [VECTORS[1]])
    assert store.get(["r1"])[0].metadata == {}


def test_of_an_id_twice_in_a_batch_the_last_row_counts(store):
    assert store.upsert(["a", "b", "a"], np.eye(3), [{"v": 1}, {"v": 2}, {"v": 3}]) == 2
    assert store.count() == 2
    assert store.get(["a"]) == [Record("a", np.float32([0, 0, 1]), {"v": 3})]
    assert [hit.id for hit in store.query([1.0, 0, 0], 5, filter={"v": 1})[0]] == []


def test_delete_says_how_many_there_were(filled):
    store, oracle = filled
    assert store.delete(["r0", "r0", "missing", "r39"]) == 2
    assert store.delete(["r0"]) == 0
    assert store.delete(filter={"even": True}) == 19
    assert store.delete(filter=field("i") > 1000) == 0
    oracle.delete([id for id, each in zip(IDS, METADATA, strict=True) if each["even"] or id == "r39"])
    oracle.check_store(store)
    oracle.check_hits(store.query(VECTORS[2], 50)[0], VECTORS[2], 50, None)
    assert store.delete(filter={}) == 19
    assert store.query(VECTORS[0]) == [[]]
    assert store.upsert(["r0"], VECTORS[:1]) == 1
    assert [hit.id for hit in store.query(VECTORS[0])[0]] == ["r0"]


def test_delete_needs_ids_or_a_filter(store):
    with pytest.raises(DataError, match="either ids or a filter"):
        store.delete()
    with pytest.raises(DataError, match="either ids or a filter"):
        store.delete(["a"], filter={})


def test_a_filtered_query_returns_top_k_of_what_matches(unchanged):
    store, oracle = unchanged
    for filter in (field("i") == 33, field("i").is_in([1, 2, 3]), field("tags").contains("t2"), field("i") >= 20):
        for top_k in (1, 3, 20):
            oracle.check_hits(store.query(-VECTORS[33], top_k, filter)[0], -VECTORS[33], top_k, filter)


def test_filters_on_missing_keys_compare_as_in_python(store):
    store.upsert(["null", "missing", "one", "text"], np.eye(4), [{"k": None}, {}, {"k": 1}, {"k": "1"}])

    def passing(filter):
        return sorted(record.id for record in store.records(filter))

    everything = ["missing", "null", "one", "text"]
    assert passing(field("k") == None) == ["missing", "null"]  # noqa: E711
    assert passing(field("k") != None) == ["one", "text"]  # noqa: E711
    assert passing(field("k") == 1) == ["one"]
    assert passing(field("k") != 1) == ["missing", "null", "text"]
    assert passing(field("k").is_in([1, None])) == ["missing", "null", "one"]
    assert passing(field("k").not_in([1])) == ["missing", "null", "text"]
    assert passing(field("k").not_in([1, None])) == ["text"]
    assert passing(field("k").exists()) == ["null", "one", "text"]
    assert passing(~field("k").exists()) == ["missing"]
    assert passing(field("k") > 0) == passing(field("k") <= 1) == ["one"]
    assert passing(~(field("k") > 0)) == ["missing", "null", "text"]
    assert passing(field("other") == 1) == passing(field("k").contains(1)) == []
    assert passing(field("other") != 1) == passing(field("k.deeper") != 1) == everything
    assert [hit.id for hit in store.query([0, 0, 1.0, 0], filter=field("k") != 1)[0]] == ["missing", "null", "text"]


def test_ids_and_metadata_hold_any_unicode(driver):
    vectors = np.random.default_rng(1).standard_normal((len(UNICODE), DIM))
    metadata = [{text[:50]: text, "nested": {"list": [text, {"k": text}]}} for text in UNICODE]
    with driver.open() as store:
        store.upsert(UNICODE, vectors, metadata)
    with driver.open() as store:
        assert store.count() == len(UNICODE)
        assert sorted(record.id for record in store.records(page_size=3)) == sorted(UNICODE)
        for text, vector, each in zip(UNICODE, vectors, metadata, strict=True):
            [record] = store.get([text])
            assert (record.id, record.metadata) == (text, each)
            assert store.query(vector, top_k=1)[0][0].id == text
            path = text[:50].replace("\\", "\\\\").replace(".", "\\.")
            assert [r.id for r in store.records(field(path) == text)] == [text]
        assert store.delete(UNICODE[:5]) == 5
        assert store.count() == len(UNICODE) - 5


INJECTIONS = ["' OR 1=1 --", "'; DROP TABLE hsokv; --", "\\' OR 'a'='a", "']) OR array_has_any(terms, ['",
              "') OR (true", "/*", "*/", "${1}", "?", ":id", "\x00' OR true", "’ OR 1=1", "ʼ", "a' || 'b",
              "%", "`", '" OR ""="']  # fmt: skip


@pytest.mark.parametrize("text", INJECTIONS)
def test_text_in_a_filter_or_an_id_is_never_a_command(unchanged, text):
    store, _ = unchanged
    key = text.replace("\\", "\\\\").replace(".", "\\.")
    for filter in (
        field("even") == text,
        field(key) == text,
        field(key) > 0,
        field(key).exists(),
        field("tags").contains(text),
        field("i").is_in([text, text + "'"]),
    ):
        assert store.count(filter) == 0
        assert store.count(~filter) == 40
        assert store.delete(filter=filter) == 0
    assert store.get([text]) == [None]
    assert store.delete([text]) == 0
    store.upsert([text], VECTORS[:1], [{text: text, "number": {text: 2.5}}])
    assert [r.id for r in store.records(field(key) == text)] == [text]
    assert [r.id for r in store.records(field(f"number.{key}") > 2)] == [text]
    assert store.delete([text]) == 1
    assert store.count() == 40


def test_metadata_of_10_megabytes_comes_back(driver):
    metadata = {"text": "x" * 10 * 2**20, "small": 1}
    with driver.open() as store:
        store.upsert(["large", "small"], np.eye(2), [metadata, {}])
        assert store.query([1.0, 0.0], 1)[0][0].metadata == metadata
    with driver.open() as store:
        assert store.get(["large"])[0].metadata == metadata
        assert [r.id for r in store.records(field("text") == metadata["text"])] == ["large"]


def test_metadata_above_the_limit_is_refused(store):
    with pytest.raises(DataError, match="at most 16777216 are allowed"):
        store.upsert(["a"], [[1.0]], [{"text": "x" * 17 * 2**20}])
    assert store.count() == 0


REFUSED = {
    "wrong dimension": (["a"], [[1.0, 2.0]], None, "got 2 dimensions; this store has 4"),
    "NaN": (["a", "b"], [[1, 2, 3, 4], [np.nan, 0, 0, 1]], None, "row 1 holds NaN or infinity"),
    "infinite": (["a"], [[np.inf, 0, 0, 1]], None, "row 0 holds NaN or infinity"),
    "beyond float32": (["a"], [[1e300, 0, 0, 1]], None, "row 0 holds NaN or infinity"),
    "zero": (["a"], [[0, 0, 0, 0]], None, "row 0 is all zeros"),
    "fewer vectors": (["a", "b"], [[1, 2, 3, 4]], None, "got 1 for 2 ids"),
    "fewer metadata": (["a", "b"], np.ones((2, 4)), [{}], "got 1 for 2 ids"),
    "no ids": ([], [[1, 2, 3, 4]], None, "got 1 for 0 ids"),
    "ragged": (["a", "b"], [[1, 2, 3, 4], [1]], None, "cannot be read as numbers"),
    "text": (["a"], [["1", "2", "3", "4"]], None, "cannot be read as numbers"),
    "an empty id": ([""], [[1, 2, 3, 4]], None, "empty string"),
    "a numeric id": ([1], [[1, 2, 3, 4]], None, "strings are needed"),
    "a surrogate id": (["\ud800"], [[1, 2, 3, 4]], None, "lone surrogate"),
    "a long id": (["a" * 5000], [[1, 2, 3, 4]], None, "at most 4096"),
    "metadata that is a list": (["a"], [[1, 2, 3, 4]], [[]], "got list"),
    "metadata with NaN": (["a"], [[1, 2, 3, 4]], [{"x": float("nan")}], "JSON cannot hold"),
    "metadata with an object": (["a"], [[1, 2, 3, 4]], [{"x": object()}], "JSON cannot hold"),
    "metadata with a surrogate": (["a"], [[1, 2, 3, 4]], [{"x": "\ud800"}], "lone surrogate"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_batch_is_refused_whole(unchanged, case):
    store, oracle = unchanged
    ids, vectors, metadata, message = REFUSED[case]
    with pytest.raises(DataError, match=message) as caught:
        store.upsert(ids, vectors, metadata)
    assert "\n" not in str(caught.value)
    oracle.check_store(store)


@pytest.mark.parametrize("query", [[1.0, 2.0], [[np.nan, 0, 0, 0]], [0, 0, 0, 0], np.zeros((2, 0)), np.ones((1, 1, 4))])
def test_a_bad_query_is_refused(unchanged, query):
    with pytest.raises(DataError, match="vectors: "):
        unchanged[0].query(query)


@pytest.mark.parametrize("top_k", [0, -1, True, 1.5, "3", None])
def test_top_k_is_a_whole_number_of_at_least_one(unchanged, top_k):
    with pytest.raises(DataError, match="top_k"):
        unchanged[0].query(VECTORS[0], top_k)


def test_everything_is_there_after_reopening(driver, new_oracle):
    oracle = new_oracle("cosine")
    for start in range(0, 40, 10):
        rows = slice(start, start + 10)
        with driver.open() as store:
            store.upsert(IDS[rows], VECTORS[rows], METADATA[rows])
            oracle.upsert(IDS[rows], VECTORS[rows], METADATA[rows])
            assert store.delete([IDS[start]]) == oracle.delete([IDS[start]]) == 1
    with driver.open(dim=DIM) as store:
        assert store.dim == DIM
        oracle.check_store(store)
        oracle.check_hits(store.query(VECTORS[0], 40)[0], VECTORS[0], 40, None)
        assert store.count(field("i") >= 20) == 18


def test_another_metric_or_dimension_is_refused_on_reopening(driver):
    with driver.open(metric="l2") as store:
        store.upsert(IDS, VECTORS)
    with pytest.raises(ConfigError, match="metric"):
        driver.open(metric="cosine")
    with pytest.raises(ConfigError, match="dim"):
        driver.open(metric="l2", dim=DIM + 1)
    with driver.open(metric="l2") as store:
        assert store.count() == 40


def test_a_dimension_given_beforehand_is_kept(driver):
    with driver.open(dim=3) as store:
        assert store.dim == 3
        assert store.count() == 0
        assert store.query([1.0, 0, 0]) == [[]]
        with pytest.raises(DataError, match="2 dimensions; this store has 3"):
            store.upsert(["a"], [[1.0, 2.0]])
        store.upsert(["a"], [[1.0, 2.0, 3.0]])


def test_closing_twice_is_fine_and_use_after_close_is_an_error(driver):
    store = driver.open()
    store.upsert(IDS, VECTORS)
    store.close()
    store.close()
    for use in (
        lambda: store.upsert(["a"], [[1.0] * DIM]),
        lambda: store.query(VECTORS[0]),
        lambda: store.get(["r0"]),
        lambda: store.delete(["r0"]),
        store.count,
        store.scroll,
        store.stats,
        store.optimize,
    ):
        with pytest.raises(StoreError, match="is closed"):
            use()


def test_closing_a_store_that_was_never_written_is_fine(driver):
    driver.open().close()
    with driver.open() as store:
        assert store.count() == 0


@pytest.mark.parametrize("page_size", [1, 7, 40, 1000])
def test_scroll_visits_every_record_once(unchanged, page_size):
    store, oracle = unchanged
    seen, cursor, pages = [], None, 0
    while True:
        page = store.scroll(field("i") != 5, page_size=page_size, cursor=cursor)
        assert len(page.records) <= page_size
        seen += page.records
        pages += 1
        if (cursor := page.cursor) is None:
            break
    assert sorted(record.id for record in seen) == sorted(set(IDS) - {"r5"})
    assert pages <= 39 // page_size + 1
    for record in seen:
        oracle.check_record(record, record.id)


def test_scroll_visits_untouched_records_once_whatever_is_written_in_between(store):
    store.upsert(IDS, VECTORS, METADATA)
    page = store.scroll(page_size=5)
    seen = [record.id for record in page.records]
    touched = set()
    for step in range(100):
        if page.cursor is None:
            break
        changed = [id for id in IDS if id not in seen and id not in touched][:1]
        if changed and step % 2:
            store.delete(changed)
        elif changed:
            store.upsert(changed, VECTORS[:1], [{"changed": True}])
        touched |= set(changed)
        store.upsert([f"new{step}-{i}" for i in range(4)], np.ones((4, DIM)))
        if step % 3 == 2:
            store.optimize()
        page = store.scroll(page_size=5, cursor=page.cursor)
        seen += [record.id for record in page.records]
    assert page.cursor is None
    assert len(set(seen) & set(IDS) - touched) == len([id for id in seen if id in set(IDS) - touched])
    assert set(IDS) - touched <= set(seen)


@pytest.mark.parametrize("cursor", ["x", "", "after:", "99", "\ud800", "null", "é"])
def test_a_cursor_of_someone_else_is_refused(unchanged, cursor):
    with pytest.raises(DataError, match="cursor"):
        unchanged[0].scroll(cursor=cursor)


@pytest.mark.parametrize("page_size", [0, -1, True, 2.5])
def test_a_page_has_at_least_one_record(unchanged, page_size):
    with pytest.raises(DataError, match="page_size"):
        unchanged[0].scroll(page_size=page_size)


def test_optimizing_changes_no_answer(filled):
    store, oracle = filled
    store.delete(IDS[:10])
    oracle.delete(IDS[:10])
    store.optimize()
    oracle.check_store(store)
    oracle.check_hits(store.query(VECTORS[0], 40)[0], VECTORS[0], 40, None)
    stats = store.stats()
    assert stats.disk_bytes is None or stats.disk_bytes > 0


def test_filters_as_deep_and_wide_as_allowed_work(unchanged):
    store, _ = unchanged
    deep = field("i") == 3
    for level in range(15):
        deep = ~deep if level % 3 == 0 else (deep & (field("i") >= 0) if level % 3 == 1 else deep | (field("i") == 99))
    assert store.count(deep) == 39
    wide = {"$or": [{"$and": [{"i": i}, {"i": {"$lt": 50}}]} for i in range(500)]}
    assert store.count(wide) == store.count({"$not": {"$not": wide}}) == 40
    assert store.count(field("i").is_in(range(20_000))) == 40
    assert len(store.query(VECTORS[0], 50, wide)[0]) == 40


def test_threads_may_share_a_store(filled):
    store, _ = filled
    failures = []

    def work(name):
        try:
            for i in range(5):
                store.upsert([f"{name}-{i}"], VECTORS[:1] + i)
                assert store.query(VECTORS[0], 5)[0]
                assert store.get([f"{name}-{i}"])[0] is not None
        except (AssertionError, HsokvError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.count() == 60


def test_numbers_are_ordered_as_doubles_exactly(driver):
    bits = np.random.default_rng(3).integers(0, 2**64, 300, dtype=np.uint64).view(np.float64)
    numbers = [*bits[np.isfinite(bits)].tolist(), 0.0, -0.0, 5e-324, -5e-324, 0.1, 1e23, 1.7976931348623157e308]
    numbers += [float(np.nextafter(x, np.inf)) for x in numbers[:100]]
    with driver.open() as store:
        store.upsert([f"{i}" for i in range(len(numbers))], np.ones((len(numbers), 2)), [{"x": x} for x in numbers])
        store.optimize()
        for bound in numbers[::12]:
            assert store.count(field("x") > bound) == sum(x > bound for x in numbers)
            assert store.count(field("x") >= bound) == sum(x >= bound for x in numbers)
            assert store.count(field("x") < bound) == sum(x < bound for x in numbers)
            assert store.count(field("x") <= bound) == sum(x <= bound for x in numbers)
            assert store.count(field("x") == bound) == sum(x == bound for x in numbers)


def test_a_place_that_cannot_be_written_is_a_store_error(new_driver, driver_name, tmp_path):
    if driver_name in ("qdrant-server", "qdrant-bridge"):
        pytest.skip("a server has no folder")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError) as caught, new_driver(tmp_path / "file").open() as store:
        store.upsert(["a"], [[1.0]])
    assert "\n" not in str(caught.value)
