"""Codes: what they find in long texts, what they cost, and when they are made."""

import faiss
import numpy as np
import pytest
import torch

from hsokv_ray.longcontext.index import coded, faiss_heads, make_index, select_blocks
from hsokv_ray.longcontext.index.inverted import num_lists
from hsokv_ray.longcontext.index.product import LEAST_TOKENS

N, D, S = 32768, 64, 64
SHAPE = {"num_heads": 1, "head_dim": D, "block_size": S}


@pytest.fixture(scope="module")
def haystack() -> torch.Tensor:
    """Independent normal keys: no block resembles its needle, the worst case for summaries of blocks."""
    return torch.randn(1, N, D, generator=torch.Generator().manual_seed(0))


def with_needles(keys: torch.Tensor, sigmas: float, num_needles: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return keys, queries [num_needles, D] and places: the key there is `sigmas` deviations along its query."""
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(num_needles, D, generator=generator)
    places = torch.randperm(N, generator=generator)[:num_needles]
    along = queries / queries.norm(dim=1, keepdim=True)
    keys = keys.clone()
    needles = keys[0, places]
    keys[0, places] = needles + (sigmas - (needles * along).sum(1, keepdim=True)) * along
    return keys, queries, places.tolist()


def share_found(name: str, keys: torch.Tensor, queries: torch.Tensor, places: list[int]) -> float:
    index = make_index(name, **SHAPE)
    index.add(keys, keys)
    found = 0
    for query, place in zip(queries, places, strict=True):
        chosen = select_blocks(index.block_logits(query[None, None], keys, 32), 32, D**-0.5)
        found += place // S in chosen[0].tolist()
    return found / len(places)


@pytest.mark.parametrize("name", ["flat", "pq"])
@pytest.mark.parametrize(("sigmas", "least"), [(4.5, 0.9), (8.0, 1.0)])
def test_a_single_key_is_found_among_32k(haystack, name: str, sigmas: float, least: float) -> None:
    keys, queries, places = with_needles(haystack, sigmas, 50)
    assert share_found(name, keys, queries, places) >= least


def test_codes_find_what_summaries_of_blocks_miss(haystack) -> None:
    keys, queries, places = with_needles(haystack, 4.5, 50)
    codes = share_found("pq", keys, queries, places)
    assert share_found("block_mean", keys, queries, places) < codes - 0.3
    assert share_found("block_minmax", keys, queries, places) < codes - 0.3


def test_blocks_found_in_correlated_keys_hold_most_of_the_attention_that_can_be_fetched() -> None:
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, D + 1) ** -0.5
    segments = torch.randn(2, N // 64, D, generator=generator).repeat_interleave(64, 1)
    keys = (segments + torch.randn(2, N, D, generator=generator)) * spectrum * 3
    index = make_index("pq", **{**SHAPE, "num_heads": 2})
    index.add(keys, keys)
    exact = make_index("flat", **{**SHAPE, "num_heads": 2})
    exact.add(keys, keys)
    fetched = np.zeros(2)
    for _ in range(24):  # four queries as unlike each other as any, so no sixteen blocks are right for all
        queries = keys[:, torch.randint(0, N, (4,), generator=generator)]
        attention_KQB = (queries @ keys.transpose(1, 2) * D**-0.5).softmax(2).unflatten(2, (-1, S)).sum(3)
        for number, each in enumerate((index, exact)):
            chosen = select_blocks(each.block_logits(queries, keys, 16), 16, D**-0.5)
            fetched[number] += float(attention_KQB.sum(1).gather(1, chosen).sum())
    assert fetched[0] >= 0.8 * fetched[1]


def test_codes_take_at_most_4_percent_of_the_keys_and_values(haystack) -> None:
    index = make_index("pq", **SHAPE)
    index.add(haystack, haystack)
    assert 0 < index.nbytes <= 0.04 * 2 * haystack.nbytes
    assert index.fork().nbytes == index.nbytes
    assert sum(array.nbytes for array in index.state().values()) <= 0.04 * 2 * haystack.nbytes


def test_auto_is_exact_up_to_flat_below_and_codes_from_there() -> None:
    keys = torch.randn(2, 2000, 8, generator=torch.Generator().manual_seed(0))
    index = make_index("auto", num_heads=2, head_dim=8, block_size=4, flat_below=1000)
    index.add(keys[:, :1000], keys[:, :1000])
    assert (index.num_coded_tokens, index.nbytes) == (0, 0)
    index.add(keys[:, 1000:1004], keys[:, :1004])
    assert index.num_coded_tokens == 1004
    assert index.nbytes > 0


def test_no_codebook_is_learnt_from_fewer_tokens_than_faiss_asks_for(capfd) -> None:
    assert faiss.ClusteringParameters().min_points_per_centroid * 16 == LEAST_TOKENS
    keys = torch.randn(1, 16384, 8, generator=torch.Generator().manual_seed(0))
    for name in ("pq", "ivf"):
        for block_size in (1, 16):
            index = make_index(name, num_heads=1, head_dim=8, block_size=block_size)
            for end in (LEAST_TOKENS - LEAST_TOKENS % block_size - block_size, 640, 4096, 9600, 16384):
                index.add(keys[:, index.num_tokens : end], keys[:, :end])
                assert (index.num_coded_tokens > 0) == (end >= LEAST_TOKENS)
    assert "WARNING" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("num_tokens", [1, 63, 64, 624, 4096, 100_000, 10_000_000])
def test_lists_never_have_fewer_tokens_than_a_centroid_needs(num_tokens: int) -> None:
    least = faiss.ClusteringParameters().min_points_per_centroid
    assert num_lists(num_tokens) == 1 or num_lists(num_tokens) * least <= num_tokens
    assert num_lists(num_tokens) <= num_lists(4 * num_tokens)


def test_inverted_lists_are_made_anew_when_the_text_has_doubled(monkeypatch) -> None:
    monkeypatch.setattr(coded, "TAIL_TOKENS", 64)
    keys = torch.randn(1, 4096, 8, generator=torch.Generator().manual_seed(0))
    index = make_index("ivf", num_heads=1, head_dim=8, block_size=4)
    for end in range(64, 4097, 64):
        index.add(keys[:, end - 64 : end], keys[:, :end])
        if index._heads is not None:
            assert index._heads.num_tokens <= 2 * index._heads.num_trained_tokens
            assert index._heads.on_cpu()[0].nlist == num_lists(index._heads.num_trained_tokens)
    assert index.num_coded_tokens > 3900


def test_a_seed_makes_the_same_codes_again(haystack) -> None:
    states = []
    for seed in (3, 3, 4):
        index = make_index("pq", **SHAPE, seed=seed)
        index.add(haystack[:, :4096], haystack[:, :4096])
        states.append(index.state()["head_0"])
    assert np.array_equal(states[0], states[1])
    assert not np.array_equal(states[0], states[2])


def test_growing_a_copy_finds_what_encoding_at_once_finds(haystack, monkeypatch) -> None:
    """With the same codebooks, codes that grew in steps and through forks equal codes made at once."""
    monkeypatch.setattr(coded, "TAIL_TOKENS", 64)
    index = make_index("pq", **SHAPE)
    index.add(haystack[:, :1024], haystack[:, :1024])
    grown = index.fork()
    for end in range(1152, 4097, 128):
        grown.add(haystack[:, end - 128 : end], haystack[:, :end])
        grown = grown.fork()
    index.add(haystack[:, 1024:4096], haystack[:, :4096])
    assert grown.num_coded_tokens == index.num_coded_tokens == 4096
    assert np.array_equal(grown.state()["head_0"], index.state()["head_0"])


def test_searching_leaves_the_threads_of_faiss_as_they_were(haystack) -> None:
    index = make_index("pq", **SHAPE)
    index.add(haystack, haystack)
    faiss.omp_set_num_threads(3)
    index.block_logits(torch.randn(1, 4, D), haystack, 4)
    assert faiss.omp_get_max_threads() == 3
    faiss.omp_set_num_threads(1)


def test_several_threads_find_what_one_finds(monkeypatch) -> None:
    keys = torch.randn(5, 4096, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for pairs in (2**40, 0):
        monkeypatch.setattr(faiss_heads, "PAIRS_WORTH_THREADS", pairs)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        index = make_index("pq", num_heads=5, head_dim=8, block_size=4)
        index.add(keys, keys)
        found.append(index.block_logits(keys[:, :4], keys, 8))
    assert found[0].isinf().any(), "codes were searched"
    assert torch.equal(found[0], found[1])


def test_an_error_in_another_thread_reaches_the_caller(monkeypatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def fail(head: int) -> None:
        if head == 1:
            raise RuntimeError("head 1")

    with pytest.raises(RuntimeError, match="head 1"):
        faiss_heads.over_heads(fail, 2, parallel=True)


@pytest.mark.parametrize("num_tokens", [8192 + 16, 12_000, 20_000 // 16 * 16])
def test_an_index_of_the_first_tokens_finds_what_a_search_of_all_finds_among_them(haystack, num_tokens: int) -> None:
    index = make_index("pq", num_heads=1, head_dim=D, block_size=16)
    index.add(haystack, haystack)
    queries = torch.randn(1, 8, D, generator=torch.Generator().manual_seed(2))
    everything = index._heads.search(queries.numpy(), N)[0]
    first = index.first(haystack[:, :num_tokens])
    found = first._heads.search(queries.numpy(), 256)[0]
    for wanted, have in zip(everything, found, strict=True):
        expected = set(wanted[wanted < num_tokens][:256].tolist())
        assert len(expected & set(have.tolist())) >= 250  # codes have 16 levels a pair: ties at the end


@pytest.mark.parametrize("name", ["flat", "pq", "ivf", "auto", "block_mean", "block_minmax"])
@pytest.mark.parametrize("num_tokens", [64, 12_032])
def test_an_index_of_the_first_tokens_is_as_good_as_one_made_of_them(haystack, name: str, num_tokens: int) -> None:
    whole, own = make_index(name, **SHAPE), make_index(name, **SHAPE)
    keys = haystack[:, :num_tokens]
    whole.add(haystack, haystack)
    own.add(keys, keys)
    first = whole.first(keys)
    assert first.num_tokens == num_tokens
    queries = torch.randn(1, 64, D, generator=torch.Generator().manual_seed(3))
    exact = torch.bmm(queries, keys.transpose(1, 2)).unflatten(2, (-1, S)).amax(3)
    shares = [_share_of_best(index.block_logits(queries, keys, 16), exact) for index in (first, own)]
    assert shares[0] >= shares[1] - 0.05, shares
    assert whole.num_tokens == N


def _share_of_best(logits_KQB: torch.Tensor, exact_KQB: torch.Tensor) -> float:
    wanted = min(16, exact_KQB.shape[2])
    best, have = exact_KQB.topk(wanted).indices, logits_KQB.topk(wanted)
    seen = have.indices.masked_fill(have.values.isinf(), -1)
    return (best[..., None] == seen[..., None, :]).any(-1).float().mean().item()
