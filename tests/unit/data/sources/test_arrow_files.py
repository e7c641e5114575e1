import datetime
import gzip
import json
import random

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.data.config import DataConfig
from hsokv_ray.data.plan import resolve_plan
from hsokv_ray.data.reading import ReadCounts, read_in_order
from hsokv_ray.data.sources.arrow_files import gather
from hsokv_ray.errors import DataError

TEXTS = [f"document {i} " * (i % 7 + 1) for i in range(500)]


def _read(source, **flags):
    plan = resolve_plan(DataConfig(source=str(source), **flags), seed=0)
    counts = ReadCounts()
    return [d.text for part in plan.parts for d in read_in_order(plan, part, split="all", counts=counts)], counts


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_type_of_string_column_is_text(tmp_path, kind):
    texts = pa.array(TEXTS).dictionary_encode() if isinstance(kind, pa.DictionaryType) else pa.array(TEXTS, kind)
    table = pa.table({"n": pa.array(range(500)), "body": texts})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=64)
    assert sorted(_read(tmp_path)[0]) == sorted(TEXTS)


def test_row_groups_are_parts_and_stay_in_order(tmp_path):
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "a.parquet", row_group_size=10)
    plan = resolve_plan(DataConfig(source=str(tmp_path), logical_ranks=1), seed=0)
    assert len(plan.parts) > 1
    assert _read(tmp_path, logical_ranks=1)[0] == TEXTS


def test_rows_without_a_text_column_are_json_with_every_type_written(tmp_path):
    table = pa.table({"a": ["x"], "b": ["y"], "when": [datetime.datetime(2020, 1, 2)], "raw": [b"z"], "many": [[1, 2]]})
    pq.write_table(table, tmp_path / "a.parquet")
    (text,) = _read(tmp_path)[0]
    assert json.loads(text) == {"a": "x", "b": "y", "when": "2020-01-02 00:00:00", "raw": "b'z'", "many": [1, 2]}


def test_a_file_that_lacks_the_column_has_its_rows_counted(tmp_path):
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"other": ["two", "three"]}), tmp_path / "b.parquet")
    texts, counts = _read(tmp_path)
    assert texts == ["one"]
    assert counts.missing_text_documents == 2


def test_a_gz_of_parquet_is_read(tmp_path):
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "a.parquet")
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert sorted(_read(tmp_path / "a.parquet.gz")[0]) == sorted(TEXTS)


def test_the_arrow_files_of_datasets_are_read_batch_by_batch(tmp_path):
    with datasets.arrow_writer.ArrowWriter(path=str(tmp_path / "a.arrow"), writer_batch_size=30) as writer:
        for text in TEXTS:
            writer.write({"text": text})
        writer.finalize()
    plan = resolve_plan(DataConfig(source=str(tmp_path / "a.arrow"), logical_ranks=1), seed=0)
    assert len(plan.parts) > 1
    assert _read(tmp_path / "a.arrow", logical_ranks=1)[0] == TEXTS


@given(st.lists(st.integers(0, 20_000_000), max_size=30), st.integers(1, 9_000_000))
def test_gathered_spans_cover_every_unit_in_order_within_the_target(sizes, target):
    spans = gather(sizes, target=target)
    assert [i for span in spans for i in range(span.start, span.stop)] == list(range(len(sizes)))
    for span in spans:
        assert span.num_bytes == sum(sizes[span.start : span.stop])
        assert span.num_bytes <= target or span.stop - span.start == 1


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_truncated_table_is_named_or_skipped(tmp_path, name):
    if name == "a.parquet":
        pq.write_table(pa.table({"text": TEXTS}), tmp_path / name)
    else:
        with datasets.arrow_writer.ArrowWriter(path=str(tmp_path / name), writer_batch_size=30) as writer:
            for text in TEXTS:
                writer.write({"text": text})
            writer.finalize()
    data = (tmp_path / name).read_bytes()
    (tmp_path / "good.txt").write_text("good")
    rng = random.Random(0)
    for cut in sorted(rng.sample(range(len(data)), 25)):
        (tmp_path / name).write_bytes(data[:cut])
        texts, counts = _read(tmp_path, on_bad_shard="skip")
        assert "good" in texts
        assert set(texts) <= {"good", *TEXTS}
        if len(texts) < 501:
            with pytest.raises(DataError, match=f"{name}: .*give --on-bad-shard skip"):
                _read(tmp_path)
