#!/usr/bin/env python
"""Forward and backward of a mixture of experts against a dense feed-forward of equal active FLOPs.

    python benchmarks/moe_block.py [--quick]

4,096 tokens, 8 SwiGLU experts of width 4D, top-2; the dense one has width 8D. One thread, CPU time, variants in turns.
Beside ours: the nested loop over slots and experts that indexes `W[e]`, transformers' eager and grouped_mm, and experts
padded to the largest load (bmm). All of them are checked against each other before they are timed.

Shapes: N tokens, K experts per token, D hidden size, E experts, F expert width.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from harness import Target, Timing, interleave, ratios, write_result
from torch import Tensor, nn
from transformers.integrations.moe import grouped_mm_experts_forward

from hsokv_ray.models.configuration_hmst import HMSTConfig
from hsokv_ray.models.experts import sorted_experts_forward
from hsokv_ray.models.modeling_hmst import HMSTExperts

NUM_TOKENS, NUM_EXPERTS, TOP_K = 4096, 8, 2
SKEW = (0.45, 0.28, 0.08, 0.08, 0.04, 0.04, 0.02, 0.01)
"""Popularity of the experts before a skewed router."""
DENSE, OURS, NESTED = "dense", "hmst_sorted", "nested loop"

Experts = Callable[[Any, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """One layer's weights and inputs."""

    experts: HMSTExperts
    dense_gate_up: nn.Parameter
    dense_down: nn.Parameter
    hidden_ND: Tensor
    weights_NK: Tensor
    direction_ND: Tensor


