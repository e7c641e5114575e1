"""Costs are checked against the built model: its parameters, torch's FLOP counter, torch's memory tracker."""

import subprocess
import sys

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from hsokv_ray.errors import ConfigError
from hsokv_ray.models import HMSTConfig, HMSTForCausalLM
from hsokv_ray.models.config import ModelConfig
from hsokv_ray.models.presets import (
    PRESETS,
    count_parameters,
    default_vocab_size,
    estimate_memory,
    flops_per_token,
    model_shape,
)

TOTAL_BY_NAME = {"micro": 10e6, "tiny": 100e6, "small": 1e9, "base": 12e9, "large": 30e9}
SMALL = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 0,
    "tie_word_embeddings": True,
}
VARIANTS = {
    "sparse": {},
    "untied": {"tie_word_embeddings": False},
    "shared expert": {"shared_expert_intermediate_size": 32},
    "dense": {"num_experts": 1, "num_experts_per_tok": 1},
    "wide heads": {"head_dim": 32},
}


def build(shape: dict) -> HMSTForCausalLM:
    return HMSTForCausalLM(HMSTConfig(**shape))


@pytest.mark.parametrize("size", PRESETS)
def test_each_size_has_the_parameters_its_name_says(size):
    counts = count_parameters(model_shape(ModelConfig(size=size), seq_len=512))
    assert counts.total == pytest.approx(TOTAL_BY_NAME[size], rel=0.1)


def test_base_has_two_billion_active_parameters_with_16_experts_top_2():
    shape = model_shape(ModelConfig(size="base"), seq_len=512)
    assert count_parameters(shape).active == pytest.approx(2e9, rel=0.1)
    assert (shape["num_experts"], shape["num_experts_per_tok"]) == (16, 2)


@pytest.mark.parametrize("size", PRESETS)
def test_counted_parameters_of_a_size_are_those_of_the_built_model(size):
    shape = model_shape(ModelConfig(size=size), seq_len=512)
    with torch.device("meta"):
        model = build(shape)
    assert count_parameters(shape).total == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_counted_parameters_of_a_variant_are_those_of_the_built_model(change):
    shape = SMALL | change
    model, counts = build(shape), count_parameters(shape)
    total = sum(p.numel() for p in model.parameters())
    idle = sum(
        p.numel() * (shape["num_experts"] - shape["num_experts_per_tok"]) // shape["num_experts"]
        for name, p in model.named_parameters()
        if ".experts." in name
    )
    assert (counts.total, counts.active) == (total, total - idle)
    assert counts.embedding == model.get_input_embeddings().weight.numel()


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_flops_per_token_are_those_torch_counts(change):
    shape = SMALL | change
    model = build(shape).train()
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    ids = torch.randint(0, shape["vocab_size"], (2, 32))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    assert counter.get_total_flops() / ids.numel() == pytest.approx(flops_per_token(shape, 32), rel=1e-6)


@pytest.mark.parametrize("vocab_size", [512, 8192])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_estimated_memory_is_within_a_quarter_of_the_measured_peak(vocab_size, gradient_checkpointing):
    shape = SMALL | {"vocab_size": vocab_size, "intermediate_size": 64, "num_hidden_layers": 3}
    model = build(shape).train()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable()
    ids = torch.randint(0, vocab_size, (4, 32))
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        for _ in range(2):  # with gradient accumulation the gradients are there during the forward pass
            tracker.reset_mod_stats()
            model(input_ids=ids, labels=ids).loss.backward()
    measured = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    estimate = estimate_memory(shape, batch_size=4, seq_len=32, gradient_checkpointing=gradient_checkpointing)
    assert measured / 1.25 < estimate.total_bytes - estimate.optimizer_bytes < measured * 1.25


def test_estimated_weights_gradients_and_adam_moments_are_four_four_and_eight_bytes_a_parameter():
    estimate = estimate_memory(SMALL, batch_size=1, seq_len=8)
    total = count_parameters(SMALL).total
    assert (estimate.weights_bytes, estimate.gradients_bytes, estimate.optimizer_bytes) == (
        4 * total,
        4 * total,
        8 * total,
    )


def test_spreading_the_model_lowers_the_memory_of_each_worker():
    shape = model_shape(ModelConfig(size="small"), seq_len=512)
    cost = {"batch_size": 1, "seq_len": 512, "num_workers": 8}
    ddp = estimate_memory(shape, parallel="ddp", **cost)
    ep = estimate_memory(shape, parallel="ep", **cost)
    fsdp = estimate_memory(shape, parallel="fsdp", **cost)
    counts = count_parameters(shape)
    experts = (counts.total - counts.active) * 8 // 6
    assert ddp.optimizer_bytes - ep.optimizer_bytes == pytest.approx(8 * experts * 7 / 8)
    assert fsdp.optimizer_bytes == pytest.approx(ddp.optimizer_bytes / 8)
    assert ep.total_bytes < ddp.total_bytes
    assert fsdp.total_bytes < ddp.total_bytes


def test_a_size_may_be_changed_to_dense_with_a_vocabulary_of_its_own():
    shape = model_shape(ModelConfig(size="micro", num_experts=1), vocab_size=1000, seq_len=64)
    assert (shape["num_experts"], shape["num_experts_per_tok"], shape["vocab_size"]) == (1, 1, 1000)
    assert shape["max_position_embeddings"] == 64
    assert default_vocab_size("micro") == 8192


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 4, "num_experts_per_tok": 5}, "num-experts-per-tok: got 5; at most --num-experts 4"),
        ({"num_experts": 1, "shared_expert": True}, "--shared-expert needs"),
    ],
)
def test_settings_that_do_not_fit_one_another_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        model_shape(ModelConfig(**change), seq_len=64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads: got 3, which does not divide"),
        ({"head_dim": 15}, "head_dim: got 15"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: got 0; at least 1"),
        ({"shared_expert_intermediate_size": -1}, "shared_expert_intermediate_size: got -1"),
        ({"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": None}, "num_attention_heads: got 3"),
    ],
)
def test_dimensions_that_do_not_fit_one_another_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        HMSTConfig(**(SMALL | change))


def test_presets_are_read_without_torch_and_transformers():
    code = (
        "import sys, hsokv_ray.models.presets; print([m for m in ('torch', 'transformers', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
