"""The peers of the benchmark are what they claim: each against attention written out by hand."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

import longcontext_peers as peers  # noqa: E402

from hsokv_ray.errors import ConfigError  # noqa: E402

WINDOW, SINKS, VOCAB = 16, 4, 50
SHAPE = peers.Shape(
    num_layers=2,
    hidden_size=32,
    intermediate_size=48,
    num_heads=4,
    num_key_value_heads=2,
    vocab_size=VOCAB,
    window=WINDOW,
)
CHUNKS = [5, 7, 6, 1, 1, 8, 1, 1, 1, 12, 1, 1]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    model = peers.random_model(SHAPE)
    with torch.no_grad():  # random weights attend almost evenly; larger ones make every key count
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight.mul_(20)
    return model


def rotated(x_D: Tensor, position: int, inv_freq: Tensor) -> Tensor:
    """Rotary embedding as multiplication of complex numbers, in float64."""
    first, second = x_D.double().chunk(2)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(first), position * inv_freq.double())
    return torch.cat((turned.real, turned.imag))


class ByHand:
    """Attention over named tokens at named positions; keys and values of all tokens are kept, unrotated."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model
        self.kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in model.model.layers]

    def read(self, ids: Tensor, *, visible: list[list[int]], positions: list[list[int]]) -> Tensor:
        """Return the logits after the last of `ids`; query i sees the tokens visible[i] at positions[i]."""
        x_TD = self.model.model.embed_tokens(ids)
        for layer, kept in zip(self.model.model.layers, self.kept, strict=True):
            x_TD = x_TD + self._attend(layer, kept, layer.input_layernorm(x_TD), visible, positions)
            x_TD = x_TD + layer.mlp(layer.post_attention_layernorm(x_TD))
        return self.model.lm_head(self.model.model.norm(x_TD))[-1]

    def _attend(self, layer, kept, x_TD, visible, positions) -> Tensor:
        attention, size = layer.self_attn, SHAPE.head_dim
        queries, keys, values = (
            project(x_TD).unflatten(1, (-1, size)) for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        kept.extend(zip(keys, values, strict=True))
        inv_freq = self.model.model.rotary_emb.inv_freq
        rows = []
        for query, tokens, where in zip(queries, visible, positions, strict=True):
            heads = []
            for head in range(SHAPE.num_heads):
                group = head // (SHAPE.num_heads // SHAPE.num_key_value_heads)
                turned = rotated(query[head], where[-1], inv_freq)
                scores = torch.stack(
                    [turned @ rotated(kept[t][0][group], p, inv_freq) for t, p in zip(tokens, where, strict=True)]
                )
                weights = (scores * size**-0.5).softmax(0)
                heads.append(weights @ torch.stack([kept[t][1][group] for t in tokens]).double())
            rows.append(torch.cat(heads))
        return attention.o_proj(torch.stack(rows).float())


@torch.no_grad()
def test_streaming_attends_to_the_sinks_and_the_newest_at_positions_counted_inside_the_cache(model) -> None:
    by_hand, reader = ByHand(model), peers.streaming(model, window=WINDOW, chunk=WINDOW)
    ids = torch.randint(VOCAB, (sum(CHUNKS),), generator=torch.Generator().manual_seed(1))
    seen = 0
    for part in ids.split(CHUNKS):
        excess = max(0, seen + len(part) - WINDOW)
        cached = [t for t in range(seen) if t < SINKS or t >= SINKS + excess]
        visible = [cached + list(range(seen, seen + i + 1)) for i in range(len(part))]
        wanted = by_hand.read(part, visible=visible, positions=[list(range(len(v))) for v in visible])
        torch.testing.assert_close(reader.forward(part[None]), wanted, atol=1e-4, rtol=1e-4)
        seen += len(part)


@torch.no_grad()
def test_sliding_attends_to_the_newest_tokens_of_one_window_and_to_nothing_else(model) -> None:
    by_hand, reader = ByHand(model), peers.sliding(model, window=WINDOW, chunk=WINDOW)
    ids = torch.randint(VOCAB, (sum(CHUNKS),), generator=torch.Generator().manual_seed(2))
    seen = 0
    for part in ids.split(CHUNKS):
        visible = [list(range(max(0, t - WINDOW + 1), t + 1)) for t in range(seen, seen + len(part))]
        wanted = by_hand.read(part, visible=visible, positions=visible)
        torch.testing.assert_close(reader.forward(part[None]), wanted, atol=1e-4, rtol=1e-4)
        seen += len(part)


@torch.no_grad()
def test_full_attends_to_everything(model) -> None:
    by_hand, reader = ByHand(model), peers.full(model, chunk=WINDOW)
    ids = torch.randint(VOCAB, (40,), generator=torch.Generator().manual_seed(3))
    reader.read(ids[None, :39])
    visible = [list(range(t + 1)) for t in range(39)]
    by_hand.read(ids[:39], visible=visible, positions=visible)
    wanted = by_hand.read(ids[39:], visible=[list(range(40))], positions=[list(range(40))])
    torch.testing.assert_close(reader.forward(ids[None, 39:]), wanted, atol=1e-4, rtol=1e-4)


MAKE = {
    "full": lambda model: peers.full(model, chunk=8),
    "sliding": lambda model: peers.sliding(model, window=WINDOW, chunk=8),
    "streaming": lambda model: peers.streaming(model, window=WINDOW, chunk=8),
}


@pytest.mark.parametrize("name", MAKE)
@torch.no_grad()
def test_a_forked_reader_goes_its_own_way(model, name: str) -> None:
    ids = torch.randint(VOCAB, (1, 60), generator=torch.Generator().manual_seed(4))
    reader, untouched = MAKE[name](model), MAKE[name](model)
    for one in (reader, untouched):
        one.read(ids[:, :50])
    fork = reader.fork()
    fork.read(ids[:, 50:].flip(1))
    assert torch.equal(reader.forward(ids[:, 50:51]), untouched.forward(ids[:, 50:51]))


@pytest.mark.parametrize("name", MAKE)
@torch.no_grad()
def test_a_filled_reader_holds_what_one_that_read_as_much_holds(model, name: str) -> None:
    filled, read = MAKE[name](model), MAKE[name](model)
    filled.fill(48, seed=0)
    read.read(torch.zeros(1, 48, dtype=torch.long))
    assert filled.kv_bytes == read.kv_bytes
    assert filled.cache.get_seq_length() == read.cache.get_seq_length() == 48
    for reader in (filled, read):  # and goes on from there
        reader.forward(torch.zeros(1, 1, dtype=torch.long))
    assert filled.kv_bytes == read.kv_bytes


@pytest.mark.parametrize("index", ["flat", "block_mean"])
@torch.no_grad()
def test_a_filled_memory_holds_what_one_that_was_read_holds(index: str) -> None:
    model = peers.random_model(replace(SHAPE, window=256))
    filled, read = (peers.make_reader(index, model, chunk=64) for _ in range(2))
    filled.fill(1000, seed=0)
    read.read(torch.zeros(1, 1000, dtype=torch.long))
    assert filled.kv_bytes == read.kv_bytes == 1000 * SHAPE.kv_bytes_per_token()
    assert filled.index_bytes == read.index_bytes


@torch.no_grad()
def test_only_full_attention_grows(model) -> None:
    bytes_of = {}
    for name, make in MAKE.items():
        reader = make(model)
        reader.read(torch.zeros(1, 200, dtype=torch.long))
        bytes_of[name] = reader.kv_bytes
    assert bytes_of["full"] == 200 * SHAPE.kv_bytes_per_token()
    assert bytes_of["sliding"] == (WINDOW - 1) * SHAPE.kv_bytes_per_token()
    assert bytes_of["streaming"] == WINDOW * SHAPE.kv_bytes_per_token()


def test_a_chunk_that_leaves_no_room_for_the_sinks_is_refused(model) -> None:
    reader = peers.streaming(model, window=WINDOW, chunk=64)
    with pytest.raises(ConfigError, match="does not fit"):
        reader.read(torch.zeros(1, 40, dtype=torch.long))
