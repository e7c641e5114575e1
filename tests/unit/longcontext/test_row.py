"""One row against the formulas written out, and against itself cut in other ways."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.longcontext.config import LongContextConfig, Resolved
from hsokv_ray.longcontext.far import FarSegment, IndexKind
from hsokv_ray.longcontext.growable import KVSpan
from hsokv_ray.longcontext.report import Stopwatch
from hsokv_ray.longcontext.rope import Rope
from hsokv_ray.longcontext.row import Row

K, GROUP, D = 2, 2, 8
H = K * GROUP
SCALING = D**-0.5
INV_FREQ = 1.0 / 100.0 ** (torch.arange(0, D, 2) / D)


def make_row(config: Resolved, index: str = "flat") -> Row:
    span = KVSpan.empty(K, D, torch.float32, torch.device("cpu"))
    kind = IndexKind(index, K, D, config.block, torch.device("cpu"), None)
    blocks = KVSpan.empty(K, D, torch.float32, torch.device("cpu"), block=config.block)
    far = FarSegment(blocks, kind.make(), kind)
    return Row(settings=config, rope=Rope(INV_FREQ), sinks=span.empty_like(), local=span.empty_like(), far=[far])


def resolve(window: int = 48, **values: Any) -> Resolved:
    config = LongContextConfig(**({"enabled": True, "block_size": 4, "sink_tokens": 3, "index": "flat"} | values))
    return config.resolve(window=window, num_layers=1)


def tensors(num_tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries [H, N, D], keys and values [K, N, D], none rotated."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(n, num_tokens, D, generator=generator) for n in (H, K, K))  # pyright: ignore[reportReturnType]


def turned(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotate with complex numbers, in float64: another way than the library's."""
    angles = positions.double()[:, None] * INV_FREQ.double()
    halves = torch.complex(x[..., : D // 2].double(), x[..., D // 2 :].double())
    done = halves * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([done.real, done.imag], dim=-1)


def run(row: Row, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    """Give the row rotated tokens in pieces that end at `cuts`; return all outputs."""
    positions = torch.arange(row.position, row.position + key.shape[1])
    query, key = turned(query, positions).float(), turned(key, positions).float()
    watch, outputs = Stopwatch(), []
    for begin, end in zip([0, *cuts], cuts, strict=False):
        outputs.append(row.extend(query[:, begin:end], key[:, begin:end], value[:, begin:end], SCALING, watch))
    return torch.cat(outputs, dim=1)


def softmax_sum(query_D: torch.Tensor, keys_ND: torch.Tensor, values_ND: torch.Tensor) -> torch.Tensor:
    weights = torch.softmax(keys_ND.double() @ query_D.double() * SCALING, dim=0)
    return weights @ values_ND.double()


def reference_step(config: Resolved, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return what the newest of N tokens attends to, [H, D], from the definition; tokens came one at a time."""
    last = key.shape[1] - 1
    num_local = last - config.sink  # tokens after the sinks, the newest not counted
    if last + 1 <= config.window:
        far_end = None
    else:
        far_end = config.sink + max(0, (num_local - config.local) // config.block) * config.block
    output = torch.zeros(H, D, dtype=torch.float64)
    for head in range(K):
        group = range(head * GROUP, (head + 1) * GROUP)
        if far_end is None:
            seen, places = torch.arange(last + 1), torch.arange(last + 1)
        else:
            blocks = best_blocks(config, query[list(group), last], key[head], far_end)
            fetched = [config.sink + b * config.block + i for b in blocks for i in range(config.block)]
            seen = torch.tensor([*range(config.sink), *fetched, *range(far_end, last + 1)])
            places = torch.arange(len(seen)) if config.positions == "contiguous" else seen
        for h in group:
            q = turned(query[h, last][None], places[-1:])[0]
            output[h] = softmax_sum(q, turned(key[head, seen], places), value[head, seen])
    return output


def best_blocks(config: Resolved, queries: torch.Tensor, key: torch.Tensor, far_end: int) -> list[int]:
    if config.positions == "native":
        queries = turned(queries, torch.full((len(queries),), key.shape[0] - 1))
        key = turned(key, torch.arange(key.shape[0]))
    logits = queries.double() @ key[config.sink : far_end].double().T * SCALING
    best = logits.unflatten(1, (-1, config.block)).amax(2)
    score = (torch.softmax(best, dim=1).sum(0).log() * 256).round().tolist()
    ranked = sorted(range(len(score)), key=lambda number: (score[number], number), reverse=True)
    return sorted(ranked[: config.num_blocks])


@pytest.mark.parametrize("positions", ["contiguous", "native"])
@pytest.mark.parametrize("block", [1, 4])
def test_every_step_of_decoding_is_what_the_definition_says(positions: Any, block: int):
    config = resolve(positions=positions, block_size=block, budget_tokens=8, local_tokens=10, chunk_size=8)
    query, key, value = tensors(90, seed=block)
    got = run(make_row(config), query, key, value, cuts=list(range(1, 91)))
    for n in range(1, 91):
        expected = reference_step(config, query[:, :n], key[:, :n], value[:, :n])
        torch.testing.assert_close(got[:, n - 1].double(), expected, atol=1e-4, rtol=0, msg=lambda m, n=n: f"{n}: {m}")


def test_fixed_positions_put_all_fetched_tokens_at_one_distance_and_score_as_they_attend():
    config = resolve(positions="fixed", budget_tokens=8, local_tokens=10, chunk_size=8)
    query, key, value = tensors(80, seed=5)
    row = make_row(config)
    run(row, query, key, value, cuts=list(range(1, 81)))
    keys, _ = row._seen(turned(query[:, 79:], torch.tensor([79])).float(), SCALING)
    first_local = 80 - len(row.local)
    far = turned(keys[:, 3:11], torch.full((8,), 1 - first_local)).float()
    all_far = key[:, 3 : 3 + len(row.far[0].span)]
    for head in range(K):
        distance = torch.cdist(far[head], all_far[head]).amin(1)
        torch.testing.assert_close(distance, torch.zeros(8), atol=5e-3, rtol=0)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_however_a_text_is_cut_and_blocked_all_of_it_fetched_is_full_attention(data: st.DataObject):
    window = data.draw(st.integers(24, 64), label="window")
    block = data.draw(st.sampled_from([1, 2, 3, 4, 8]), label="block")
    sink = data.draw(st.integers(0, 5), label="sink")
    chunk = data.draw(st.integers(1, max(1, (window - sink - block) // 2)), label="chunk")
    local = data.draw(st.integers(1, max(1, window - sink - chunk - block)), label="local")
    config = resolve(
        window=window,
        positions="native",
        budget_tokens=10_000,
        block_size=block,
        sink_tokens=sink,
        chunk_size=chunk,
        local_tokens=local,
    )
    boundary = data.draw(st.sampled_from([1, block, chunk, local, window, window + sink + local]), label="boundary")
    length = max(1, boundary + data.draw(st.integers(-1, 1)) + data.draw(st.sampled_from([0, window])))
    cuts = sorted({*data.draw(st.lists(st.integers(1, length), max_size=6), label="cuts"), length})
    split = data.draw(st.integers(0, length - 1), label="split")
    query, key, value = tensors(length, seed=length)
    row = make_row(config)
    outputs = []
    for begin, end in zip([0, *cuts], cuts, strict=False):
        if begin <= split < end and begin:  # go on as a new request on what has been read
            row = row.attached(config)
            outputs.append(continue_row(row, query[:, begin:end], key[:, begin:end], value[:, begin:end]))
        else:
            outputs.append(continue_row(row, query[:, begin:end], key[:, begin:end], value[:, begin:end]))
    got = torch.cat(outputs, dim=1)
    places = torch.arange(length)
    q, k = turned(query, places), turned(key, places)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(GROUP, 0), value.double().repeat_interleave(GROUP, 0), is_causal=True, scale=SCALING
    )
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=0)


def continue_row(row: Row, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return run(row, query, key, value, cuts=[key.shape[1]])


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 15), max_size=4), length=st.integers(1, 130), budget=st.sampled_from([0, 4, 8, 12]))
def test_with_a_small_budget_cuts_at_the_ends_of_chunks_change_nothing(cuts: list[int], length: int, budget: int):
    config = resolve(budget_tokens=budget, chunk_size=8, local_tokens=12)
    query, key, value = tensors(length, seed=length)
    at_once = run(make_row(config), query, key, value, cuts=[length])
    ends = sorted({*(8 * cut for cut in cuts if 0 < 8 * cut < length), length})
    torch.testing.assert_close(run(make_row(config), query, key, value, ends), at_once, atol=1e-5, rtol=0)


def test_forks_go_their_own_ways_and_the_first_does_not_notice():
    config = resolve(budget_tokens=8, chunk_size=8, local_tokens=12)
    query, key, value = tensors(120, seed=1)
    row, alone = make_row(config), make_row(config)
    begin = [x[:, :100] for x in (query, key, value)]
    run(row, *begin, cuts=[100])
    run(alone, *begin, cuts=[100])
    forks = [row.fork() for _ in range(3)]
    other = tensors(20, seed=2)
    for fork in forks[:2]:
        run(fork, *other, cuts=list(range(1, 21)))
    rest = [x[:, 100:] for x in (query, key, value)]
    expected = run(alone, *rest, cuts=list(range(1, 21)))
    torch.testing.assert_close(run(row, *rest, cuts=list(range(1, 21))), expected)
    torch.testing.assert_close(run(forks[2], *rest, cuts=list(range(1, 21))), expected)


def test_tokens_taken_back_leave_the_row_as_it_was():
    config = resolve(budget_tokens=8, chunk_size=8, local_tokens=12)
    query, key, value = tensors(110, seed=3)
    for length in (20, 47, 100):
        row, alone = make_row(config), make_row(config)
        for each in (row, alone):
            run(each, query[:, :length], key[:, :length], value[:, :length], cuts=[length])
        run(row, *tensors(2, seed=4), cuts=[1, 2])
        assert row.forget(2)
        one = [x[:, length : length + 1] for x in (query, key, value)]
        # which tokens are local may differ by a block; with everything in sight nothing does
        if length + 2 <= config.window:
            torch.testing.assert_close(run(row, *one, cuts=[1]), run(alone, *one, cuts=[1]))
        assert (row.length, row.position) == (alone.length, alone.position)
        assert not row.forget(1000)


def test_no_tokens_leave_while_all_fit_and_the_window_is_never_exceeded():
    config = resolve(chunk_size=8)
    row = make_row(config)
    query, key, value = tensors(300, seed=6)
    for begin in range(0, 300, 5):
        run(row, query[:, begin : begin + 5], key[:, begin : begin + 5], value[:, begin : begin + 5], cuts=[5])
        seen = len(row.sinks) + len(row.local) + (config.budget if row.is_long else 0)
        assert row.is_long == (row.length > config.window)
        assert seen <= config.window
        assert len(row.sinks) + len(row.far[0].span) + len(row.local) == row.length


def test_turning_back_undoes_the_models_rotation_far_out():
    rope = Rope(INV_FREQ)
    x = torch.randn(K, 5, D, generator=torch.Generator().manual_seed(0))
    for begin in (0, 1, 1000, 1_000_000):
        back = rope.turn_back(rope.turn(x, begin), begin)
        assert (back - x).abs().max() < 1e-5
    by_complex = turned(x, torch.arange(7, 12))
    torch.testing.assert_close(rope.turn(x, 7).double(), by_complex, atol=1e-5, rtol=0)
    torch.testing.assert_close(rope.shift(rope.turn(x, 3), 4).double(), by_complex, atol=1e-5, rtol=0)


def test_settings_that_cannot_fit_the_window_say_what_would():
    with pytest.raises(ValueError, match=r"budget 40 tokens exceed the window of 48; lower --budget-tokens to \d+"):
        resolve(budget_tokens=40)
    assert replace(resolve(budget_tokens=40, positions="native")).budget == 40
    assert math.isclose(resolve().budget % 4, 0)
