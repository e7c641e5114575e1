import gzip
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.data.config import DataConfig
from hsokv_ray.data.plan import Part, ShardPlan, balance, resolve_plan, validation_plan
from hsokv_ray.data.reading import ReadCounts, read_documents
from hsokv_ray.errors import ConfigError, DataError


def _write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def _stream_ids(plan, epoch=0):
    counts = ReadCounts()
    return [
        [
            doc.id
            for part in plan.stream_parts(s, epoch)
            for doc in read_documents(plan, part, split="all", epoch=epoch, counts=counts)
        ]
        for s in range(plan.num_streams)
    ]


@pytest.mark.parametrize("name", ["one.csv", "one.csv.gz", "one.jsonl", "one.json"])
def test_streams_are_disjoint_and_complete_also_over_a_single_file(tmp_path, name):
    rows = [f"document {i}" for i in range(101)]
    if ".csv" in name:
        data = "id,text\n" + "".join(f'{i},"{row}"\n' for i, row in enumerate(rows))
    elif name.endswith("jsonl"):
        data = "".join(json.dumps({"text": row}) + "\n" for row in rows)
    else:
        data = json.dumps([{"text": row} for row in rows])
    opener = gzip.open if name.endswith("gz") else open
    with opener(tmp_path / name, "wt") as file:
        file.write(data)
    plan = resolve_plan(DataConfig(source=str(tmp_path / name), logical_ranks=7), seed=3)
    counts = ReadCounts()
    texts = [
        doc.text
        for s in range(7)
        for part in plan.stream_parts(s, 0)
        for doc in read_documents(plan, part, split="all", epoch=0, counts=counts)
    ]
    assert sorted(texts) == sorted(rows)
    assert counts.documents == 101
    assert all(plan.stream_parts(s, 0) for s in range(7))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 10_000_000), min_size=1, max_size=40),
    st.integers(1, 24),
)
def test_balanced_parts_cover_every_document_number_once_and_no_stream_goes_empty(sizes, num_streams):
    parts = [Part(index=i, shard=f"s{i}", start=0, stop=-1, num_bytes=n) for i, n in enumerate(sizes)]
    divided = balance(parts, num_streams=num_streams)
    for part in parts:
        pieces = [piece for piece in divided if piece.shard == part.shard]
        for number in range(30):
            assert sum(number % piece.modulus == piece.remainder for piece in pieces) == 1
    assert len(divided) >= num_streams


def test_passes_differ_in_order_but_not_in_documents(tmp_path):
    source = _write_jsonl(tmp_path / "a.jsonl", [f"text number {i} " * 20 for i in range(400)])
    plan = resolve_plan(DataConfig(source=source, logical_ranks=3), seed=0)
    first, again, second = _stream_ids(plan), _stream_ids(plan), _stream_ids(plan, epoch=1)
    assert first == again
    for a, b in zip(first, second, strict=True):
        assert a != b
        assert sorted(a) == sorted(b)


def test_another_seed_gives_another_order_and_digest(tmp_path):
    source = _write_jsonl(tmp_path / "a.jsonl", [f"text {i}" for i in range(100)])
    a, b = (resolve_plan(DataConfig(source=source), seed=seed) for seed in (0, 1))
    assert _stream_ids(a) != _stream_ids(b)
    assert a.digest != b.digest


def test_a_plan_survives_json_with_its_digest(tmp_path):
    (tmp_path / "data").mkdir()
    _write_jsonl(tmp_path / "data" / "a.jsonl", ["one", "two"])
    (tmp_path / "data" / "b.txt").write_text("three")
    (tmp_path / "data" / "c.pdf").write_text("not read")
    plan = resolve_plan(DataConfig(source=str(tmp_path / "data")), seed=5)
    plan.save(tmp_path / "plan.json")
    loaded = ShardPlan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert loaded.digest == plan.digest
    assert _stream_ids(loaded) == _stream_ids(plan)
    assert not (tmp_path / "plan.json.tmp").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 99}', None])
def test_a_damaged_plan_file_is_named(tmp_path, text):
    if text is not None:
        (tmp_path / "plan.json").write_text(text)
    with pytest.raises(DataError, match="plan.json: not a plan of the data"):
        ShardPlan.load(tmp_path / "plan.json")


def test_resolving_again_gives_the_same_digest_and_a_changed_file_another(tmp_path):
    source = _write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    first = resolve_plan(DataConfig(source=source), seed=0).digest
    assert resolve_plan(DataConfig(source=source), seed=0).digest == first
    _write_jsonl(tmp_path / "a.jsonl", ["one", "three"])
    assert resolve_plan(DataConfig(source=source), seed=0).digest != first


def test_streams_default_to_a_multiple_of_the_workers(tmp_path):
    source = _write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    streams = [resolve_plan(DataConfig(source=source), seed=0, num_workers=n).num_streams for n in (1, 3, 5)]
    assert streams == [12, 12, 60]


def test_workers_that_do_not_divide_the_ranks_are_refused_with_the_choices(tmp_path):
    source = _write_jsonl(tmp_path / "a.jsonl", ["one"])
    with pytest.raises(ConfigError, match="--num-workers 4 does not divide --logical-ranks 6; use 1, 2, 3, 6 workers"):
        resolve_plan(DataConfig(source=source, logical_ranks=6), seed=0, num_workers=4)


def test_the_validation_file_has_its_own_plan_and_is_read_whole(tmp_path):
    source = _write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    val = _write_jsonl(tmp_path / "val.jsonl", ["three", "four", "five"])
    assert validation_plan(DataConfig(source=source), seed=0) is None
    plan = validation_plan(DataConfig(source=source, val_file=val, logical_ranks=2), seed=0)
    assert plan is not None
    assert sum(len(ids) for ids in _stream_ids(plan)) == 3


def test_large_streams_are_even_to_the_stated_share(tmp_path):
    for i in range(13):
        _write_jsonl(tmp_path / f"{i:02}.jsonl", [f"row {j} of file {i}" for j in range(300)])
    plan = resolve_plan(DataConfig(source=str(tmp_path), logical_ranks=12), seed=0)
    loads = [sum(part.num_bytes for part in plan.stream_parts(s, 0)) for s in range(12)]
    assert max(loads) <= 1.25 * sum(loads) / 12


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no usable file among 0 files; supported are txt, md, csv"),
        ({"a.pdf": "x", "b.doc": "y"}, "no usable file among 2 (a.pdf, b.doc)"),
        ({"a.txt": ""}, "holds no text (all files are empty)"),
        ({"a.txt": " \n\n "}, "no document has text (empty_documents"),
        ({"a.jsonl": '{"text": null}\n{"text": ""}\n'}, "no document has text (empty_documents"),
        ({"a.txt": "été"}, "no document has text (non_ascii_documents"),
    ],
)
def test_a_source_without_documents_is_refused(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        resolve_plan(DataConfig(source=str(tmp_path), ascii_only=True), seed=0)
