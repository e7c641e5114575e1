import json
import tarfile
import threading
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import RayError

from hsokv_ray.data import (
    BlockStream,
    DataConfig,
    DataCursor,
    PartTokens,
    ReadCounts,
    load_tokenizer,
    read_in_process,
    resolve_plan,
    train_tokenizer,
)
from hsokv_ray.errors import DataError
from hsokv_ray.training import ray_data
from hsokv_ray.training.ray_data import PAGE_TOKENS, pack_parts, read_with_ray, unpack_parts

SEQ_LEN = 32


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer(["story word 0123456789 "] * 20, 300).save(folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for shard in range(3):
        lines = (json.dumps({"text": f"story {shard}.{i} " + "word " * int(rng.integers(1, 60))}) for i in range(100))
        (folder / f"{shard}.jsonl").write_text("\n".join(lines))
    return folder


def in_process(plan, tokenizer_path):
    return read_in_process(plan, tokenizer=load_tokenizer(tokenizer_path), split="train")


def take(plan, reader, num_blocks, **options):
    stream = BlockStream(plan, reader, seq_len=SEQ_LEN, **options)
    try:
        return stream.take(num_blocks), stream.cursor(), stream.counts
    finally:
        stream.close()


@settings(deadline=None)
@given(st.lists(st.integers(0, 3 * PAGE_TOKENS), min_size=1, max_size=5))
def test_packing_into_pages_loses_nothing(lengths):
    parts = [
        PartTokens(
            stream=i,
            epoch=2,
            position=7 - i,
            tokens=np.arange(length).astype(np.uint16),
            counts=ReadCounts(documents=length, bad_shards=["x"]),
        )
        for i, length in enumerate(lengths)
    ]
    block = pack_parts(parts)
    assert block["tokens"].shape == (sum(max(1, -(-length // PAGE_TOKENS)) for length in lengths), PAGE_TOKENS)
    for part, back in zip(parts, unpack_parts(block), strict=True):
        np.testing.assert_array_equal(back.tokens, part.tokens)
        assert back.tokens.dtype == np.uint16
        assert (back.stream, back.epoch, back.position, back.counts) == (part.stream, 2, part.position, part.counts)


def test_ray_data_gives_the_blocks_of_reading_in_process(ray_cluster, corpus, tokenizer_path):
    plan = resolve_plan(DataConfig(source=str(corpus)), seed=0)
    expected, cursor, counts = take(plan, in_process(plan, tokenizer_path), 900, epochs=2)
    reader = read_with_ray(plan, tokenizer_path=str(tokenizer_path), split="train", num_cpus=2)
    got, got_cursor, got_counts = take(plan, reader, 900, epochs=2)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    np.testing.assert_array_equal(got.num_targets, expected.num_targets)
    np.testing.assert_array_equal(got_cursor.streams, cursor.streams)
    assert got_counts == counts
    assert expected.num_targets[-1] == 0


def test_endless_passes_over_many_data_sets_keep_the_order(ray_cluster, corpus, tokenizer_path, monkeypatch):
    monkeypatch.setattr(ray_data, "_TASKS_PER_DATASET", 3)
    monkeypatch.setattr(ray_data, "_TASK_REQUESTS", 4)
    plan = resolve_plan(DataConfig(source=str(corpus)), seed=0)
    reader = read_with_ray(plan, tokenizer_path=str(tokenizer_path), split="train", num_cpus=0.5)
    got, _, _ = take(plan, reader, 900)
    expected, cursor, _ = take(plan, in_process(plan, tokenizer_path), 900)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    assert cursor.streams[:, 0].min() >= 2


def test_killed_workers_resume_in_ray_with_2_1_3_workers(ray_cluster, corpus, tokenizer_path):
    plan = resolve_plan(DataConfig(source=str(corpus)), seed=0)
    reader = read_with_ray(plan, tokenizer_path=str(tokenizer_path), split="train", num_cpus=2)
    expected, _, _ = take(plan, in_process(plan, tokenizer_path), 13 * 2 + 20 + 11 * 3)
    cursor, rows = None, {}
    for workers, num_blocks in ((2, 13), (1, 20), (3, 11)):
        cursors = []
        for rank in range(workers):
            blocks, own, _ = take(plan, reader, num_blocks, rank=rank, world_size=workers, cursor=cursor)
            rows |= {blocks.first_index + i * workers: row for i, row in enumerate(blocks.tokens)}
            cursors.append(own)
        cursor = DataCursor.merge(cursors)
    np.testing.assert_array_equal([rows[i] for i in sorted(rows)], expected.tokens)


def test_resampled_shards_give_the_same_blocks_in_ray_and_resume(ray_cluster, tmp_path, tokenizer_path):
    for shard in range(3):
        with tarfile.open(tmp_path / f"s-{shard}.tar", "w") as tar:
            for i in range(40):
                text = f"story {shard}.{i} ".encode() * (1 + i % 5)
                member = tarfile.TarInfo(f"{i:04d}.txt")
                member.size = len(text)
                tar.addfile(member, BytesIO(text))
    config = DataConfig(source=str(tmp_path / "s-{0..2}.tar"), wds_resampled=True, wds_epoch_documents=100)
    plan = resolve_plan(config, seed=0)
    expected, _, counts = take(plan, in_process(plan, tokenizer_path), 400, epochs=3)
    assert counts.documents + counts.held_out_documents == 300
    reader = read_with_ray(plan, tokenizer_path=str(tokenizer_path), split="train", num_cpus=2)
    first, cursor, _ = take(plan, reader, 101, epochs=3)
    second, _, _ = take(plan, reader, 299, epochs=3, cursor=cursor)
    np.testing.assert_array_equal(np.concatenate([first.tokens, second.tokens]), expected.tokens)


def test_a_damaged_shard_ends_the_stream_with_the_projects_own_error(ray_cluster, tmp_path, tokenizer_path):
    lines = [json.dumps({"text": f"story {i}"}) for i in range(50)]
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines[:30], '{"text": "broken', *lines[30:]]))
    plan = resolve_plan(DataConfig(source=str(tmp_path / "bad.jsonl")), seed=0)
    reader = read_with_ray(plan, tokenizer_path=str(tokenizer_path), split="train")
    with pytest.raises(DataError, match="bad.jsonl.*bad row") as caught:
        take(plan, reader, 400, epochs=1)
    assert not isinstance(caught.value, RayError)
    assert len(str(caught.value).splitlines()) == 1


def test_closing_early_ends_the_reading_thread(ray_cluster, corpus, tokenizer_path):
    plan = resolve_plan(DataConfig(source=str(corpus)), seed=0)
    stream = BlockStream(plan, read_with_ray(plan, tokenizer_path=str(tokenizer_path), split="train"), seq_len=SEQ_LEN)
    stream.take(1)
    assert any(thread.name == "ray-data-parts" for thread in threading.enumerate())
    stream.close()
    assert not any(thread.name == "ray-data-parts" for thread in threading.enumerate())
