"""The bias update against the paper's rule, and its effect on a language model of real text."""

from pydoc_data.topics import topics

import numpy as np
import pytest
import torch

from hsokv_ray.models import HMSTConfig, HMSTForCausalLM, LoadBalancer

CONFIG = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts": 8,
}


def model_with_counts(counts: list[list[int]]) -> HMSTForCausalLM:
    model = HMSTForCausalLM(HMSTConfig(**CONFIG))
    for layer, row in zip(model.model.layers, counts, strict=True):
        layer.mlp.router.tokens_per_expert.copy_(torch.tensor(row))
    return model


def test_the_bias_moves_by_the_sign_of_the_missing_load_centred():
    model = model_with_counts([[10, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 2, 2, 2, 2]])
    LoadBalancer(model, rate=0.5).step(0.0)
    # mean 1.25: one expert above, seven below; signs -1, +1 x 7 less their mean 0.75
    expected = [0.5 * (-1 - 0.75)] + [0.5 * (1 - 0.75)] * 7
    np.testing.assert_allclose(model.model.layers[0].mlp.router.expert_bias, expected, rtol=1e-6)
    np.testing.assert_allclose(model.model.layers[1].mlp.router.expert_bias, [0.5] * 4 + [-0.5] * 4, rtol=1e-6)


@pytest.mark.parametrize(("progress", "rate"), [(0.0, 1e-2), (0.5, 5.5e-3), (1.0, 1e-3), (1.2, 1e-3)])
def test_the_rate_falls_to_a_tenth_over_the_run(progress, rate):
    model = model_with_counts([[1, 1, 1, 1, 2, 2, 2, 2]] * 2)
    LoadBalancer(model, rate=1e-2).step(progress)
    assert model.model.layers[0].mlp.router.expert_bias.abs().max().item() == pytest.approx(rate, rel=1e-5)


@pytest.mark.parametrize("kind", ["switch", "none"])
def test_other_kinds_only_measure(kind):
    model = model_with_counts([[4, 0, 0, 0, 0, 0, 0, 0], [1] * 8])
    metrics = LoadBalancer(model, kind=kind).step(0.0)
    assert not any(layer.mlp.router.expert_bias.any() for layer in model.model.layers)
    assert metrics.load == [[1.0, 0, 0, 0, 0, 0, 0, 0], [0.125] * 8]
    assert metrics.entropy == pytest.approx(0.5)
    assert (metrics.max_violation, metrics.worst_violation) == (pytest.approx(3.5), pytest.approx(7.0))


def test_a_step_starts_the_count_again():
    model = model_with_counts([[1] * 8] * 2)
    balancer = LoadBalancer(model)
    assert balancer.step(0.0) is not None
    assert balancer.step(0.0) is None


def test_a_dense_model_has_nothing_to_balance():
    model = HMSTForCausalLM(HMSTConfig(**(CONFIG | {"num_experts": 1, "num_experts_per_tok": 1})))
    assert LoadBalancer(model).step(0.0) is None


def prose() -> np.ndarray:
    """The language reference that `help()` shows: half a megabyte of English, on every machine."""
    return np.frombuffer("\n".join(topics.values()).encode(), dtype=np.uint8)


def violations(kind: str, num_steps: int = 300) -> list[float]:
    """Train a byte-level language model on English; return the largest violation of each step."""
    torch.manual_seed(0)
    text, rng = prose(), np.random.default_rng(0)
    model = HMSTForCausalLM(HMSTConfig(**CONFIG)).train()
    balancer = LoadBalancer(model, kind=kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    found = []
    for step in range(num_steps):
        # many short windows: 4,096 nearly independent tokens keep the noise of the measure itself below a tenth
        starts = rng.integers(0, len(text) - 16, 256)
        ids = torch.from_numpy(np.stack([text[i : i + 16] for i in starts]).astype(np.int64))
        model(input_ids=ids, labels=ids).loss.backward()
        found.append(balancer.step(step / num_steps).max_violation)
        optimizer.step()
        optimizer.zero_grad()
    return found


def test_the_bias_keeps_the_load_within_15_percent_after_300_steps_on_real_text():
    assert np.mean(violations("bias")[-50:]) <= 0.15


def test_without_balancing_the_load_stays_uneven():
    assert np.mean(violations("none", num_steps=50)[-10:]) > 0.5
