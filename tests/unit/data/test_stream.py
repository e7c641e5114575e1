import hashlib
import json
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.data import (
    BlockStream,
    DataConfig,
    DataCursor,
    Part,
    ReadCounts,
    ShardPlan,
    read_in_process,
    resolve_plan,
    train_tokenizer,
)
from hsokv_ray.data.packing import PartRequest, PartTokens
from hsokv_ray.data.sources.base import ReadOptions
from hsokv_ray.errors import ConfigError, DataError

OPTIONS = ReadOptions.from_config(DataConfig())


def plan_of(part_lengths, num_streams):
    """A plan whose part i, read by `numbered`, has `part_lengths[i]` tokens."""
    parts = tuple(Part(index=i, shard="s", start=i, stop=i + 1, num_bytes=4 * n) for i, n in enumerate(part_lengths))
    return ShardPlan(
        uri="test://",
        format="jsonl",
        parts=parts,
        revision=None,
        seed=0,
        num_streams=num_streams,
        num_bytes=4 * sum(part_lengths),
        options=OPTIONS,
    )


def numbered(part_lengths):
    """A reader of tokens that are all different: token j of part i in pass e is unique and tells all three."""
    firsts = [0, *np.cumsum(part_lengths).tolist()]

    def read(requests):
        for request in requests:
            i = request.part.index
            tokens = 1 + np.arange(firsts[i], firsts[i + 1]) + request.epoch * firsts[-1]
            counts = ReadCounts(documents=1, text_bytes=len(tokens))
            yield PartTokens(
                stream=request.stream, epoch=request.epoch, position=request.position, tokens=tokens, counts=counts
            )

    return read


def chain(plan, reader, stream, epochs):
    """Brute force: all tokens of a stream, joined."""
    requests = [
        PartRequest(stream=stream, epoch=epoch, position=i, part=part)
        for epoch in range(epochs)
        for i, part in enumerate(plan.stream_parts(stream, epoch))
    ]
    return np.concatenate([np.empty(0, dtype=np.int64), *(part.tokens for part in reader(iter(requests)))])


def brute_force_blocks(plan, reader, *, seq_len, stride, epochs):
    """The global order of blocks by its definition: round robin over the streams until all are used up."""
    per_stream = []
    for stream in range(plan.num_streams):
        tokens = chain(plan, reader, stream, epochs)
        blocks, start = [], 0
        while len(tokens) - start >= 2:
            blocks.append(tokens[start : start + seq_len + 1])
            if start + seq_len + 1 >= len(tokens):
                break
            start += stride
        per_stream.append(blocks)
    rounds = max(map(len, per_stream))
    empty = np.empty(0, dtype=np.int64)
    return [blocks[i] if i < len(blocks) else empty for i in range(rounds) for blocks in per_stream]


def content(tokens, num_targets):
    """The tokens of a block without its padding."""
    return tokens[: num_targets + 1] if num_targets else tokens[:0]


def run(plan, reader, *, workers, cursor, blocks_per_worker, **options):
    """Let every worker take its blocks; return them by global index, and the merged cursor."""
    taken, cursors = {}, []
    for rank in range(workers):
        stream = BlockStream(plan, reader, rank=rank, world_size=workers, cursor=cursor, **options)
        blocks = stream.take(blocks_per_worker)
        for i, (tokens, num_targets) in enumerate(zip(blocks.tokens, blocks.num_targets, strict=True)):
            taken[blocks.first_index + i * workers] = content(tokens, num_targets)
        cursors.append(stream.cursor())
        stream.close()
    return taken, DataCursor.merge(cursors)


part_lists = st.lists(st.integers(0, 40), min_size=6, max_size=18).filter(any)


