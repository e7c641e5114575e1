"""The router's choice and weights against a plain reimplementation, and its counting."""

import numpy as np
import pytest
import torch

from hsokv_ray.models import HMSTConfig
from hsokv_ray.models.router import HMSTRouter


def make_router(**change) -> HMSTRouter:
    torch.manual_seed(0)
    router = HMSTRouter(HMSTConfig(**({"hidden_size": 32, "num_experts": 6, "num_experts_per_tok": 2} | change)))
    torch.nn.init.normal_(router.weight)
    return router


def reference(hidden, weight, bias, scoring, top_k):
    """One token at a time, in float64 NumPy."""
    chosen, weights = [], []
    for row in hidden.astype(np.float64):
        logits = weight.astype(np.float64) @ row
        scores = 1 / (1 + np.exp(-logits)) if scoring == "sigmoid" else np.exp(logits) / np.exp(logits).sum()
        best = np.argsort(scores + bias)[::-1][:top_k]
        chosen.append(best)
        weights.append(scores[best] / scores[best].sum())
    return np.array(chosen), np.array(weights)


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_choice_follows_score_plus_bias_and_weights_follow_the_score_alone(scoring):
    router = make_router(router_scoring=scoring)
    router.expert_bias.copy_(torch.linspace(-0.4, 0.4, 6))
    hidden = torch.randn(50, 32)
    routing = router(hidden)
    chosen, weights = reference(
        hidden.numpy(), router.weight.detach().numpy(), router.expert_bias.numpy(), scoring, top_k=2
    )
    order = routing.index_NK.argsort(dim=-1)
    order_reference = chosen.argsort(axis=-1)
    np.testing.assert_array_equal(routing.index_NK.gather(-1, order), np.take_along_axis(chosen, order_reference, -1))
    np.testing.assert_allclose(
        routing.weights_NK.detach().gather(-1, order), np.take_along_axis(weights, order_reference, -1), rtol=1e-5
    )


def test_routing_is_the_same_under_autocast():
    router, hidden = make_router(), torch.randn(50, 32)
    plain = router(hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = router(hidden)
    assert cast.logits_NE.dtype == torch.float32
    for a, b in zip(plain, cast, strict=True):
        assert torch.equal(a, b)


def test_the_choice_gives_the_bias_no_gradient_and_the_router_one():
    for top_k in (1, 2):
        router = make_router(num_experts_per_tok=top_k)
        routing = router(torch.randn(50, 32))
        (routing.weights_NK * torch.randn(50, top_k)).sum().backward()
        assert router.weight.grad.abs().max() > 0
        assert not router.expert_bias.requires_grad


def test_counts_are_the_tokens_of_each_expert_without_padding():
    router = make_router()
    routing = router(torch.randn(50, 32))
    valid = torch.arange(50) < 20
    router.count(routing.index_NK)
    router.count(routing.index_NK, valid)
    expected = np.bincount(routing.index_NK.flatten(), minlength=6)
    expected += np.bincount(routing.index_NK[:20].flatten(), minlength=6)
    np.testing.assert_array_equal(router.tokens_per_expert, expected)


def test_a_lower_precision_leaves_the_counts_exact():
    assert make_router().to(torch.bfloat16).tokens_per_expert.dtype == torch.int64
