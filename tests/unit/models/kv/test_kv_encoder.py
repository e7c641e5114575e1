"""The encoder against plain NumPy loops, and its padding."""

import math

import numpy as np
import pytest
import torch

from hsokv_ray.errors import ConfigError, DataError
from hsokv_ray.models import KVTransformerConfig
from hsokv_ray.models.kv_encoder import KVEncoder, allowed_pairs


def encoder_of(config: KVTransformerConfig) -> KVEncoder:
    torch.manual_seed(0)
    encoder = KVEncoder(config).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def layer_norm(rows: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    centred = rows - rows.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(rows.var(-1, keepdims=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(rows: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    return rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def attend(rows: np.ndarray, weights: dict[str, np.ndarray], name: str, *, num_heads: int, causal: bool) -> np.ndarray:
    """Each query of each head by itself."""
    size = rows.shape[1] // num_heads
    query, key, value = np.split(linear(rows, weights, f"{name}.qkv_proj"), 3, axis=1)
    out = np.zeros_like(rows)
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(rows)):
            seen = i + 1 if causal else len(rows)
            scores = np.array([query[i, part] @ key[j, part] / math.sqrt(size) for j in range(seen)])
            shares = np.exp(scores - scores.max())
            shares /= shares.sum()
            out[i, part] = sum(share * value[j, part] for j, share in enumerate(shares))
    return linear(out, weights, f"{name}.out_proj")


def reference(encoder: KVEncoder, ids: list[int]) -> np.ndarray:
    """The states [T, D] of one sequence without padding, in float64."""
    weights = {name: tensor.double().numpy() for name, tensor in encoder.state_dict().items()}
    config, causal = encoder.config, encoder.config.head == "language_model"
    rows = weights["embed_tokens.weight"][ids] + weights["embed_positions.weight"][: len(ids)]
    rows = layer_norm(rows, weights, "embed_norm")
    for i in range(config.num_hidden_layers):
        name = f"layers.{i}"
        normed = layer_norm(rows, weights, f"{name}.attention_norm")
        rows = rows + attend(normed, weights, f"{name}.attention", num_heads=config.num_attention_heads, causal=causal)
        wide = linear(layer_norm(rows, weights, f"{name}.mlp_norm"), weights, f"{name}.mlp.0")
        erf = np.vectorize(math.erf)
        rows = rows + linear(wide * 0.5 * (1 + erf(wide / math.sqrt(2))), weights, f"{name}.mlp.2")
    return layer_norm(rows, weights, "norm")


def padded(rows: list[list[int]], *, left: bool, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask; padding holds a real token's id, so that only the mask can keep it out."""
    ids, mask = torch.full((len(rows), width), 7), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), None) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    return ids, mask


ROWS = [[3, 9, 27, 1], [5], [2, 4, 8, 16, 32, 60, 11]]


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("head", ["classification", "language_model"])
def test_the_states_of_a_padded_batch_are_those_of_loops_over_each_sequence_alone(kv_config, head, left) -> None:
    encoder = encoder_of(kv_config(head=head))
    ids, mask = padded(ROWS, left=left, width=10)
    states = encoder(ids, mask, None)
    for i, row in enumerate(ROWS):
        expected = reference(encoder, row)
        np.testing.assert_allclose(states.hidden_BTD[i][mask[i].bool()].detach().numpy(), expected, atol=2e-5)
        if head == "classification":
            np.testing.assert_allclose(states.pooled_BD[i].detach().numpy(), expected.mean(0), atol=2e-5)


@pytest.mark.parametrize("left", [False, True])
def test_more_padding_changes_nothing(kv_config, left) -> None:
    encoder = encoder_of(kv_config())
    short, long = (encoder(*padded(ROWS, left=left, width=width), None).pooled_BD for width in (7, 20))
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)


def test_without_a_mask_the_pad_token_is_padding(kv_config) -> None:
    encoder = encoder_of(kv_config(pad_token_id=0))
    ids, mask = padded(ROWS, left=False, width=9)
    torch.testing.assert_close(encoder(ids * mask, None, None).pooled_BD, encoder(ids, mask, None).pooled_BD)


def test_gradients_stay_finite_beside_padding_on_the_left_of_a_causal_encoder(kv_config) -> None:
    encoder = encoder_of(kv_config(head="language_model"))
    ids, mask = padded(ROWS, left=True, width=12)
    encoder(ids, mask, None).hidden_BTD[mask.bool()].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_a_causal_pair_is_allowed_where_the_key_is_a_token_not_after_the_query() -> None:
    mask = torch.tensor([[False, True, True]])
    expected = [[True, False, False], [False, True, False], [False, True, True]]
    assert allowed_pairs(mask, causal=True)[0, 0].tolist() == expected
    assert allowed_pairs(mask, causal=False)[0, 0].tolist() == [[False, True, True]]


def test_ready_vectors_pass_a_projection_and_a_norm_alone(kv_config, some_vectors) -> None:
    encoder = encoder_of(kv_config(input="vectors", input_dim=12))
    weights = {name: tensor.double().numpy() for name, tensor in encoder.state_dict().items()}
    expected = layer_norm(linear(some_vectors().double().numpy(), weights, "input_proj"), weights, "norm")
    np.testing.assert_allclose(encoder(None, None, some_vectors()).pooled_BD.detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "mask", "said"),
    [
        (None, None, "this model takes tokens"),
        (torch.ones(3, dtype=torch.long), None, r"input_ids: got \[3\]"),
        (torch.ones(1, 21, dtype=torch.long), None, "1 to 20 tokens"),
        (torch.ones(1, 0, dtype=torch.long), None, "1 to 20 tokens"),
        (torch.tensor([[61]]), None, "the vocabulary is 0 to 60"),
        (torch.tensor([[-1]]), None, "the vocabulary is 0 to 60"),
        (torch.ones(1, 2, dtype=torch.long), torch.ones(1, 3), "attention_mask: got"),
        (torch.tensor([[1], [0]]), None, "sequence 1 is all padding"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(kv_config, ids, mask, said) -> None:
    with pytest.raises(DataError, match=said):
        encoder_of(kv_config())(ids, mask, None)


def test_vectors_that_do_not_fit_are_refused(kv_config) -> None:
    encoder = encoder_of(kv_config(input="vectors", input_dim=12))
    for given in (None, torch.ones(2, 11), torch.ones(12), torch.ones(2, 12, dtype=torch.long)):
        with pytest.raises(DataError, match="vectors"):
            encoder(None, None, given)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_attention_heads": 3}, "num_attention_heads: got 3"),
        ({"hidden_size": 0}, "hidden_size: got 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"input": "vectors"}, "input_dim"),
        ({"input": "vectors", "input_dim": 4, "head": "language_model"}, "language_model"),
        ({"memory": None, "key_encoder": "frozen"}, "without a memory"),
        ({"memory": {"top_k": 0}}, "top-k: got 0"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(kv_config, changes, said) -> None:
    with pytest.raises(ConfigError, match=said):
        kv_config(**changes)


def test_presets_are_what_they_say() -> None:
    base, tiny = (KVTransformerConfig.preset(name, num_labels=3) for name in ("base", "tiny"))
    assert (base.num_hidden_layers, base.hidden_size) == (4, 256)
    assert (tiny.num_hidden_layers, tiny.hidden_size, tiny.num_labels) == (2, 64, 3)
    assert base.memory is not None
    assert base.memory["key_dim"] == 256
    with pytest.raises(ConfigError, match="tiny or base"):
        KVTransformerConfig.preset("huge")