@settings(deadline=None)
@given(part_lists, st.integers(1, 12), st.data())
def test_any_kills_and_any_change_of_workers_give_the_unbroken_order(part_lengths, seq_len, data):
    stride = data.draw(st.integers(1, seq_len))
    plan, reader = plan_of(part_lengths, 6), numbered(part_lengths)
    expected = brute_force_blocks(plan, reader, seq_len=seq_len, stride=stride, epochs=2)
    cursor, order = DataCursor.start(6), {}
    for leg in count():
        workers = data.draw(st.sampled_from([1, 2, 3, 6])) if leg > 2 else (2, 1, 3)[leg]
        taken, cursor = run(
            plan,
            reader,
            workers=workers,
            cursor=DataCursor.from_json(cursor.to_json()),
            blocks_per_worker=data.draw(st.integers(1, 3 + len(expected) // 6)),
            seq_len=seq_len,
            stride=stride,
            epochs=2,
        )
        assert not taken.keys() & order.keys()
        order |= taken
        if len(order) >= len(expected):
            break
    assert sorted(order) == list(range(cursor.num_blocks))
    for i, tokens in order.items():
        want = expected[i] if i < len(expected) else []
        np.testing.assert_array_equal(tokens, want)


@settings(deadline=None)
@given(part_lists, st.integers(1, 50), st.sampled_from([1, 2, 3, 6]))
def test_every_token_but_a_streams_first_is_predicted_exactly_once(part_lengths, seq_len, workers):
    plan, reader = plan_of(part_lengths, 6), numbered(part_lengths)
    num_blocks = 6 * sum(part_lengths)
    taken, _ = run(plan, reader, workers=workers, cursor=None, blocks_per_worker=num_blocks, seq_len=seq_len, epochs=1)
    predicted = np.concatenate([tokens[1:] for tokens in taken.values()])
    chains = [chain(plan, reader, stream, 1) for stream in range(6)]
    assert sorted(predicted) == sorted(np.concatenate([tokens[1:] for tokens in chains]))


@pytest.mark.parametrize("epochs", [0.5, 1.25])
def test_a_fraction_of_a_pass_ends_after_that_share_of_each_streams_parts(epochs):
    lengths = [10] * 48
    plan, reader = plan_of(lengths, 6), numbered(lengths)
    taken, _ = run(plan, reader, workers=1, cursor=None, blocks_per_worker=600, seq_len=9, epochs=epochs)
    num_targets = sum(max(len(tokens) - 1, 0) for tokens in taken.values())
    assert num_targets == epochs * 480 - 6


def test_without_epochs_the_passes_never_end_and_nothing_is_padded_between_them():
    lengths = [7, 3, 5, 11, 2, 9]
    plan, reader = plan_of(lengths, 2), numbered(lengths)
    taken, cursor = run(plan, reader, workers=1, cursor=None, blocks_per_worker=40, seq_len=4)
    assert all(len(tokens) == 5 for tokens in taken.values())
    for stream in range(2):
        blocks = [tokens for i, tokens in sorted(taken.items()) if i % 2 == stream]
        joined = np.concatenate([tokens[:-1] for tokens in blocks])
        np.testing.assert_array_equal(joined, chain(plan, reader, stream, 12)[: len(joined)])
    assert cursor.streams[:, 0].min() >= 1


def test_streams_without_a_token_give_empty_blocks_instead_of_reading_for_ever():
    lengths = [0, 0, 0, 8]
    plan, reader = plan_of(lengths, 4), numbered(lengths)
    stream = BlockStream(plan, reader, seq_len=4)
    num_targets = stream.take(8).num_targets
    assert sorted(num_targets) == [0, 0, 0, 0, 0, 0, 4, 4]


def test_parts_count_once_when_they_are_consumed_also_over_a_resume():
    lengths = [10] * 12
    plan, reader = plan_of(lengths, 3), numbered(lengths)
    first = BlockStream(plan, reader, seq_len=4, epochs=1)
    first.take(7)
    second = BlockStream(plan, reader, seq_len=4, epochs=1, cursor=first.cursor())
    second.take(60)
    whole = BlockStream(plan, reader, seq_len=4, epochs=1)
    whole.take(67)
    assert whole.counts.documents == 12
    assert (first.counts + second.counts) == whole.counts
    assert first.num_tokens + second.num_tokens == whole.num_tokens == 120 - 3


def test_a_reader_that_asks_far_ahead_changes_nothing():
    lengths = [5, 30, 2, 9, 14, 7, 3, 22]
    plan, reader = plan_of(lengths, 4), numbered(lengths)

    def eager(requests):
        yield from reader(iter(list(requests)))

    plain = BlockStream(plan, reader, seq_len=6, epochs=2).take(40)
    ahead = BlockStream(plan, eager, seq_len=6, epochs=2).take(40)
    np.testing.assert_array_equal(plain.tokens, ahead.tokens)


def test_a_worker_count_that_does_not_divide_the_streams_is_refused_with_the_choices():
    with pytest.raises(ConfigError, match="--num-workers: got 4, which does not divide the 6 streams.*1, 2, 3, 6"):
        BlockStream(plan_of([1] * 6, 6), numbered([1] * 6), seq_len=4, world_size=4)


def test_a_cursor_of_another_plan_is_refused():
    with pytest.raises(DataError, match="has 4 streams, the plan 6.*--logical-ranks 4"):
        BlockStream(plan_of([1] * 6, 6), numbered([1] * 6), seq_len=4, cursor=DataCursor.start(4))


def test_a_part_that_became_shorter_since_the_checkpoint_is_an_error():
    plan = plan_of([20] * 6, 6)
    stream = BlockStream(plan, numbered([20] * 6), seq_len=4)
    stream.take(18)
    with pytest.raises(DataError, match="has 3 tokens, the checkpoint stands at token 12.*the source changed"):
        BlockStream(plan, numbered([3] * 6), seq_len=4, cursor=stream.cursor()).take(6)


def test_cursors_of_workers_at_different_blocks_do_not_merge():
    start = DataCursor.start(2)
    with pytest.raises(ValueError, match="different numbers of blocks"):
        DataCursor.merge([start, DataCursor(streams=start.streams, num_blocks=1)])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for shard in range(3):
        lines = (json.dumps({"text": f"story {shard}.{i} " + "word " * int(rng.integers(1, 60))}) for i in range(150))
        (folder / f"{shard}.jsonl").write_text("\n".join(lines))
    return folder


def digests(plan, tokenizer, *, legs, seq_len=32, **options):
    """Digests of all blocks in global order, of legs of (workers, blocks per worker)."""
    cursor, order = None, {}
    for workers, blocks_per_worker in legs:
        taken, cursor = run(
            plan,
            read_in_process(plan, tokenizer=tokenizer, split="train"),
            workers=workers,
            cursor=cursor,
            blocks_per_worker=blocks_per_worker,
            seq_len=seq_len,
            **options,
        )
        order |= taken
    return [hashlib.sha256(order[i].tobytes()).hexdigest() for i in sorted(order)]


def test_real_text_killed_and_resumed_with_2_1_3_workers_keeps_the_order(corpus):
    plan = resolve_plan(DataConfig(source=str(corpus)), seed=1)
    tokenizer = train_tokenizer(["story word " * 50, "0123456789. "], 300)
    unbroken = digests(plan, tokenizer, legs=[(1, 600)], epochs=2)
    assert len(set(unbroken)) > 300
    assert digests(plan, tokenizer, legs=[(2, 13), (1, 50), (3, 41), (2, 200), (1, 1)], epochs=2) == unbroken


def test_streams_of_fewer_shards_than_workers_read_every_document_once(corpus):
    config = DataConfig(source=str(corpus / "0.jsonl"), val_split=0)
    plan = resolve_plan(config, seed=0, num_workers=4)
    tokenizer = train_tokenizer(["story word " * 50, "0123456789. "], 300)
    reader = read_in_process(plan, tokenizer=tokenizer, split="train")
    documents = []
    for rank in range(4):
        stream = BlockStream(plan, reader, seq_len=8, epochs=1, rank=rank, world_size=4)
        while stream.take(12).num_targets.any():
            pass
        documents.append(stream.counts.documents)
    assert sum(documents) == 150
    assert min(documents) > 0
