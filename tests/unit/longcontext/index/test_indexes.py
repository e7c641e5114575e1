"""Every index against brute force in NumPy: scores, forks, stored states, threads, types of keys."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.errors import StoreError
from hsokv_ray.longcontext.index import coded, make_index, restore_index

EXACT = ("flat", "auto")
CODED = ("pq", "ivf")
SUMMARIES = ("block_mean", "block_minmax")
ALL = (*EXACT, *CODED, *SUMMARIES)
K, D, S = 2, 8, 4
SHAPE = {"num_heads": K, "head_dim": D, "block_size": S}


@pytest.fixture
def small_steps(monkeypatch):
    """Codes are used from a few hundred tokens on, so that small texts go through every state of an index."""
    monkeypatch.setattr(coded, "TAIL_TOKENS", 64)
    monkeypatch.setattr(coded, "LEAST_CANDIDATES", 32)
    monkeypatch.setattr(coded, "SCANNED_TOKENS_PER_QUERY", 1)


def random_keys(num_tokens: int, *, seed: int = 0, num_heads: int = K, head_dim: int = D) -> torch.Tensor:
    return torch.randn(num_heads, num_tokens, head_dim, generator=torch.Generator().manual_seed(seed))


def grown(name: str, keys: torch.Tensor, *, step: int | None = None, **changes):
    index = make_index(name, **{**SHAPE, **changes})
    step = step or max(1, keys.shape[1])
    for start in range(0, keys.shape[1], step):
        end = min(start + step, keys.shape[1])
        index.add(keys[:, start:end], keys[:, :end])
    return index


def best_of_blocks(queries: torch.Tensor, keys: torch.Tensor, block_size: int = S) -> np.ndarray:
    q, k = queries.double().numpy(), keys.double().numpy()
    products = np.einsum("kqd,knd->kqn", q, k)
    return products.reshape(*products.shape[:2], -1, block_size).max(3)


def expected(name: str, queries: torch.Tensor, keys: torch.Tensor) -> np.ndarray:
    q = queries.double().numpy()
    blocks = keys.double().numpy().reshape(K, -1, S, D)
    if name == "block_mean":
        return np.einsum("kqd,kbd->kqb", q, blocks.mean(2))
    if name == "block_minmax":
        low, high = blocks.min(2)[:, None], blocks.max(2)[:, None]
        return np.maximum(q[:, :, None] * low, q[:, :, None] * high).sum(3)
    return best_of_blocks(queries, keys)


def assert_scores(name: str, logits: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor) -> None:
    """Exact where the index looked; a coded index may miss a block's best token, never exceed it."""
    reference = expected(name, queries, keys)
    assert logits.dtype == torch.float32
    assert logits.shape == reference.shape
    found = logits.numpy()
    if name in CODED:
        assert (found <= reference + 1e-4).all()
        best = reference.argmax(2)
        assert np.isfinite(np.take_along_axis(found, best[..., None], 2)).mean() > 0.5
    else:
        np.testing.assert_allclose(found, reference, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("num_tokens", [0, S, 2 * S, 620, 624, 628, 684, 688, 692, 1300])
def test_scores_are_those_of_brute_force_at_every_size(name: str, num_tokens: int, small_steps) -> None:
    keys, queries = random_keys(num_tokens), random_keys(3, seed=1)
    for step in (num_tokens, 4 * S):
        index = grown(name, keys, step=step)
        assert index.num_tokens == num_tokens
        logits = index.block_logits(queries, keys, 4)
        if num_tokens:
            assert_scores(name, logits, queries, keys)
        else:
            assert logits.shape == (K, 3, 0)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("num_tokens", [1016, 1020, 1024, 5000])
def test_tiles_of_many_queries_meet_without_a_gap(name: str, num_tokens: int, monkeypatch) -> None:
    from hsokv_ray.longcontext.index import flat

    monkeypatch.setitem(flat.TILE_PRODUCTS, "cpu", 1022 * K * 5)
    monkeypatch.setitem(flat.TILE_CONVERTED, "cpu", 254 * K * D)
    keys, queries = random_keys(num_tokens), random_keys(5, seed=1)
    for dtype in (torch.float32, torch.bfloat16):
        stored = keys.to(dtype)
        logits = grown(name, stored).block_logits(queries, stored, 4)
        np.testing.assert_allclose(logits.numpy(), best_of_blocks(queries, stored), atol=1e-4)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_keys_and_queries_of_16_bits_are_scored_in_32(name: str, dtype: torch.dtype, small_steps) -> None:
    keys, queries = random_keys(800).to(dtype), random_keys(3, seed=1).to(dtype)
    assert_scores(name, grown(name, keys, step=400).block_logits(queries, keys, 4), queries, keys)


@pytest.mark.parametrize("name", ALL)
def test_views_into_a_larger_store_are_read_in_place(name: str, small_steps) -> None:
    store = torch.full((K, 1000, D), torch.nan)
    keys, queries = store[:, 100:900], random_keys(3, seed=1)
    keys[:] = random_keys(800)
    assert_scores(name, grown(name, keys, step=200).block_logits(queries, keys, 4), queries, keys)
    transposed = random_keys(800).transpose(0, 1).contiguous().transpose(0, 1)
    assert_scores(name, grown(name, transposed).block_logits(queries, transposed, 4), queries, transposed)


@pytest.mark.parametrize("name", ["flat", "auto", "pq", "ivf"])
def test_granularity_of_single_tokens(name: str, small_steps) -> None:
    keys, queries = random_keys(901), random_keys(2, seed=1)
    logits = grown(name, keys, step=7, block_size=1).block_logits(queries, keys, 16)
    found, reference = logits.numpy(), best_of_blocks(queries, keys, 1)
    looked = np.isfinite(found)
    np.testing.assert_allclose(found[looked], reference[looked], atol=1e-4)
    best = np.argsort(-reference, axis=2)[:, :, :4]
    assert np.take_along_axis(looked, best, 2).mean() > 0.7


@pytest.mark.parametrize("name", ALL)
def test_a_reader_of_the_first_tokens_does_not_see_later_ones(name: str, small_steps) -> None:
    keys, queries = random_keys(1200), random_keys(3, seed=1)
    index = grown(name, keys, step=100)
    for num_tokens in (S, 640, 1100):
        before = keys[:, :num_tokens]
        logits = index.block_logits(queries, before, 4)
        assert logits.shape[2] == num_tokens // S
        assert (logits.numpy() <= expected(name, queries, before) + 1e-4).all()


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_forks_grow_apart(name: str, data) -> None:
    """Each of several forks holds exactly what was added to it and to its ancestors before it was forked."""
    sizes = st.integers(0, 40).map(lambda blocks: S * blocks)
    keys = random_keys(data.draw(st.sampled_from([0, 160, 680])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coded, "TAIL_TOKENS", 64)
        family = [(grown(name, keys, flat_below=640), keys)]
        for number in range(data.draw(st.integers(1, 6))):
            index, keys = family[data.draw(st.integers(0, len(family) - 1))]
            if data.draw(st.booleans()):
                family.append((index.fork(), keys))
                continue
            place = next(i for i, (other, _) in enumerate(family) if other is index)
            new = random_keys(data.draw(sizes), seed=number + 1)
            keys = torch.cat([keys, new], 1)
            index.add(new, keys)
            family[place] = (index, keys)
        queries = random_keys(2, seed=99)
        for index, keys in family:
            assert index.num_tokens == keys.shape[1]
            logits = index.block_logits(queries, keys, 2).numpy()
            assert (logits <= expected(name, queries, keys) + 1e-4).all()
            same = grown(name, keys, flat_below=640).block_logits(queries, keys, 2)
            assert logits.shape == tuple(same.shape)
            if name not in ("pq", "ivf", "auto"):
                np.testing.assert_allclose(logits, expected(name, queries, keys), atol=1e-4)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("num_tokens", [0, 12, 900])
def test_a_stored_index_answers_and_grows_as_before(name: str, num_tokens: int, small_steps) -> None:
    keys, queries = random_keys(num_tokens + 400), random_keys(3, seed=1)
    index = grown(name, keys[:, :num_tokens], flat_below=640)
    state = index.state()
    assert all(isinstance(array, np.ndarray) and array.dtype != object for array in state.values())
    restored = restore_index(name, {key: array.copy() for key, array in state.items()}, **SHAPE, flat_below=640)
    assert (restored.name, restored.num_tokens) == (name, num_tokens)
    for _ in range(2):
        seen = keys[:, : index.num_tokens]
        assert torch.equal(restored.block_logits(queries, seen, 4), index.block_logits(queries, seen, 4))
        for each in (index, restored):
            each.add(keys[:, each.num_tokens : num_tokens + 400], keys)


@pytest.mark.parametrize("name", ALL)
def test_a_damaged_state_is_a_store_error(name: str, small_steps) -> None:
    state = grown(name, random_keys(900), flat_below=640).state()
    with pytest.raises(StoreError, match="damaged"):
        restore_index(name, {**state, "num_tokens": np.array("many")}, **SHAPE)
    with pytest.raises(StoreError, match=f"--block-size {S}"):
        restore_index(name, state, **{**SHAPE, "block_size": 2 * S})
    parts = [key for key in state if key.startswith(("head_", "summaries"))]
    for part in parts:
        with pytest.raises(StoreError, match="encode the text again"):
            restore_index(name, {key: array for key, array in state.items() if key != part}, **SHAPE)
        with pytest.raises(StoreError, match="encode the text again"):
            restore_index(name, {**state, part: state[part][: len(state[part]) // 2]}, **SHAPE)


@pytest.mark.parametrize("name", ALL)
def test_threads_search_while_a_fork_grows(name: str, small_steps) -> None:
    keys, queries = random_keys(2000), random_keys(3, seed=1)
    base = keys[:, :1000]
    index = grown(name, base, flat_below=640)
    alone = index.block_logits(queries, base, 4)
    stop = threading.Event()

    def search() -> int:
        num_searches = 0
        while not stop.is_set() or not num_searches:
            assert torch.equal(index.block_logits(queries, base, 4), alone)
            num_searches += 1
        return num_searches

    with ThreadPoolExecutor(4) as pool:
        searches = [pool.submit(search) for _ in range(3)]
        try:
            fork = index.fork()
            for start in range(1000, 2000, 20):
                fork.add(keys[:, start : start + 20], keys[:, : start + 20])
        finally:
            stop.set()
        assert all(done.result() for done in searches)
    assert (index.num_tokens, fork.num_tokens) == (1000, 2000)
    together = grown(name, keys, step=20, flat_below=640).block_logits(queries, keys, 4)
    assert fork.block_logits(queries, keys, 4).shape == together.shape


@pytest.mark.parametrize("name", ALL)
def test_growth_of_the_original_leaves_a_fork_as_it_was(name: str, small_steps) -> None:
    keys, queries = random_keys(1600), random_keys(3, seed=1)
    base = keys[:, :800]
    index = grown(name, base, flat_below=640)
    fork = index.fork()
    before = fork.block_logits(queries, base, 4)
    index.add(keys[:, 800:], keys)
    fork.fork().add(random_keys(800, seed=5), torch.cat([base, random_keys(800, seed=5)], 1))
    assert torch.equal(fork.block_logits(queries, base, 4), before)


@pytest.mark.parametrize("name", ALL)
def test_a_wrong_shape_is_our_own_bug(name: str) -> None:
    index = make_index(name, **SHAPE)
    for keys in (random_keys(S + 1), random_keys(S, num_heads=K + 1), random_keys(S, head_dim=2 * D)):
        with pytest.raises(AssertionError):
            index.add(keys, keys)


@pytest.mark.parametrize("name", ALL)
def test_what_grew_in_inference_mode_grows_on_outside_and_the_other_way_round(name: str, small_steps) -> None:
    keys, queries = random_keys(900), random_keys(3, seed=1)
    for first, second in ((True, False), (False, True)):
        with torch.inference_mode(first):
            index = grown(name, keys[:, :700])
        with torch.inference_mode(second):
            index.add(keys[:, 700:], keys)
            assert_scores(name, index.block_logits(queries, keys, 4), queries, keys)


@pytest.mark.parametrize("name", ALL)
def test_searching_asks_for_no_gradients(name: str, small_steps) -> None:
    keys, queries = random_keys(900).requires_grad_(), random_keys(3, seed=1).requires_grad_()
    assert not grown(name, keys).block_logits(queries, keys, 4).requires_grad
