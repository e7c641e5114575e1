"""Analytic FLOPs against torch's counter, which sees every matrix product that runs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hsokv_ray.errors import DataError
from hsokv_ray.models.kv_flops import forward_flops, step_flops, write_flops

CASES = {
    "classification without memory": {"memory": None},
    "classification": {},
    "many entries": {"memory": {"capacity": 500, "top_k": 10}},
    "other widths": {"memory": {"capacity": 50, "key_dim": 9, "value_dim": 11}},
    "frozen keys": {"key_encoder": "frozen", "memory": {"value_dim": 11}},
    "language model without memory": {"head": "language_model", "memory": None},
    "language model": {"head": "language_model"},
    "frozen language model": {"head": "language_model", "key_encoder": "frozen"},
    "vectors": {"input": "vectors", "input_dim": 12},
    "no head": {"head": "none", "memory": {"value_dim": 11}},
    "wide": {"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 200},
}
BATCH, LENGTH, ENTRIES = 6, 13, 25


def filled(make, some_vectors, changes):
    model = make(**changes)
    if model.memory is not None:
        size = model.memory.config
        generator = torch.Generator().manual_seed(0)
        keys, values = (torch.randn(ENTRIES, dim, generator=generator) for dim in (size.key_dim, size.value_dim))
        model.memory.write(keys, values)
    return model


def inputs_for(model, some_ids, some_vectors) -> dict[str, torch.Tensor]:
    if model.config.input == "vectors":
        return {"vectors": some_vectors(BATCH)}
    return {"input_ids": some_ids(BATCH, LENGTH)}


@pytest.mark.parametrize("case", CASES)
def test_forward_and_step_are_what_the_counter_of_torch_sees(case, kv_model, some_ids, some_vectors) -> None:
    model = filled(kv_model, some_vectors, CASES[case])
    given = inputs_for(model, some_ids, some_vectors)
    # the counter has no formula for the fused attention of the CPU; this one is made of products it knows
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            output = model(**given)
        with FlopCounterMode(display=False) as backward:
            (output.mixed if output.logits is None else output.logits).square().sum().backward()
    sizes = (model.config, BATCH, LENGTH, ENTRIES)
    assert forward_flops(*sizes) == forward.get_total_flops()
    assert step_flops(*sizes) == forward.get_total_flops() + backward.get_total_flops()


@pytest.mark.parametrize("case", ["classification", "frozen keys", "language model", "vectors"])
def test_writing_costs_what_the_counter_of_torch_sees(case, kv_model, some_ids, some_vectors) -> None:
    model = kv_model(**(CASES[case] | {"memory": {"capacity": 100}}))
    given = inputs_for(model, some_ids, some_vectors)
    labels = given["input_ids"] if model.config.head == "language_model" else torch.arange(BATCH)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.write(**given, labels=labels)
    assert write_flops(model.config, BATCH, LENGTH) == counter.get_total_flops()


def test_an_empty_memory_costs_one_empty_slot(kv_model, some_ids) -> None:
    model = kv_model()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(some_ids(BATCH, LENGTH))
    # of one entry torch computes the weighted sum without a matrix product
    assert forward_flops(model.config, BATCH, LENGTH) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_numbers_that_make_no_batch_are_refused(kv_config) -> None:
    for sizes in ((0, 1, 0), (1, 0, 0), (1, 1, -1)):
        with pytest.raises(DataError, match="flops: got"):
            forward_flops(kv_config(), *sizes)
    with pytest.raises(DataError, match="no memory"):
        write_flops(kv_config(memory=None), 1, 1)
