"""Also the program of the workers these tests start: `torchrun test_expert_parallel.py OUTPUT_FOLDER`."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from hsokv_ray.errors import ConfigError
from hsokv_ray.models.configuration_hmst import HMSTConfig
from hsokv_ray.models.expert_parallel import EXPERT_PARAMETERS, all_experts, shard_experts
from hsokv_ray.models.modeling_hmst import HMSTExperts, HMSTForCausalLM

NUM_EXPERTS = 6
# name -> tokens of each worker, experts that may be chosen, share of slots left out
CASES = {
    "even": ((8, 8), NUM_EXPERTS, 0.0),
    "uneven": ((3, 11), NUM_EXPERTS, 0.0),
    "a worker without tokens": ((0, 9), NUM_EXPERTS, 0.0),
    "a worker whose experts nobody chooses": ((7, 5), 3, 0.0),
    "slots left out": ((6, 6), NUM_EXPERTS, 0.4),
    "every slot left out": ((2, 2), NUM_EXPERTS, 1.0),
}


def build_model(**changes) -> HMSTForCausalLM:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    settings: dict[str, Any] = {"vocab_size": 32, "num_experts": NUM_EXPERTS, "initializer_range": 0.5} | changes
    return HMSTForCausalLM(HMSTConfig(**shape, **settings, num_key_value_heads=2))


def experts_of(model: HMSTForCausalLM) -> HMSTExperts:
    (experts,) = (module for module in model.modules() if isinstance(module, HMSTExperts))
    return experts


def inputs_of(case: str, rank: int) -> dict[str, Tensor]:
    tokens, used, left_out = CASES[case]
    generator = torch.Generator().manual_seed(10 * list(CASES).index(case) + rank)
    index = torch.stack([torch.randperm(used, generator=generator)[:2] for _ in range(max(1, tokens[rank]))])
    index[torch.rand(index.shape, generator=generator) < left_out] = NUM_EXPERTS
    rows = tokens[rank]
    return {
        "hidden": torch.randn(rows, 16, generator=generator),
        "index": index[:rows],
        "weights": torch.rand(rows, 2, generator=generator),
    }


def forward_backward(experts: HMSTExperts, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The output and the gradient of each input; the weights' gradients stay on `experts`."""
    hidden, weights = (inputs[name].clone().requires_grad_() for name in ("hidden", "weights"))
    output = experts(hidden, inputs["index"], weights)
    (output * torch.arange(output.numel()).view_as(output).cos()).sum().backward()
    assert hidden.grad is not None
    assert weights.grad is not None
    return {"output": output.detach(), "hidden": hidden.grad, "weights": weights.grad}


def worker(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    group = dist.distributed_c10d._get_default_group()
    model = build_model()
    shard_experts(model, group)
    experts = experts_of(model)
    for number, case in enumerate(CASES):
        model.zero_grad()
        result = forward_backward(experts, inputs_of(case, dist.get_rank()))
        for name in EXPERT_PARAMETERS:
            result[name] = all_experts(getattr(experts, name).grad, group)
        save_file({k: v.contiguous() for k, v in result.items()}, folder / f"{number}-{dist.get_rank()}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expert_parallel")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, __file__, str(folder)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def lone_group() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.distributed_c10d._get_default_group()
    dist.destroy_process_group()


@pytest.mark.parametrize("case", CASES)
def test_two_workers_equal_one_that_has_all_experts(results: Path, case: str) -> None:
    model = build_model(experts_implementation="eager")
    experts = experts_of(model)
    expected = [forward_backward(experts, inputs_of(case, rank)) for rank in range(2)]
    for rank in range(2):
        got = load_file(results / f"{list(CASES).index(case)}-{rank}.safetensors")
        for name, value in expected[rank].items():
            torch.testing.assert_close(got[name], value, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        for name in EXPERT_PARAMETERS:
            torch.testing.assert_close(got[name], getattr(experts, name).grad, atol=1e-5, rtol=1e-5)


def test_a_group_of_one_keeps_all_experts_and_changes_nothing(lone_group: dist.ProcessGroup) -> None:
    ids = torch.arange(20).view(2, 10)
    expected = build_model(experts_implementation="eager")(ids).logits
    model = build_model()
    names = shard_experts(model, lone_group)
    assert names == [f"model.layers.0.mlp.experts.{name}" for name in EXPERT_PARAMETERS]
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_the_sharded_implementation_does_not_reach_the_saved_configuration(
    lone_group: dist.ProcessGroup, tmp_path: Path
) -> None:
    model = build_model()
    shard_experts(model, lone_group)
    model.save_pretrained(tmp_path)
    assert "hmst_expert_parallel" not in (tmp_path / "config.json").read_text()


def test_a_dense_model_is_refused(lone_group: dist.ProcessGroup) -> None:
    with pytest.raises(ConfigError, match="--parallel ep: the model has no experts"):
        shard_experts(build_model(num_experts=1, num_experts_per_tok=1), lone_group)


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
