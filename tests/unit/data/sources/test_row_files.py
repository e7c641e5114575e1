import csv
import gzip
import io
import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.data.config import DataConfig
from hsokv_ray.data.plan import resolve_plan
from hsokv_ray.data.reading import ReadCounts, read_in_order
from hsokv_ray.data.sources.base import ReadOptions, Shard
from hsokv_ray.data.sources.row_files import Delimited, JsonLines
from hsokv_ray.errors import DataError

# What a document can hold; NUL marks a binary file, so it is left out.
_TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\ufeff"), max_size=30)


def _options():
    return ReadOptions.from_config(DataConfig())


def _read(source, **flags):
    plan = resolve_plan(DataConfig(source=str(source), **flags), seed=0)
    counts = ReadCounts()
    return [d.text for part in plan.parts for d in read_in_order(plan, part, split="all", counts=counts)], counts


def _spanned(format_, path, target, column):
    shard = Shard(str(path))
    spans = format_.spans(shard, column=column, target=target, options=_options())
    return [r.text() for s in spans for r in format_.records(shard, s, column=column, options=_options())]


@settings(max_examples=60, deadline=None)
@given(st.lists(_TEXT, min_size=1, max_size=20), st.integers(1, 80))
def test_jsonl_spans_of_any_size_hold_every_line_once(tmp_path_factory, texts, target):
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), "utf-8", newline="")
    assert _spanned(JsonLines(), path, target, "text") == texts


@settings(max_examples=60, deadline=None)
@given(st.lists(_TEXT, min_size=1, max_size=20), st.integers(1, 80), st.sampled_from(",\t"))
def test_delimited_spans_of_any_size_hold_what_the_csv_module_reads(tmp_path_factory, texts, target, delimiter):
    path = tmp_path_factory.mktemp("rows") / "a.csv"
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter)
    writer.writerows([["n", "text"], *([i, t] for i, t in enumerate(texts))])
    path.write_bytes(buffer.getvalue().encode())
    reference = [row["text"] for row in csv.DictReader(io.StringIO(buffer.getvalue(), newline=""), delimiter=delimiter)]
    assert _spanned(Delimited(delimiter), path, target, "text") == reference


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.ndjson", "a.json", "object.json"])
def test_every_row_format_and_its_gz_gives_one_document_per_row(tmp_path, name, suffix):
    texts = [f'row {i}, with "quotes",\ta tab\nand a line' for i in range(40)]
    rows = [{"id": i, "text": t} for i, t in enumerate(texts)]
    buffer = io.StringIO(newline="")
    if name.endswith(("csv", "tsv")):
        writer = csv.DictWriter(buffer, ["id", "text"], delimiter="," if name.endswith("csv") else "\t")
        writer.writeheader()
        writer.writerows(rows)
    elif name.endswith(".json"):
        json.dump(rows if name == "a.json" else {"version": 1, "data": rows}, buffer)
    else:
        buffer.write("".join(json.dumps(row) + "\n" for row in rows))
    data = buffer.getvalue().encode()
    (tmp_path / (name + suffix)).write_bytes(gzip.compress(data) if suffix else data)
    read, counts = _read(tmp_path / (name + suffix))
    assert sorted(read) == sorted(texts)
    assert counts.documents == 40


def test_the_only_column_that_is_not_numbers_is_the_text_of_a_csv(tmp_path):
    (tmp_path / "a.csv").write_text("id,score,review\n1,0.5,good\n2,,bad\n")
    assert sorted(_read(tmp_path)[0]) == ["bad", "good"]


def test_a_row_without_a_plain_text_column_is_json(tmp_path):
    (tmp_path / "a.csv").write_text("title,body\nA,B\n")
    assert [json.loads(text) for text in _read(tmp_path)[0]] == [{"title": "A", "body": "B"}]


def test_text_column_overrides_and_an_unknown_one_lists_the_columns(tmp_path):
    (tmp_path / "a.csv").write_text("title,text\nA,B\n")
    assert _read(tmp_path, text_column="title")[0] == ["A"]
    with pytest.raises(DataError, match="a.csv has no column 'body'; it has title, text"):
        _read(tmp_path, text_column="body")


def test_fields_longer_than_the_csv_module_s_default_are_read(tmp_path):
    text = "long " * 100_000
    (tmp_path / "a.csv").write_text(f"text\n{text}\n")
    assert _read(tmp_path)[0] == [text]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", 'text\none\n"open quote\n', "row at offset 9: unexpected end of data"),
        ("a.json", '[{"text": "a"}', "Expecting ',' delimiter"),
        ("a.json", '{"a": [], "b": []}', "json holds dict with 2 lists"),
        ("a.json", '"text"', "json holds str with 0 lists"),
    ],
)
def test_a_damaged_file_is_named_with_the_cause(tmp_path, name, data, message):
    (tmp_path / name).write_text(data)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        _read(tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_json_file_too_large_to_parse_as_a_whole_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hsokv_ray.data.sources.row_files.MAX_JSON_BYTES", 100)
    (tmp_path / "a.json").write_text(json.dumps(["x" * 200]))
    with pytest.raises(DataError, match="write it as jsonl"):
        _read(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz"])
def test_a_truncated_gz_stops_or_keeps_what_lies_before_the_damage(tmp_path, name):
    rng = random.Random(0)
    rows = [f"row{i}x{rng.random()}" for i in range(4000)]
    lines = [json.dumps({"text": r}) if "jsonl" in name else r for r in rows]
    data = "\n".join(lines if "jsonl" in name else ["text", *lines]).encode()
    torn = gzip.compress(data)
    (tmp_path / name).write_bytes(torn[: len(torn) // 2])
    with pytest.raises(DataError, match=re.escape(str(tmp_path / name)) + ".*give --on-bad-shard skip"):
        _read(tmp_path, logical_ranks=1)
    read, counts = _read(tmp_path, logical_ranks=1, on_bad_shard="skip")
    assert read == rows[: len(read)]
    assert 500 < len(read) < 4000
    assert counts.to_dict()["bad_shards"] == 1
    assert str(tmp_path / name) in counts.bad_shards[0]
