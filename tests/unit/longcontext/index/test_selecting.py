"""Which blocks a head fetches, against the definition in NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hsokv_ray.longcontext.index import select_blocks


def scores_of(logits_KQB: np.ndarray, scaling: float) -> np.ndarray:
    """The sum over queries of the softmax; a query that looked nowhere adds nothing."""
    scores = np.zeros((logits_KQB.shape[0], logits_KQB.shape[2]))
    for head, queries in enumerate(logits_KQB.astype(np.float64)):
        for logits in queries:
            if np.isfinite(logits).any():
                weights = np.exp(scaling * (logits - logits[np.isfinite(logits)].max()))
                scores[head] += weights / weights.sum()
    return scores


@settings(deadline=None)
@given(
    logits=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 12)),
        elements=st.one_of(st.just(-np.inf), st.floats(-50, 50, width=32)),
    ),
    num_blocks=st.integers(1, 14),
)
def test_chosen_blocks_are_distinct_ascending_and_no_other_scores_higher(logits, num_blocks: int) -> None:
    chosen = select_blocks(torch.from_numpy(logits), num_blocks, 0.5)
    num_heads, num_queries, num_all = logits.shape
    assert chosen.dtype == torch.int64
    assert chosen.shape == (num_heads, min(num_blocks, num_all))
    scores = scores_of(logits, 0.5)
    for head, ids in enumerate(chosen.tolist()):
        assert ids == sorted(set(ids))
        assert ids[0] >= 0
        assert ids[-1] < num_all
        others = [block for block in range(num_all) if block not in ids]
        if others:
            assert scores[head][ids].min() >= 0.995 * scores[head][others].max()


@pytest.mark.parametrize("seed", range(5))
def test_queries_of_different_norms_are_weighed_by_their_softmax(seed: int) -> None:
    norms = np.array([0.5, 1, 4, 8])[:, None]
    logits = (np.random.default_rng(seed).standard_normal((3, 4, 200)) * norms).astype(np.float32)
    chosen = select_blocks(torch.from_numpy(logits), 20, 0.25)
    expected = np.sort(np.argsort(-scores_of(logits, 0.25), axis=1)[:, :20], axis=1)
    assert chosen.tolist() == expected.tolist()


def test_none_of_no_blocks_and_nothing_of_nothing() -> None:
    assert select_blocks(torch.zeros(2, 3, 5), 0, 1.0).shape == (2, 0)
    assert select_blocks(torch.zeros(2, 3, 0), 4, 1.0).shape == (2, 0)


def test_where_nobody_looked_blocks_fill_up() -> None:
    logits = torch.full((1, 2, 6), -torch.inf)
    assert len(set(select_blocks(logits, 3, 1.0)[0].tolist())) == 3
    logits[0, 1, 4] = -1000.0
    assert 4 in select_blocks(logits, 3, 1.0)[0].tolist()


@pytest.mark.parametrize("num_queries", [1, 2, 4])
def test_each_peaked_query_of_a_group_gets_its_block_whatever_its_norm(num_queries: int) -> None:
    logits = torch.randn(1, num_queries, 50, generator=torch.Generator().manual_seed(0))
    for query in range(num_queries):
        logits[0, query, 10 * query] = 30
        logits[0, query] *= 2.0**query
    chosen = select_blocks(logits, num_queries, 1.0)[0].tolist()
    assert chosen == [10 * query for query in range(num_queries)]


def test_fetched_attention_is_close_to_the_most_there_is() -> None:
    """Groups whose queries differ in norm: the blocks chosen from block maxima against the best by true attention."""
    generator = torch.Generator().manual_seed(0)
    D, S, C, scaling = 32, 16, 8, 32**-0.5
    shares = []
    for _ in range(10):
        segments = torch.randn(64, D, generator=generator).repeat_interleave(32, 0)
        keys = segments + torch.randn(2048, D, generator=generator)
        picked = keys[torch.randint(0, 2048, (4,), generator=generator)]
        queries = picked * torch.tensor([0.5, 1.0, 1.5, 2.0])[:, None]
        products = queries @ keys.T
        attention_QB = (products * scaling).softmax(1).unflatten(1, (-1, S)).sum(2)
        chosen = select_blocks(products.unflatten(1, (-1, S)).amax(2)[None], C, scaling)[0]
        total_B = attention_QB.sum(0)
        shares.append(float(total_B[chosen].sum() / total_B.topk(C).values.sum()))
    assert np.mean(shares) > 0.95


def test_of_equal_blocks_the_newest_are_taken_whatever_the_rounding():
    generator = torch.Generator().manual_seed(0)
    logits_KQB = torch.randn(2, 3, 40, generator=generator)
    logits_KQB[:, :, [3, 11, 20, 37]] = 9.0
    expected = [[20, 37], [20, 37]]
    for queries in (logits_KQB, logits_KQB[:, :1]):
        assert select_blocks(queries, 2, 0.5).tolist() == expected
        for seed in range(20):
            noise = torch.randn(queries.shape, generator=torch.Generator().manual_seed(seed))
            assert select_blocks(queries * (1 + 1e-6 * noise), 2, 0.5).tolist() == expected