def nested_loop(self: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    output = torch.zeros_like(hidden)
    for k in range(index.shape[1]):
        for expert in range(self.num_experts):
            chosen = index[:, k] == expert
            if chosen.any():
                gate, up = F.linear(hidden[chosen], self.gate_up_proj[expert]).chunk(2, dim=-1)
                result = F.linear(F.silu(gate) * up, self.down_proj[expert])
                output[chosen] += result * weights[chosen, k, None].to(hidden.dtype)
    return output


def padded_bmm(self: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    expert_S, slot_S = torch.sort(index.flatten(), stable=True)
    token_S = slot_S // index.shape[1]
    counts_E = torch.bincount(expert_S, minlength=self.num_experts)
    row_S = torch.arange(len(expert_S)) - (counts_E.cumsum(0) - counts_E)[expert_S]
    padded = hidden.new_zeros(self.num_experts, int(counts_E.max()), hidden.shape[1])
    padded = padded.index_put((expert_S, row_S), hidden[token_S])
    gate, up = torch.bmm(padded, self.gate_up_proj.transpose(1, 2)).chunk(2, dim=-1)
    result = torch.bmm(F.silu(gate) * up, self.down_proj.transpose(1, 2))[expert_S, row_S]
    weighted = result * weights.flatten()[slot_S, None].to(hidden.dtype)
    return torch.zeros_like(hidden).index_add(0, token_S, weighted)


IMPLEMENTATIONS: dict[str, Experts] = {
    NESTED: nested_loop,
    "transformers eager": HMSTExperts.forward,  # an experts implementation of "eager" is the class' own forward
    "transformers grouped_mm": grouped_mm_experts_forward,
    "padded bmm": padded_bmm,
    OURS: sorted_experts_forward,
}


def make_problem(size: int, dtype: torch.dtype) -> Problem:
    torch.manual_seed(0)
    config = HMSTConfig(hidden_size=size, intermediate_size=4 * size, num_experts=NUM_EXPERTS, num_attention_heads=4)
    config._experts_implementation = "eager"
    experts = HMSTExperts(config).to(dtype)
    for weight in experts.parameters():
        nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)

    def dense(*shape: int) -> nn.Parameter:
        return nn.Parameter((torch.randn(shape) * shape[-1] ** -0.5).to(dtype))

    width = TOP_K * 4 * size
    weights = torch.rand(NUM_TOKENS, TOP_K)
    return Problem(
        experts=experts,
        dense_gate_up=dense(2 * width, size),
        dense_down=dense(size, width),
        hidden_ND=torch.randn(NUM_TOKENS, size).to(dtype),
        weights_NK=weights / weights.sum(-1, keepdim=True),
        direction_ND=torch.randn(NUM_TOKENS, size).to(dtype),
    )


def router(popularity: tuple[float, ...]) -> Tensor:
    """Return the experts [N, K] of each token, drawn without repetition by popularity."""
    return torch.multinomial(torch.tensor(popularity).expand(NUM_TOKENS, -1), TOP_K)


def forward_backward(problem: Problem, forward: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Tensor]:
    """Return a function that runs one step with fresh gradients and gives the gradient of the hidden states."""

    def run() -> Tensor:
        for parameter in (*problem.experts.parameters(), problem.dense_gate_up, problem.dense_down):
            parameter.grad = None
        hidden, weights = (t.detach().requires_grad_() for t in (problem.hidden_ND, problem.weights_NK))
        forward(hidden, weights).backward(problem.direction_ND)
        assert hidden.grad is not None
        return hidden.grad

    return run


def variants(problem: Problem, index: Tensor, names: tuple[str, ...]) -> dict[str, Callable[[], Tensor]]:
    def dense(hidden: Tensor, _weights: Tensor) -> Tensor:
        gate, up = F.linear(hidden, problem.dense_gate_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, problem.dense_down)

    def sparse(implementation: Experts) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda hidden, weights: implementation(problem.experts, hidden, index, weights)

    chosen = {name: sparse(IMPLEMENTATIONS[name]) for name in names}
    return {name: forward_backward(problem, f) for name, f in {DENSE: dense, **chosen}.items()}


def check_equal(runs: dict[str, Callable[[], Tensor]], dtype: torch.dtype) -> None:
    """Raise unless all implementations give the same gradient of the hidden states."""
    expected = runs[NESTED]().float()
    tolerance = 1e-4 if dtype is torch.float32 else 3e-2
    for name, run in runs.items():
        error = (run().float() - expected).norm() / expected.norm()
        assert name == DENSE or error < tolerance, f"{name}: relative error {error:.1e}, allowed {tolerance:.0e}"


def measure(size: int, dtype: torch.dtype, repeats: int) -> dict[str, Timing]:
    """Time all implementations with an even router, and those that stay in the race with a skewed one."""
    problem = make_problem(size, dtype)
    runs = variants(problem, router((1.0,) * NUM_EXPERTS), tuple(IMPLEMENTATIONS))
    check_equal(runs, dtype)
    skewed = variants(problem, router(SKEW), ("transformers grouped_mm", "padded bmm", OURS))
    skewed.pop(DENSE)
    return interleave(runs | {f"{name}, skewed": run for name, run in skewed.items()}, repeats=repeats)


def targets_of(size: int, dtype: str, timings: dict[str, Timing]) -> list[Target]:
    to_dense = ratios(timings, to=DENSE)
    bounds = {(256, "float32"): 1.10, (512, "float32"): 1.05, (512, "bfloat16"): 1.10}
    where = f"D={size} {dtype}"
    targets = []
    if (size, dtype) in bounds:
        bound = bounds[size, dtype]
        targets.append(Target(name=f"{where}: ours / dense", value=to_dense[OURS], bound=bound, kind="at most"))
    if size == 512:
        gain = 1.6 if dtype == "float32" else 3.5
        value = to_dense[NESTED] / to_dense[OURS]
        targets.append(Target(name=f"{where}: nested loop / ours", value=value, bound=gain, kind="at least"))
    value = to_dense[f"{OURS}, skewed"] / to_dense[OURS]
    targets.append(Target(name=f"{where}: ours skewed / even", value=value, bound=1.15, kind="at most"))
    return targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="width 256 and few repeats: does it run, not how fast")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    tables: dict[str, list[dict[str, Any]]] = {}
    targets: list[Target] = []
    for dtype in (torch.float32, torch.bfloat16):
        for size in (256,) if quick else (256, 512):
            timings = measure(size, dtype, repeats=2 if quick else 5)
            to_dense, kind = ratios(timings, to=DENSE), str(dtype).removeprefix("torch.")
            tables[f"D={size} {kind}, CPU time"] = [
                {
                    "variant": name,
                    "median ms": 1e3 * timing.median_s,
                    "lower quartile ms": 1e3 * timing.lower_quartile_s,
                    "upper quartile ms": 1e3 * timing.upper_quartile_s,
                    "to dense": to_dense[name],
                }
                for name, timing in timings.items()
            ]
            targets += targets_of(size, kind, timings)
    write_result("moe_block", tables=tables, targets=targets, quick=quick)


if __name__ == "__main__":
    main()
