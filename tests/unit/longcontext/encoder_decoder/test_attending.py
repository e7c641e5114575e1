"""Attention over fetched blocks of hidden states against sums written out, and what each index catches of it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.longcontext.encoder_decoder.attending import attend_hidden, choose
from hsokv_ray.longcontext.encoder_decoder.text import EncodedText, GrowingRows
from hsokv_ray.longcontext.index import make_index

WIDTH = 16


def encoded(hidden_NM: torch.Tensor, *, num_settled: int, block: int, index: str = "flat") -> EncodedText:
    """Return hidden states of which the first are settled and indexed, in two steps."""
    num_settled -= num_settled % block
    width = hidden_NM.shape[1]
    kind = make_index(index, num_heads=1, head_dim=width, block_size=block)
    rows = GrowingRows.empty(width, torch.float32, "cpu").extended(hidden_NM[:num_settled])
    first = num_settled // 2 // block * block
    for begin, end in ((0, first), (first, num_settled)):
        if end > begin:
            everything = rows.rows_NM[None, :end]
            kind.add(everything[:, begin:], everything)
    return EncodedText(
        token_ids=np.arange(len(hidden_NM)),
        settled=rows,
        tail_NM=hidden_NM[num_settled:],
        index=kind,
        window=32,
        block_size=block,
        model_digest="",
    )


def written_out(query_M: torch.Tensor, hidden_NM: torch.Tensor, block: int, num_blocks: int) -> torch.Tensor:
    logits = [float(query_M @ state) for state in hidden_NM.double()]
    best = sorted(range(-(-len(logits) // block)), key=lambda b: -max(logits[b * block : (b + 1) * block]))
    seen = sorted(n for b in best[:num_blocks] for n in range(b * block, min((b + 1) * block, len(logits))))
    weights = np.exp(np.array([logits[n] for n in seen]) - max(logits))
    return torch.from_numpy(weights / weights.sum()) @ hidden_NM[seen].double()


@given(
    num_tokens=st.integers(1, 70),
    num_tail=st.integers(0, 30),
    block=st.integers(1, 9),
    num_blocks=st.integers(1, 12),
    num_queries=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_a_query_gets_the_weighted_sum_of_its_best_blocks(
    num_tokens: int, num_tail: int, block: int, num_blocks: int, num_queries: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, WIDTH, generator=generator)
    queries = torch.randn(num_queries, WIDTH, generator=generator)
    text = encoded(hidden, num_settled=max(0, num_tokens - num_tail), block=block)
    ours = attend_hidden(queries, text, num_blocks)
    theirs = torch.stack([written_out(query.double(), hidden, block, num_blocks) for query in queries])
    torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=0)


def test_gradients_reach_the_queries_through_the_blocks_they_chose() -> None:
    hidden = torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(0))
    text = encoded(hidden, num_settled=40, block=4)
    query = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(1), requires_grad=True)
    attend_hidden(query, text, 3).sum().backward()
    expected = query.detach().double()[0].requires_grad_()
    states = hidden.double().view(15, 4, WIDTH)[choose(query, text, 3)[0]].flatten(0, 1)
    ((states @ expected).softmax(0) @ states).sum().backward()
    torch.testing.assert_close(query.grad[0].double(), expected.grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("index", "least"), [("auto", 0.95), ("pq", 0.95), ("ivf", 0.9), ("block_minmax", 0.5)])
def test_an_approximate_index_catches_most_of_the_mass_that_the_exact_one_does(index: str, least: float) -> None:
    generator = torch.Generator().manual_seed(0)
    # a slowly changing subject and a token's own part, as hidden states of a text have them
    subject = torch.randn(12_000 // 40, 64, generator=generator).repeat_interleave(40, dim=0)
    hidden = torch.nn.functional.layer_norm(subject + torch.randn(12_000, 64, generator=generator), (64,))
    queries = hidden[torch.randint(0, 12_000, (8,), generator=generator)]
    queries = (queries + torch.randn(8, 64, generator=generator)) * 0.2
    caught = {}
    for name in ("flat", index):
        text = encoded(hidden, num_settled=11_500, block=16, index=name)
        blocks = choose(queries, text, 16)
        mass = (queries @ hidden.T).softmax(1).unflatten(1, (-1, 16)).sum(2)
        caught[name] = mass.gather(1, blocks).sum(1).mean().item()
    if index != "block_minmax":
        assert text.index_nbytes > 0, "the index is still exact, so nothing was tested"
    assert caught[index] >= least * caught["flat"]
