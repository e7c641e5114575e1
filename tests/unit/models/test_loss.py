"""Losses against torch's, transformers' and brute-force versions, and how they add up."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from hsokv_ray.models import HMSTConfig, HMSTForCausalLM
from hsokv_ray.models.loss import (
    IGNORE_INDEX,
    cross_entropy_sum,
    fused_cross_entropy_sum,
    router_z_loss_sum,
    shift_left,
    switch_loss,
)

CONFIG = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts": 4,
}


def problem(num_tokens: int, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    hidden = torch.randn(num_tokens, 16, dtype=dtype, requires_grad=True)
    head = nn.Linear(16, 97, bias=False, dtype=dtype)
    targets = torch.randint(0, 97, (num_tokens,))
    targets[::7] = IGNORE_INDEX
    return hidden, head, targets


def test_labels_move_by_one_and_the_last_has_no_target():
    assert shift_left(torch.tensor([[5, 6, 7]])).tolist() == [[6, 7, IGNORE_INDEX]]


@pytest.mark.parametrize("with_torch_fused", [True, False])
def test_fused_cross_entropy_and_its_gradients_equal_the_plain_ones(with_torch_fused, monkeypatch):
    if not with_torch_fused:
        monkeypatch.delattr(nn, "LinearCrossEntropyOptions")
    hidden, head, targets = problem(1100)
    plain = cross_entropy_sum(head(hidden), targets)
    plain_grads = torch.autograd.grad(plain, [hidden, head.weight])
    fused = fused_cross_entropy_sum(hidden, head, targets)
    fused_grads = torch.autograd.grad(fused, [hidden, head.weight])
    torch.testing.assert_close(fused, plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(fused_grads, plain_grads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["bf16 weights", "autocast"])
def test_fused_cross_entropy_in_bf16_is_summed_in_fp32(how):
    hidden, head, targets = problem(1100, torch.bfloat16 if how == "bf16 weights" else torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        fused = fused_cross_entropy_sum(hidden, head, targets)
        logits = head(hidden)
    expected = F.cross_entropy(logits.double(), targets, ignore_index=IGNORE_INDEX, reduction="sum")
    assert fused.dtype == torch.float32
    assert fused.item() == pytest.approx(expected.item(), rel=1e-5)


def test_z_loss_is_the_squared_logsumexp_of_valid_tokens_averaged_over_layers():
    layers = [torch.randn(10, 4), torch.randn(10, 4)]
    valid = torch.arange(10) % 3 != 0
    by_hand = 0.0
    for logits in layers:
        for row, keep in zip(logits.tolist(), valid.tolist(), strict=True):
            by_hand += keep * torch.tensor(row, dtype=torch.float64).exp().sum().log().item() ** 2
    assert router_z_loss_sum(layers, valid).item() == pytest.approx(by_hand / 2, rel=1e-5)


def test_switch_loss_is_that_of_transformers_per_expert_a_token_is_sent_to():
    logits, valid = torch.randn(60, 4), torch.arange(60) < 45
    expected = load_balancing_loss_func((logits,), 4, 2, valid.long()[None])
    assert switch_loss(logits, valid, top_k=2, scoring="softmax").item() == pytest.approx(expected.item() / 2, rel=1e-5)


def test_switch_loss_of_an_even_router_is_one_and_of_a_collapsed_one_more():
    even = torch.eye(4).repeat(8, 1) * 5
    collapsed = torch.tensor([5.0, 4.0, 0.0, 0.0]).repeat(32, 1)
    valid = torch.ones(32, dtype=torch.bool)
    for scoring in ("sigmoid", "softmax"):
        assert switch_loss(even, valid, top_k=1, scoring=scoring).item() == pytest.approx(1.0)
        assert switch_loss(collapsed, valid, top_k=2, scoring=scoring).item() > 1.2


def test_losses_and_gradients_of_micro_batches_add_up_to_those_of_the_batch():
    torch.manual_seed(0)
    model = HMSTForCausalLM(HMSTConfig(**CONFIG)).train()
    ids = torch.randint(0, 97, (6, 20))
    targets = shift_left(ids)
    targets[:3, 5:11] = IGNORE_INDEX
    whole = model(input_ids=ids, shift_labels=targets)
    whole.loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    num_items, losses, aux_losses = targets.ne(IGNORE_INDEX).sum(), [], []
    for part in (slice(0, 1), slice(1, 6)):
        out = model(input_ids=ids[part], shift_labels=targets[part], num_items_in_batch=num_items)
        out.loss.backward()
        losses.append(out.loss.item())
        aux_losses.append(out.aux_loss.item())
    assert sum(losses) == pytest.approx(whole.loss.item(), rel=1e-6)
    assert sum(aux_losses) == pytest.approx(whole.aux_loss.item(), rel=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_loss_without_the_auxiliary_part_is_the_cross_entropy_of_the_logits():
    torch.manual_seed(0)
    model = HMSTForCausalLM(HMSTConfig(**CONFIG, router_aux_loss_coef=0.01)).train()
    ids = torch.randint(0, 97, (2, 20))
    out = model(input_ids=ids, labels=ids)
    expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert out.aux_loss.item() > 0.01
    assert (out.loss - out.aux_loss).item() == pytest.approx(expected.item(), rel=1e-6)


def test_training_with_a_large_vocabulary_gives_the_same_loss_without_logits():
    torch.manual_seed(0)
    model = HMSTForCausalLM(HMSTConfig(**(CONFIG | {"vocab_size": 32_000}))).train()
    ids = torch.randint(0, 32_000, (2, 20))
    fused, plain = model(input_ids=ids, labels=ids), model(input_ids=ids, labels=ids, skip_logits=False)
    assert fused.logits is None
    assert fused.loss.item() == pytest.approx(plain.loss.item(), rel=1e-6)
    assert model.eval()(input_ids=ids, labels=ids).logits is not None
