#!/usr/bin/env python
"""A whole training step of the micro model: our experts against the nested loop, and what the loss costs in memory.

    python benchmarks/micro_step.py [--quick]

Steps are forward, backward, clipping, fused AdamW; wall clock, variants in turns. Memory is the peak of a process of
its own (resident set) above what it had before the step.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from harness import Target, Timing, interleave, write_result
from moe_block import nested_loop
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from hsokv_ray.models import HMSTConfig, HMSTForCausalLM
from hsokv_ray.models.config import ModelConfig
from hsokv_ray.models.presets import model_shape

BATCH_SIZE, SEQ_LEN = 8, 512
NESTED, OURS, COMPILED, FUSED, UNFUSED = "nested loop", "hmst_sorted", "hmst_sorted, compiled", "fused", "default"
HEAD_TOKENS, HEAD_SIZE, HEAD_VOCAB = 4096, 256, 32_768


def micro_model(implementation: str, **changes: Any) -> HMSTForCausalLM:
    torch.manual_seed(0)
    shape: dict[str, Any] = {**model_shape(ModelConfig(size="micro"), vocab_size=None, seq_len=SEQ_LEN), **changes}
    shape["experts_implementation"] = implementation
    return HMSTForCausalLM(HMSTConfig(**shape)).train()


def training_step(model: HMSTForCausalLM, ids: Tensor) -> Callable[[], None]:
    """Return a function that makes one optimiser step on `ids` [B, T + 1]."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        model(input_ids=ids[:, :-1], shift_labels=ids[:, 1:]).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_steps(quick: bool) -> dict[str, Timing]:
    ALL_EXPERTS_FUNCTIONS.register("benchmark_nested", nested_loop)
    batch_size = 2 if quick else BATCH_SIZE
    ids = torch.randint(8192, (batch_size, SEQ_LEN + 1))
    compiled = micro_model("hmst_sorted")
    compiled.compile()
    models = {NESTED: micro_model("benchmark_nested"), OURS: micro_model("hmst_sorted"), COMPILED: compiled}
    steps = {name: training_step(model, ids) for name, model in models.items()}
    return interleave(steps, repeats=3 if quick else 7, clock="wall", warmup=2)


def measure_optimizers(quick: bool) -> dict[str, Timing]:
    """Time one update of the micro model's parameters."""
    steps = {}
    for name, options in {UNFUSED: {}, FUSED: {"fused": True}}.items():
        model = micro_model("hmst_sorted")
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        steps[name] = torch.optim.AdamW(model.parameters(), lr=1e-4, **options).step
    return interleave(steps, repeats=5 if quick else 11, clock="wall")


def loss_peak_bytes(skip_logits: bool) -> int:
    """Return the peak memory of one forward and backward of a head over 32,768 words, in this fresh process."""
    config = {"num_hidden_layers": 1, "intermediate_size": 16, "num_experts": 1, "num_experts_per_tok": 1}
    model = micro_model("hmst_sorted", vocab_size=HEAD_VOCAB, hidden_size=HEAD_SIZE, **config)
    ids = torch.randint(HEAD_VOCAB, (HEAD_TOKENS // SEQ_LEN, SEQ_LEN + 1))
    # a small step first, so that gradients and library buffers are not counted
    model(input_ids=ids[:1, :8], shift_labels=ids[:1, 1:9], skip_logits=skip_logits).loss.backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model(input_ids=ids[:, :-1], shift_labels=ids[:, 1:], skip_logits=skip_logits).loss.backward()
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def measure_memory() -> dict[str, int]:
    peaks = {}
    for name, flag in {"plain logits": "plain", "fused linear cross entropy": "fused"}.items():
        done = subprocess.run([sys.executable, __file__, "--loss", flag], stdout=subprocess.PIPE, text=True, check=True)
        peaks[name] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats: does it run, not how fast")
    parser.add_argument("--loss", choices=["plain", "fused"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loss:
        print(loss_peak_bytes(arguments.loss == "fused"))
        return
    peaks = measure_memory()
    steps, optimizers = measure_steps(arguments.quick), measure_optimizers(arguments.quick)
    tokens = (2 if arguments.quick else BATCH_SIZE) * SEQ_LEN
    plain, fused = peaks.values()
    write_result(
        "micro_step",
        tables={
            "Micro training step": [
                {
                    "variant": name,
                    "median tokens/s": tokens / timing.median_s,
                    "lower quartile tokens/s": tokens / timing.upper_quartile_s,
                    "upper quartile tokens/s": tokens / timing.lower_quartile_s,
                    "to nested loop": steps[NESTED].median_s / timing.median_s,
                }
                for name, timing in steps.items()
            ],
            "AdamW": [{"variant": name, "median ms": 1e3 * timing.median_s} for name, timing in optimizers.items()],
            f"Loss over {HEAD_VOCAB} words, {HEAD_TOKENS} tokens": [
                {"variant": name, "peak MB": peak / 1e6} for name, peak in peaks.items()
            ],
        },
        targets=[
            _faster("tokens/s, ours / nested loop", steps, OURS, NESTED, bound=1.35),
            _faster("tokens/s, compiled / nested loop", steps, COMPILED, NESTED, bound=1.8),
            _faster("AdamW, fused / default", optimizers, FUSED, UNFUSED, bound=1.0),
            Target(name="peak memory, fused loss / plain", value=fused / plain, bound=0.25, kind="at most"),
        ],
        quick=arguments.quick,
    )


def _faster(name: str, timings: dict[str, Timing], fast: str, slow: str, *, bound: float) -> Target:
    value = timings[slow].median_s / timings[fast].median_s
    return Target(name=name, value=value, bound=bound, kind="at least")


if __name__ == "__main__":
    main()
