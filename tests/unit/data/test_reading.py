import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.data.config import DataConfig
from hsokv_ray.data.plan import resolve_plan
from hsokv_ray.data.reading import Document, ReadCounts, content_hash, read_documents, shuffled
from hsokv_ray.errors import DataError


def _read(config, *, split="all", seed=0, epoch=0):
    plan = resolve_plan(config, seed=seed)
    counts = ReadCounts()
    documents = [d for part in plan.parts for d in read_documents(plan, part, split=split, epoch=epoch, counts=counts)]
    return documents, counts


def _write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_the_split_is_complete_disjoint_and_about_its_share(tmp_path):
    texts = [f"text {i}" for i in range(3000)]
    config = DataConfig(source=_write_jsonl(tmp_path / "a.jsonl", texts), val_split=0.2)
    train, train_counts = _read(config, split="train")
    val, val_counts = _read(config, split="val")
    assert sorted(d.text for d in train + val) == sorted(texts)
    # Four standard deviations of a binomial of 3,000 draws at 0.2.
    assert abs(len(val) - 600) < 4 * (3000 * 0.2 * 0.8) ** 0.5
    assert train_counts.held_out_documents == val_counts.documents == len(val)
    assert val_counts.held_out_documents == len(train)


def test_copies_of_a_document_never_straddle_the_split(tmp_path):
    texts = [f"text {i % 50}" for i in range(500)]
    config = DataConfig(source=_write_jsonl(tmp_path / "a.jsonl", texts), val_split=0.3)
    train = {d.text for d in _read(config, split="train")[0]}
    val = {d.text for d in _read(config, split="val")[0]}
    assert train
    assert val
    assert not train & val


def test_the_split_depends_on_the_seed_only():
    texts = [f"text {i}" for i in range(200)]
    assert [content_hash(t, seed=1) for t in texts] == [content_hash(t, seed=1) for t in texts]
    assert [content_hash(t, seed=1) for t in texts] != [content_hash(t, seed=2) for t in texts]


@given(st.integers(0, 60), st.one_of(st.none(), st.integers(0, 70)), st.integers(0, 2**32))
def test_a_shuffle_is_a_permutation_fixed_by_its_generator(count, most, seed):
    documents = [Document(str(i), "x") for i in range(count)]
    first = list(shuffled(iter(documents), np.random.default_rng(seed), most=most))
    assert first == list(shuffled(iter(documents), np.random.default_rng(seed), most=most))
    assert sorted(int(d.id) for d in first) == list(range(count))
    if most == 0:
        assert first == documents
    elif most is not None:
        # A buffer of n cannot bring a document forward by more than n places.
        assert all(int(d.id) - place <= most for place, d in enumerate(first))


def test_counts_add_up_field_by_field():
    a = ReadCounts(documents=1, text_bytes=5, bad_shards=["x: torn"])
    b = ReadCounts(documents=2, bad_rows=3, bad_shards=["x: torn", "y: torn"])
    total = a + b
    assert (total.documents, total.text_bytes, total.bad_rows) == (3, 5, 3)
    assert total.to_dict()["bad_shards"] == 2


def test_ascii_only_skips_and_counts(tmp_path):
    config = DataConfig(source=_write_jsonl(tmp_path / "a.jsonl", ["plain", "été", "more"]), ascii_only=True)
    documents, counts = _read(config)
    assert sorted(d.text for d in documents) == ["more", "plain"]
    assert counts.non_ascii_documents == 1


def test_every_row_that_gives_no_document_is_counted(tmp_path):
    rows = [{"text": "good"}, {"text": ""}, {"text": None}, {"other": 1}, {"text": "  \n"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    documents, counts = _read(DataConfig(source=str(path)))
    assert [d.text for d in documents] == ["good"]
    assert (counts.empty_documents, counts.missing_text_documents) == (3, 1)


BAD_UTF8 = b"caf\xe9 au lait and more text"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", BAD_UTF8),
        ("a.jsonl", b'{"text": "' + BAD_UTF8 + b'"}\n'),
        ("a.json", b'[{"text": "' + BAD_UTF8 + b'"}]'),
        ("a.csv", b"text\n" + BAD_UTF8 + b"\n"),
        ("a.tsv", b"text\tn\n" + BAD_UTF8 + b"\t1\n"),
    ],
)
def test_bytes_that_are_not_utf8_are_replaced_and_counted_or_refused_with_the_offset(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    documents, counts = _read(DataConfig(source=str(path)))
    assert documents[0].text == "caf\ufffd au lait and more text"
    assert counts.replaced_documents == 1
    with pytest.raises(DataError, match=re.escape(f"{path}#") + r"\d+: not UTF-8 at byte 3 of the document"):
        _read(DataConfig(source=str(path), on_bad_text="error"))


def test_a_lone_surrogate_in_json_is_replaced_and_a_pair_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "lone \\ud800 pair \\ud83d\\ude00"}\n')
    documents, counts = _read(DataConfig(source=str(path)))
    assert documents[0].text == "lone \ufffd pair \U0001f600"
    assert counts.replaced_documents == 1


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.jsonl", "a.csv", "a.json"])
def test_binary_given_as_text_is_refused_with_the_offset(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"PK\x03\x04abc\x00\x01")
    with pytest.raises(DataError, match=re.escape(f"{path}: zero byte at offset 7, so it is binary or UTF-16")):
        _read(DataConfig(source=str(path)))


def test_a_binary_file_among_others_can_be_skipped_by_name(tmp_path):
    (tmp_path / "a.txt").write_text("good")
    (tmp_path / "b.txt").write_bytes(b"\x00\x01")
    config = DataConfig(source=str(tmp_path), on_bad_shard="skip")
    documents, _ = _read(config)
    assert [d.text for d in documents] == ["good"]
    assert [bad.split(": ")[0] for bad in resolve_plan(config, seed=0).bad_shards] == [str(tmp_path / "b.txt")]


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.jsonl", '{"text": "one"}\n{"text": "two\n{"text": "three"}\n'), ("a.csv", "text,n\none,1\ntwo\nthree,3\n")],
)
def test_a_bad_row_stops_with_its_offset_or_is_counted(tmp_path, name, data):
    path = tmp_path / name
    path.write_text(data)
    offset = data.index("two") if name == "a.csv" else data.index('{"text": "two')
    with pytest.raises(DataError, match=re.escape(f"{path}#{offset}: bad row")):
        _read(DataConfig(source=str(path), logical_ranks=1))
    documents, counts = _read(DataConfig(source=str(path), on_bad_shard="skip"))
    assert sorted(d.text for d in documents) == ["one", "three"]
    assert counts.bad_rows == 1
