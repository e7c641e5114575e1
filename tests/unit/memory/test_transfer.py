"""Rows from files, between stores and to Parquet: nothing lost, nothing twice, whatever breaks off."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.errors import ConfigError, DataError, StoreError
from hsokv_ray.memory.parquet_export import check_fit, export_records, read_header
from hsokv_ray.memory.records import ENCODER
from hsokv_ray.memory.row_files import Placed, Position, file_digest, open_rows
from hsokv_ray.memory.stores import VectorStore, open_store, parse_store_uri
from hsokv_ray.memory.transfer import copy_records, differing_records, load_rows
from hsokv_ray.memory.transfer_state import TransferState, state_for
from hsokv_ray.meter import Meter

DIM = 5
ENGINES = ["faiss", "qdrant", "lancedb"]
AWKWARD: dict[str, dict[str, Any]] = {
    "plain": {},
    " leading and trailing ": {"text": "", "n": None, "deep": {"a": [1, 2.5, True, {"b": []}]}},
    "'; DROP TABLE x; --": {"q'uote": 'd"ouble', "back\\slash": "$&|()"},
    "e\u0301 vs \u00e9": {"é": "é", "e\u0301": "e\u0301"},
    "🧠\u200d👩\u2028\u0000\t": {"\u0000": "\u0000", "🧠": ["🧠"]},
    "a" * 1000: {"big": 2**53, "small": -1e-300, "neg": -0.5, "key.with.dots": {"x.y": 1}},
    "00000000-0000-0000-0000-000000000000": {"_id": "mine", "id": 3, "vector": "v", "metadata": {}},
    "42": {"_encoder": "abc"},
}


def vectors_of(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num, DIM)).astype(np.float32)


def quiet() -> Meter:
    return Meter("test", total=None, out=io.StringIO())


def state_in(folder: Path, source: str = "one") -> TransferState:
    return TransferState(folder, "store", ["test"], source)


def contents(store: VectorStore) -> dict[str, tuple[dict, list[float]]]:
    return {record.id: (record.metadata, [round(float(x), 5) for x in record.vector]) for record in store.records()}


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def rows_of(num: int) -> list[dict[str, Any]]:
    vectors = vectors_of(num)
    return [{"id": f"r{i}", "vector": vectors[i].tolist(), "metadata": {"i": i}} for i in range(num)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VectorStore]:
    with open_store(f"faiss:{tmp_path / 'store'}") as store:
        yield store


def load(store: VectorStore, path: Path, **options: Any) -> Any:
    source = open_rows(path)
    state = state_in(path.parent, file_digest(path))
    return load_rows(store, source, state=state, meter=quiet(), **{"batch_size": 4} | options)


class BrokenOff(Exception):
    """Stands for a kill."""


class Breaking:
    """A file of rows that ends in a kill after `num` rows."""

    def __init__(self, path: Path, num: int) -> None:
        self._file, self._num = open_rows(path), num
        self.path, self.total, self.unit = self._file.path, self._file.total, self._file.unit

    def rows(self, start: Position) -> Iterator[Placed]:
        for i, placed in enumerate(self._file.rows(start)):
            if i == self._num:
                raise BrokenOff
            yield placed


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
@pytest.mark.parametrize("kind", ["jsonl", "flat jsonl", "parquet", "list parquet", "struct parquet", "npz"])
def test_each_kind_of_file_gives_the_same_records(
    tmp_path: Path, store: VectorStore, kind: str, batch_size: int
) -> None:
    vectors, ids = vectors_of(11), [f"id {i} é" for i in range(11)]
    metadata = [{"i": i, "s": "\u2028"} for i in range(11)]
    path = tmp_path / f"rows.{kind.split()[-1]}"
    texts = [json.dumps(each) for each in metadata]
    columns: dict[str, Any] = {"id": ids, "metadata": texts, "vector": list(vectors)}
    match kind:
        case "jsonl":
            write_jsonl(
                path,
                [
                    {"id": a, "vector": v.tolist(), "metadata": m}
                    for a, v, m in zip(ids, vectors, metadata, strict=True)
                ],
            )
        case "flat jsonl":
            write_jsonl(
                path, [{"id": a, "vector": v.tolist()} | m for a, v, m in zip(ids, vectors, metadata, strict=True)]
            )
        case "parquet":
            flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIM)
            pq.write_table(pa.table(columns | {"vector": flat}), path, row_group_size=4)
        case "list parquet":
            pq.write_table(pa.table({"i": range(11), "s": ["\u2028"] * 11, "id": ids, "vector": list(vectors)}), path)
        case "struct parquet":
            pq.write_table(pa.table(columns | {"metadata": metadata}), path)
        case "npz":
            np.savez(path, ids=np.array(ids), vectors=vectors, metadata=np.array(texts))
    done = load(store, path, batch_size=batch_size)
    assert (done.rows, done.skipped) == (11, 0)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for record in store.get(ids):
        assert record is not None
        assert record.metadata == metadata[ids.index(record.id)]
        np.testing.assert_allclose(record.vector, units[ids.index(record.id)], atol=1e-6)
    assert store.count() == 11


BAD_ROWS = [
    ("{", "not JSON"),
    ("[1]", "a list where an object"),
    ({"vector": [1] * DIM}, "no id"),
    ({"id": True, "vector": [1] * DIM}, "the id True"),
    ({"id": "", "vector": [1] * DIM}, "empty string"),
    ({"id": "x"}, "no vector"),
    ({"id": "x", "vector": 5}, "the vector is 5"),
    ({"id": "x", "vector": [1] * 4}, "got 4 dimensions"),
    ({"id": "x", "vector": [1, "y", 1, 1, 1]}, "cannot be read as numbers"),
    ({"id": "x", "vector": [0] * DIM}, "all zeros"),
    ('{"id": "x", "vector": [1, 1, 1, 1, NaN]}', "NaN"),
    ({"id": "x", "vector": [1] * DIM, "metadata": 3}, "metadata is a int"),
    ({"id": "x", "vector": [1] * DIM, "metadata": "{"}, "metadata is not JSON"),
    ({"id": "x", "vector": [1] * DIM, "metadata": {"a": 1}, "a": 2}, "'a' stands beside metadata"),
    ('{"id": "x", "vector": [1, 1, 1, 1, 1], "a": Infinity}', "JSON cannot hold"),
    ('{"id": "\\ud800", "vector": [1, 1, 1, 1, 1]}', "lone surrogate"),
    ("[" * 100_000, "nested too deep|not JSON"),
]


@pytest.mark.parametrize("at", [0, 5])
@pytest.mark.parametrize(("bad", "said"), BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line_and_what_stands_before_it_is_written(
    tmp_path: Path, store: VectorStore, bad: Any, said: str, at: int
) -> None:
    rows = rows_of(9)
    path = write_jsonl(tmp_path / "rows.jsonl", [*rows[:at], "", bad, *rows[at:]])
    if at == 0:
        store.upsert(["known"], vectors_of(1))
    with pytest.raises(DataError, match=rf"rows\.jsonl:{at + 2}: .*({said})"):
        load(store, path)
    assert set(contents(store)) - {"known"} == {f"r{i}" for i in range(at)}
    meter = Meter("test", total=None, out=(out := io.StringIO()))
    state = state_in(tmp_path, file_digest(path))
    done = load_rows(store, open_rows(path), state=state, meter=meter, on_bad_row="skip", batch_size=3)
    assert (done.rows, done.skipped) == (9, 1)
    assert f"skipped {path}:{at + 2}: " in out.getvalue()
    assert set(contents(store)) - {"known"} == {f"r{i}" for i in range(9)}


def test_the_first_row_decides_the_dimensions_and_the_one_that_differs_is_named(
    tmp_path: Path, store: VectorStore
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"id": 1, "vector": [1, 2]}, {"id": 2, "vector": [1, 2, 3]}])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .*got 3 dimensions"):
        load(store, path)
    assert set(contents(store)) == {"1"}


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("rows.csv", b"", ConfigError, "unknown kind of file"),
        ("absent.jsonl", None, ConfigError, "no such file"),
        ("rows.parquet", b"PAR1 no", DataError, "not a Parquet file"),
        ("rows.npz", b"PK no", DataError, "not an npz file"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, name: str, content: bytes | None, error: type, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=said):
        open_rows(tmp_path / name)


def test_files_without_ids_with_pickles_or_unequal_lengths_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    np.savez(tmp_path / "b.npz", ids=np.array(["a", "b"]), vectors=np.ones((3, DIM)))
    np.savez(tmp_path / "c.npz", ids=np.array([{"a": 1}], object), vectors=np.ones((1, DIM)))
    for name, said in (("a.parquet", "id is needed"), ("b.npz", "equal lengths"), ("c.npz", "plain arrays")):
        with pytest.raises(DataError, match=said):
            open_rows(tmp_path / name)


def test_a_row_of_a_parquet_file_that_is_null_is_named(tmp_path: Path, store: VectorStore) -> None:
    table = pa.table({"id": ["a", "b"], "vector": pa.array([[1.0, 2.0], None], pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows\.parquet: row 2: no vector"):
        load(store, tmp_path / "rows.parquet")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "npz"])
@settings(max_examples=10)
@given(stops=st.lists(st.integers(0, 12), max_size=4), batch_size=st.integers(1, 6), seed=st.integers(0, 99))
def test_however_often_it_is_broken_off_the_end_is_that_of_one_run(
    tmp_path_factory: pytest.TempPathFactory, kind: str, stops: list[int], batch_size: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("resume")
    rng = np.random.default_rng(seed)
    ids = [f"r{i}" for i in rng.integers(0, 12, 20)]  # some come twice: the last one counts
    vectors, path = vectors_of(20, seed), folder / f"rows.{kind}"
    match kind:
        case "jsonl":
            write_jsonl(path, [{"id": ids[i], "vector": vectors[i].tolist(), "i": i} for i in range(20)])
        case "parquet":
            pq.write_table(pa.table({"id": ids, "vector": list(vectors), "i": range(20)}), path, row_group_size=7)
        case "npz":
            np.savez(path, ids=np.array(ids), vectors=vectors, i=np.arange(20))
    read = 0
    for stop in stops:
        with open_store(f"faiss:{folder / 'store'}") as store:
            state = state_in(folder)
            try:
                load_rows(store, Breaking(path, stop), state=state, meter=quiet(), batch_size=batch_size)
                break
            except BrokenOff:
                read = read + stop // batch_size * batch_size
                done, _ = state.load()
                assert (done.rows if done else 0) == read
    with open_store(f"faiss:{folder / 'store'}") as store:
        load_rows(store, open_rows(path), state=state_in(folder), meter=quiet(), batch_size=batch_size)
        expected = {id: i for i, id in enumerate(ids)}
        assert {id: metadata["i"] for id, (metadata, _) in contents(store).items()} == expected
    assert not list(folder.glob(".*progress*"))


def test_progress_counts_only_for_the_same_source_and_a_target_that_has_what_was_written(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows_of(10))
    said = io.StringIO()

    def go(name: str, source: str, stop: int) -> None:
        with open_store(f"faiss:{tmp_path / name}") as store:
            meter = Meter("test", total=None, out=said)
            load_rows(store, Breaking(path, stop), state=state_in(tmp_path, source), meter=meter, batch_size=2)

    with pytest.raises(BrokenOff):
        go("a", "one", 6)
    with pytest.raises(BrokenOff):
        go("a", "one", 2)
    assert "going on after 6 rows" in said.getvalue()
    with pytest.raises(BrokenOff):
        go("a", "two", 2)
    assert "beginning again: the source has changed" in said.getvalue()
    with pytest.raises(BrokenOff):
        go("b", "two", 3)
    assert "beginning again: the target does not hold 'r1'" in said.getvalue()
    state_in(tmp_path).path.write_text("{")
    go("b", "two", 99)
    assert "cannot be read" in said.getvalue()


def test_a_store_that_fails_stops_the_transfer_and_the_batch_is_written_by_the_next(
    tmp_path: Path, store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows_of(10))
    upsert, calls = store.upsert, iter([True, False])

    def failing(*arguments: Any) -> int:
        if not next(calls):
            raise StoreError("no room")
        return upsert(*arguments)

    monkeypatch.setattr(store, "upsert", failing)
    with pytest.raises(StoreError, match="no room"):
        load(store, path)
    monkeypatch.undo()
    assert store.count() == 4
    assert load(store, path).rows == 10
    assert store.count() == 10


def test_texts_are_encoded_marked_and_rows_that_do_not_fit_are_named(tmp_path: Path, store: VectorStore) -> None:
    class Lengths:
        fingerprint = "lengths"

        def __call__(self, texts: list[str]) -> np.ndarray:
            return np.array([[len(text), 1.0] for text in texts], np.float32)

    path = write_jsonl(tmp_path / "rows.jsonl", [{"id": "a", "text": "xyz", "lang": "en"}, {"id": "b", "text": ""}])
    assert load(store, path, encoder=Lengths()).rows == 2
    [record] = store.get(["a"])
    assert record is not None
    assert record.metadata == {"text": "xyz", "lang": "en", ENCODER: "lengths"}
    np.testing.assert_allclose(record.vector, np.array([3, 1]) / 10**0.5, rtol=1e-6)
    for row, said in (({"id": "c"}, "no text"), ({"id": "c", "text": "x", "vector": [1, 2]}, "has a vector already")):
        with pytest.raises(DataError, match=rf":1: {said}"):
            load(store, write_jsonl(tmp_path / "bad.jsonl", [row]), encoder=Lengths())


def test_a_state_stands_beside_a_local_target_else_beside_the_source(tmp_path: Path) -> None:
    source = tmp_path / "in" / "rows.jsonl"
    options = {"source": source, "source_digest": "x"}
    for uri in ("faiss:{}", "qdrant:{}", "lancedb:{}"):
        target = parse_store_uri(uri.format(tmp_path / "mem" / "notes"))
        assert state_for("upsert", target=target, **options).path.parent == tmp_path / "mem"
    remote = parse_store_uri("qdrant:http://127.0.0.1:6333?collection=x")
    assert state_for("upsert", target=remote, **options).path.parent == source.parent
    names = {state_for(command, target=remote, encoder=e, **options).path for command in "ab" for e in "xy"}
    assert len(names) == 4


@pytest.mark.parametrize(
    ("origin", "to", "by"),
    [(a, b, "migrate") for a in ENGINES for b in ENGINES]
    + [(a, b, "file") for a, b in zip(ENGINES, ENGINES[1:] + ENGINES[:1], strict=True)],
)
def test_nothing_is_lost_between_any_two_engines(tmp_path: Path, origin: str, to: str, by: str) -> None:
    ids = [*AWKWARD, *(f"more {i}" for i in range(20))]
    metadata = [*AWKWARD.values(), *({"i": i} for i in range(20))]
    with open_store(f"{origin}:{tmp_path / 'a'}") as source, open_store(f"{to}:{tmp_path / 'b'}") as target:
        source.upsert(ids, vectors_of(len(ids)), metadata)
        if by == "migrate":
            done = copy_records(source, target, state=state_in(tmp_path), meter=quiet(), batch_size=5)
            assert done.rows == len(ids)
        else:
            assert export_records(source, tmp_path / "x.parquet", meter=quiet(), batch_size=5) == len(ids)
            load(target, tmp_path / "x.parquet")
        assert {record.id: record.metadata for record in target.records()} == dict(zip(ids, metadata, strict=True))
        assert differing_records(source, target, meter=quiet(), batch_size=7) == []
        target.upsert(["plain"], vectors_of(1), [{"changed": 1}])
        target.delete(["42"])
        assert set(differing_records(source, target, meter=quiet())) == {"plain", "42"}


@pytest.mark.real_data
def test_real_sentence_vectors_come_back_from_a_file_of_them(real_data: Path, tmp_path: Path) -> None:
    with np.load(real_data / "sentence_vectors" / "minilm_sentences.npz") as arrays:
        vectors = arrays["vectors"][:5000]
    np.savez(tmp_path / "rows.npz", ids=np.arange(5000), vectors=vectors)
    with open_store(f"faiss:{tmp_path / 'a'}") as store, open_store(f"faiss:{tmp_path / 'b'}") as copy:
        assert load(store, tmp_path / "rows.npz", batch_size=1000).rows == 5000
        export_records(store, tmp_path / "x.parquet", meter=quiet())
        assert load(copy, tmp_path / "x.parquet", batch_size=1000).rows == 5000
        units = vectors.astype(np.float32) / np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
        best = (units[:50] @ units.T).max(axis=1)
        assert [hits[0].score for hits in copy.query(units[:50], 1)] == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_lengths_survive_where_the_metric_keeps_them(tmp_path: Path, metric: str) -> None:
    vectors = vectors_of(6) * 100
    with (
        open_store(f"faiss:{tmp_path / 'a'}?metric={metric}") as source,
        open_store(f"qdrant:{tmp_path / 'b'}?metric={metric}") as target,
    ):
        source.upsert([f"{i}" for i in range(6)], vectors)
        copy_records(source, target, state=state_in(tmp_path), meter=quiet())
        records = target.get([f"{i}" for i in range(6)])
        np.testing.assert_allclose(np.stack([record.vector for record in records if record]), vectors, rtol=1e-6)


def test_a_migration_that_was_broken_off_goes_on_and_one_with_a_lost_place_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(f"faiss:{tmp_path / 'a'}") as source, open_store(f"faiss:{tmp_path / 'b'}") as target:
        source.upsert([f"{i}" for i in range(20)], vectors_of(20), [{"i": i} for i in range(20)])
        upsert, left = target.upsert, iter(range(3))

        def breaking(*arguments: Any) -> int:
            if next(left, None) is None:
                raise BrokenOff
            return upsert(*arguments)

        monkeypatch.setattr(target, "upsert", breaking)
        with pytest.raises(BrokenOff):
            copy_records(source, target, state=state_in(tmp_path), meter=quiet(), batch_size=4)
        monkeypatch.undo()
        assert target.count() == 12
        state, said = state_in(tmp_path), io.StringIO()
        text = state.path.read_text()
        done = copy_records(source, target, state=state, meter=Meter("t", total=None, out=said), batch_size=4)
        assert (done.rows, target.count()) == (20, 20)
        assert "going on after 12 rows" in said.getvalue()
        values = json.loads(text)
        values["progress"]["cursor"] = "no such place"
        state.path.write_text(json.dumps(values))
        done = copy_records(source, target, state=state, meter=Meter("t", total=None, out=said), batch_size=4)
        assert (done.rows, target.count()) == (20, 20)
        assert "beginning again" in said.getvalue()


def test_a_target_that_ends_with_other_records_than_the_source_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(f"faiss:{tmp_path / 'a'}") as source, open_store(f"faiss:{tmp_path / 'b'}") as target:
        source.upsert(["a", "b"], vectors_of(2))
        upsert = target.upsert
        monkeypatch.setattr(target, "upsert", lambda ids, vectors, metadata: upsert(ids[:1], vectors[:1], metadata[:1]))
        with pytest.raises(StoreError, match="holds 2 records and the target 1"):
            copy_records(source, target, state=state_in(tmp_path), meter=quiet())


def test_an_exported_file_is_plain_parquet_that_says_what_it_holds(tmp_path: Path, store: VectorStore) -> None:
    store.upsert(["a", "b"], vectors_of(2), [{ENCODER: "e1", "x": "é"}, {}])
    export_records(store, tmp_path / "x.parquet", meter=quiet())
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.schema.field("vector").type == pa.list_(pa.float32(), DIM)
    assert {r["id"]: json.loads(r["metadata"]) for r in table.to_pylist()} == {"a": {ENCODER: "e1", "x": "é"}, "b": {}}
    header = read_header(tmp_path / "x.parquet")
    assert (header.format, header.metric, header.dim, header.encoders) == (1, "cosine", DIM, ["", "e1"])
    assert [path.name for path in tmp_path.glob("*x.parquet*")] == ["x.parquet"]


def test_an_empty_store_goes_through_a_file(tmp_path: Path, store: VectorStore) -> None:
    assert export_records(store, tmp_path / "x.parquet", meter=quiet()) == 0
    assert read_header(tmp_path / "x.parquet").dim is None
    assert load(store, tmp_path / "x.parquet").rows == 0


def test_a_failed_export_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, store: VectorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.parquet"
    path.write_text("old")
    store.upsert(["a", "b", "c"], vectors_of(3))
    scroll, left = store.scroll, iter(range(2))

    def failing(**arguments: Any) -> Any:
        if next(left, None) is None:
            raise StoreError("unreachable")
        return scroll(**arguments)

    monkeypatch.setattr(store, "scroll", failing)
    with pytest.raises(StoreError, match="unreachable"):
        export_records(store, path, meter=quiet(), batch_size=1)
    assert path.read_text() == "old"
    assert list(tmp_path.glob(".x*")) == []
    with pytest.raises(ConfigError, match="the folder .* is not there"):
        export_records(store, tmp_path / "no" / "x.parquet", meter=quiet())
    monkeypatch.undo()
    with pytest.raises(StoreError, match="cannot be written"):
        export_records(store, tmp_path / "store", meter=quiet())
    assert store.count() == 3


def test_a_file_of_another_format_or_origin_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="was not written by hsokv memory export"):
        read_header(tmp_path / "x.parquet")
    table = pa.table({"id": ["a"]}).replace_schema_metadata({"hsokv_memory": '{"format": 99}'})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match="has format 99"):
        read_header(tmp_path / "x.parquet")


def test_what_cannot_be_compared_does_not_fit(store: VectorStore) -> None:
    store.upsert(["a"], vectors_of(1), [{ENCODER: "e1"}])
    fitting = {"metric": "cosine", "dim": DIM, "encoders": ["e1"], "source": "f"}
    check_fit(store, **fitting)
    check_fit(store, **fitting | {"encoders": [""], "dim": None})
    for change, said in (
        ({"metric": "l2"}, "f has the metric l2 and the target cosine"),
        ({"dim": 9}, "f has vectors of 9 dimensions and the target of 5"),
        ({"encoders": ["e2"]}, "encoder e2 and the target of e1"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_fit(store, **fitting | change)


def test_elsewhere_than_on_a_terminal_a_line_comes_now_and_then() -> None:
    out, now = io.StringIO(), iter([0.0, 1.0, 11.0, 11.0, 12.0])
    with Meter("upsert", total=2000, out=out, clock=now.__next__) as meter:
        for done in (10, 1500, 1600):
            meter.update(done)
    assert out.getvalue() == "upsert: 1,500 of 2,000 rows\n"


def test_on_a_terminal_there_is_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with Meter("upsert", total=20, out=out) as meter:
        meter.update(5)
        meter.say("a [b] line")
        meter.update(20)
    assert re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).count("20/20 rows") == 1
    assert "a [b] line" in out.getvalue()
