from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hsokv_ray.errors import ConfigError
from hsokv_ray.models import experts
from hsokv_ray.models.configuration_hmst import HMSTConfig
from hsokv_ray.models.experts import fastest_experts_implementation, swiglu_experts
from hsokv_ray.models.modeling_hmst import HMSTExperts


def per_token_reference(hidden: Tensor, *, index: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The definition, one token and one expert at a time; index E leaves the slot out."""
    rows = []
    for token in range(hidden.shape[0]):
        row = 0 * hidden[token]
        for slot, expert in enumerate(index[token].tolist()):
            if expert < gate_up.shape[0]:
                gate, up = (gate_up[expert] @ hidden[token]).chunk(2)
                row = row + weights[token, slot] * (down[expert] @ (F.silu(gate) * up))
        rows.append(row)
    return torch.stack(rows)


def problem(
    *,
    tokens: int = 24,
    top_k: int = 2,
    num_experts: int = 6,
    used: int = 4,
    left_out: float = 0.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Tensors of one call; only the first `used` experts get tokens, each half as many as the one before."""
    generator = torch.Generator().manual_seed(seed)
    size, width = 8, 12

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    popularity = torch.tensor([2.0**-e for e in range(used)]).expand(tokens, used)
    index = torch.multinomial(popularity, top_k, generator=generator)
    index[torch.rand(tokens, top_k, generator=generator) < left_out] = num_experts
    return {
        "hidden": normal(tokens, size),
        "index": index,
        "weights": torch.rand(tokens, top_k, generator=generator, dtype=dtype),
        "gate_up": normal(num_experts, 2 * width, size),
        "down": normal(num_experts, size, width),
    }


def output_and_gradients(function: Callable[..., Tensor], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {name: t.detach().clone().requires_grad_(t.is_floating_point()) for name, t in tensors.items()}
    output = function(leaves["hidden"], **{name: t for name, t in leaves.items() if name != "hidden"})
    output.backward(torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output))
    gradients = {f"gradient of {name}": t.grad for name, t in leaves.items() if t.grad is not None}
    return {"output": output.detach()} | gradients


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], *, tolerance: float) -> None:
    for name, value in got.items():
        # a reference that used no expert at all has no path to the weights
        reference = expected.get(name, torch.zeros_like(value))
        torch.testing.assert_close(value, reference, atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 24),
    top_k=st.integers(1, 3),
    num_experts=st.integers(5, 8),
    used=st.integers(3, 5),
    left_out=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
def test_output_and_every_gradient_equal_the_per_token_definition(**shape) -> None:
    tensors = problem(**shape)
    got = output_and_gradients(swiglu_experts, tensors)
    assert len(got) == 5
    assert_same(got, output_and_gradients(per_token_reference, tensors), tolerance=1e-5)


def test_gradients_equal_finite_differences() -> None:
    tensors = problem(tokens=7, left_out=0.2, dtype=torch.float64)
    index = tensors.pop("index")
    names = list(tensors)

    def call(*values: Tensor) -> Tensor:
        named = dict(zip(names, values, strict=True))
        return swiglu_experts(named.pop("hidden"), index=index, **named)

    assert torch.autograd.gradcheck(call, [t.requires_grad_() for t in tensors.values()])


def test_the_operator_fulfils_torch_s_contract_for_custom_operators() -> None:
    tensors = {n: t.requires_grad_(t.is_floating_point()) for n, t in problem(left_out=0.2).items()}
    torch.library.opcheck(experts._swiglu_experts, tuple(tensors.values()))


def test_a_second_derivative_is_refused_and_not_wrong() -> None:
    tensors = {n: t.requires_grad_(t.is_floating_point()) for n, t in problem().items()}
    hidden = tensors.pop("hidden")
    (gradient,) = torch.autograd.grad(swiglu_experts(hidden, **tensors).sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()


def test_no_tokens_give_no_output_and_zero_gradients() -> None:
    tensors = {name: t[:0] if name in ("hidden", "index", "weights") else t for name, t in problem().items()}
    got = output_and_gradients(swiglu_experts, tensors)
    assert got["output"].shape == (0, 8)
    assert not got["gradient of gate_up"].any()
    assert not got["gradient of down"].any()


def test_two_runs_are_bitwise_equal() -> None:
    first, second = (output_and_gradients(swiglu_experts, problem(tokens=200)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_compiles_without_a_graph_break_to_the_same_result() -> None:
    tensors = problem(left_out=0.2)
    compiled = torch.compile(swiglu_experts, fullgraph=True, backend="aot_eager")
    assert_same(output_and_gradients(compiled, tensors), output_and_gradients(swiglu_experts, tensors), tolerance=0)


def test_activation_checkpointing_changes_no_gradient() -> None:
    def checkpointed(hidden: Tensor, **rest: Tensor) -> Tensor:
        return checkpoint(partial(swiglu_experts, **rest), hidden, use_reentrant=False)

    tensors = problem()
    assert_same(output_and_gradients(checkpointed, tensors), output_and_gradients(swiglu_experts, tensors), tolerance=0)


def test_autocast_multiplies_in_bfloat16_and_returns_the_input_s_dtype() -> None:
    tensors = problem()
    exact = output_and_gradients(swiglu_experts, tensors)
    with torch.autocast("cpu", torch.bfloat16):
        low = output_and_gradients(swiglu_experts, tensors)
    assert all(value.dtype is torch.float32 for value in low.values())
    assert not torch.equal(low["output"], exact["output"])
    for name, value in low.items():  # bfloat16 has 8 bits of mantissa: 3 roundings in a row
        assert (value - exact[name]).norm() <= 3 * 2**-8 * exact[name].norm(), name


def test_the_meta_device_gives_shapes_without_computing() -> None:
    tensors = {name: t.to("meta") for name, t in problem().items()}
    assert swiglu_experts(tensors.pop("hidden"), **tensors).shape == (24, 8)


def experts_module(implementation: str, hidden_act: str = "silu") -> HMSTExperts:
    config = HMSTConfig(
        hidden_size=8, intermediate_size=12, num_experts=6, num_attention_heads=2, hidden_act=hidden_act
    )
    config._experts_implementation = implementation
    module = HMSTExperts(config)
    tensors = problem()
    module.load_state_dict({"gate_up_proj": tensors["gate_up"], "down_proj": tensors["down"]})
    return module


@pytest.mark.parametrize("reference", ["eager", "grouped_mm", "batched_mm"])
def test_registered_path_equals_transformers_paths(reference: str) -> None:
    tensors = problem(left_out=0.0)
    arguments = (tensors["hidden"], tensors["index"], tensors["weights"])
    expected, got = experts_module(reference), experts_module("hmst_sorted")
    torch.testing.assert_close(got(*arguments), expected(*arguments), atol=1e-5, rtol=1e-5)


def test_another_activation_is_refused_with_the_way_out() -> None:
    tensors = problem()
    with pytest.raises(ConfigError, match=r"hmst_sorted: got \w+, allowed is SiLU; set hidden_act to silu"):
        experts_module("hmst_sorted", "gelu")(tensors["hidden"], tensors["index"], tensors["weights"])


def test_devices_without_measurements_keep_the_default_of_transformers() -> None:
    assert fastest_experts_implementation("cpu", torch.float32) == "hmst_sorted"
    assert fastest_experts_implementation("cuda", torch.bfloat16) == "grouped_mm"
