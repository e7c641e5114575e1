import json
import shutil

import numpy as np
import pytest

from hsokv_ray.data import (
    BlockStream,
    DataConfig,
    DataCursor,
    ReadCounts,
    load_tokenizer,
    open_token_set,
    read_in_process,
    read_pretokenized,
    resolve_plan,
    resolve_pretokenized,
    sample_tokens,
    split_token_set,
    tokenize_plan,
    train_tokenizer,
    write_token_set,
)
from hsokv_ray.errors import DataError

NUM_DOCUMENTS = 400


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    rng = np.random.default_rng(0)
    lines = (json.dumps({"text": f"story {i} " + "word " * int(rng.integers(1, 40))}) for i in range(NUM_DOCUMENTS))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["story word 0123456789 "] * 20, 300)


@pytest.fixture(scope="module")
def written(corpus, tokenizer, tmp_path_factory):
    plan = resolve_plan(DataConfig(source=str(corpus)), seed=0)
    documents = tokenize_plan(plan, tokenizer=tokenizer, counts=ReadCounts())
    folder = tmp_path_factory.mktemp("out") / "tokens"
    return write_token_set(folder, documents, tokenizer=tokenizer, source=plan.uri, shard_tokens=2000)


def documents(tokens, tokenizer):
    return sorted(text for text in tokenizer.decode(tokens).split("<|endoftext|>") if text)


def test_the_shards_hold_every_document_of_the_source_and_its_tokenizer(written, corpus, tokenizer):
    assert len(written.shards) > 1
    plan = resolve_pretokenized(DataConfig(source=str(written.folder)), seed=0)
    tokens = sample_tokens(plan, read_pretokenized(plan, split="all"), max_tokens=10**7)
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    assert documents(tokens, tokenizer) == sorted(texts)
    assert len(tokens) == written.num_tokens
    assert written.num_documents == NUM_DOCUMENTS
    assert load_tokenizer(written.tokenizer_path).fingerprint == tokenizer.fingerprint == written.tokenizer_fingerprint


def test_the_sides_of_the_split_are_disjoint_and_complete_and_follow_the_seed(written, tokenizer):
    sides = {}
    for seed in (0, 1):
        plan = resolve_pretokenized(DataConfig(source=str(written.folder), val_split=0.25), seed=seed)
        train, val = (
            documents(sample_tokens(plan, read_pretokenized(plan, split=split), max_tokens=10**7), tokenizer)
            for split in ("train", "val")
        )
        assert not set(train) & set(val)
        assert len(train) + len(val) == NUM_DOCUMENTS
        assert 0.15 * NUM_DOCUMENTS < len(val) < 0.35 * NUM_DOCUMENTS
        sides[seed] = val
    assert sides[0] != sides[1]


def test_copies_of_a_document_fall_on_the_same_side(tmp_path, tokenizer):
    lines = [json.dumps({"text": f"copied {i % 20}"}) for i in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    plan = resolve_plan(DataConfig(source=str(tmp_path / "a.jsonl")), seed=0)
    written = write_token_set(
        tmp_path / "tokens",
        tokenize_plan(plan, tokenizer=tokenizer, counts=ReadCounts()),
        tokenizer=tokenizer,
        source="s",
    )
    sides = [
        set().union(
            *(documents(d.tokens, tokenizer) for d in split_token_set(written.folder, split=s, val_split=0.3, seed=0))
        )
        for s in ("train", "val")
    ]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 20


def test_killed_and_resumed_with_2_1_3_workers_keeps_the_order(written):
    plan = resolve_pretokenized(DataConfig(source=str(written.folder)), seed=0)
    unbroken = BlockStream(plan, read_pretokenized(plan), seq_len=24, epochs=2).take(420)
    cursor, rows = None, {}
    for workers, num_blocks in ((2, 31), (1, 50), (3, 60), (2, 64)):
        cursors = []
        for rank in range(workers):
            stream = BlockStream(
                plan, read_pretokenized(plan), seq_len=24, epochs=2, rank=rank, world_size=workers, cursor=cursor
            )
            blocks = stream.take(num_blocks)
            rows |= {blocks.first_index + i * workers: row for i, row in enumerate(blocks.tokens)}
            cursors.append(stream.cursor())
        cursor = DataCursor.merge(cursors)
    np.testing.assert_array_equal([rows[i] for i in sorted(rows)], unbroken.tokens)


def test_passes_read_the_same_documents_in_another_order(written, tokenizer):
    plan = resolve_pretokenized(DataConfig(source=str(written.folder), val_split=0, logical_ranks=1), seed=0)
    stream = BlockStream(plan, read_pretokenized(plan), seq_len=written.num_tokens, epochs=2)
    joined = stream.take(2).tokens[:, :-1]
    first, second = joined[0], joined[1]
    assert first.tolist() != second.tolist()
    assert documents(first, tokenizer) == documents(second, tokenizer)


def test_a_part_of_fewer_documents_than_streams_is_divided_between_them(written, corpus, tokenizer):
    plan = resolve_pretokenized(DataConfig(source=str(written.folder), val_split=0, logical_ranks=60), seed=0)
    assert sum(part.num_documents or 0 for part in plan.parts if part.modulus == 1) <= NUM_DOCUMENTS
    tokens = sample_tokens(plan, read_pretokenized(plan), max_tokens=10**7)
    assert len(tokens) == written.num_tokens
    assert all(plan.stream_parts(stream, 0) for stream in range(60))


@pytest.mark.parametrize("name", ["tokens-00000.bin", "tokens-00001.npy", "tokenizer/tokenizer.json"])
def test_a_flipped_byte_or_a_missing_file_is_named(written, tmp_path, name):
    folder = tmp_path / "copy"
    shutil.copytree(written.folder, folder)
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"{name} is damaged.*jobs/pretokenize.py"):
        resolve_pretokenized(DataConfig(source=str(folder)), seed=0)
    path.unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        open_token_set(folder)


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(DataError, match="manifest.json.*jobs/pretokenize.py"):
        open_token_set(tmp_path)


def test_a_folder_that_is_not_empty_is_left_alone(written, tokenizer):
    with pytest.raises(DataError, match="is not empty"):
        write_token_set(written.folder, iter([]), tokenizer=tokenizer, source="s")
    open_token_set(written.folder)


def test_a_writer_that_fails_leaves_nothing(tmp_path, tokenizer, corpus):
    plan = resolve_plan(DataConfig(source=str(corpus)), seed=0)

    def failing():
        yield from list(tokenize_plan(plan, tokenizer=tokenizer, counts=ReadCounts()))[:2]
        raise DataError("the source broke off")

    with pytest.raises(DataError, match="broke off"):
        write_token_set(tmp_path / "tokens", failing(), tokenizer=tokenizer, source="s")
    with pytest.raises(DataError, match="no document to write"):
        write_token_set(tmp_path / "tokens", iter([]), tokenizer=tokenizer, source="s")
    assert list(tmp_path.iterdir()) == []


def test_reading_shards_gives_the_tokens_of_reading_the_text(written, corpus, tokenizer):
    text_plan = resolve_plan(DataConfig(source=str(corpus), val_split=0), seed=0)
    token_plan = resolve_pretokenized(DataConfig(source=str(written.folder), val_split=0), seed=0)
    from_text = sample_tokens(
        text_plan, read_in_process(text_plan, tokenizer=tokenizer, split="train"), max_tokens=10**7
    )
    from_shards = sample_tokens(token_plan, read_pretokenized(token_plan), max_tokens=10**7)
    assert sorted(from_text) == sorted(from_shards)
    assert documents(from_text, tokenizer) == documents(from_shards, tokenizer)
