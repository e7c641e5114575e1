"""Also the program of the workers these tests start: `torchrun test_parallel.py OUTPUT_FOLDER`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hsokv_ray.errors import ConfigError
from hsokv_ray.models.balance import LoadBalancer
from hsokv_ray.models.configuration_hmst import HMSTConfig
from hsokv_ray.models.modeling_hmst import HMSTForCausalLM
from hsokv_ray.training.config import OptimConfig
from hsokv_ray.training.optimizers import build_optimizer
from hsokv_ray.training.parallel import FullState, Strategy, make_strategy

ROWS, TOKENS, VOCAB, MICRO_BATCHES = 8, 12, 48, 2
STEPS, CHAIN_STEPS, MUON_STEPS = 24, 8, 8
MAX_NORM = 0.5


class Run:
    """A model, its optimiser and its balancer under one strategy, trained on this worker's share of each batch."""

    def __init__(self, parallel: Any, *, optimizer: str = "adamw", expert_parallel_size: int | None = None) -> None:
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.strategy: Strategy = make_strategy(
            parallel, device=torch.device("cpu"), expert_parallel_size=expert_parallel_size
        )
        self.model: nn.Module = self.strategy.prepare(tiny_model(seed=self.rank))
        config = OptimConfig(learning_rate=5e-3, optimizer=optimizer)  # type: ignore[arg-type]
        self.optimizer = build_optimizer(self.model, config, device_type="cpu")
        self.balancer = LoadBalancer(self.strategy.bare(self.model), rate=0.05)

    def steps(self, first: int, count: int) -> list[dict[str, float]]:
        return [self.step(number) for number in range(first, first + count)]

    def step(self, number: int) -> dict[str, float]:
        inputs, targets = batch(number)
        num_targets = int((targets != -100).sum())
        own = slice(self.rank, None, self.world_size)
        loss = torch.zeros(())
        parts = zip(inputs[own].chunk(MICRO_BATCHES), targets[own].chunk(MICRO_BATCHES), strict=True)
        for i, (part, labels) in enumerate(parts):
            with self.strategy.accumulate(self.model, last=i == MICRO_BATCHES - 1):
                output = self.model(input_ids=part, shift_labels=labels, num_items_in_batch=num_targets)
                output.loss.backward()
            loss += output.loss.detach()
        self.strategy.finish_gradients(self.model)
        if dist.is_initialized():
            dist.all_reduce(loss)
        metrics = self.balancer.step(number / 100)
        assert metrics is not None
        norm = self.strategy.clip_gradients(self.model, MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": loss.item(), "norm": norm, "violation": metrics.max_violation}

    def full_state(self) -> FullState:
        return self.strategy.full_state(self.model, self.optimizer)

    def load(self, state: FullState) -> None:
        self.strategy.load_full_state(self.model, self.optimizer, state)


def tiny_model(*, seed: int) -> HMSTForCausalLM:
    """Workers start from different seeds: a strategy has to hand out the first worker's weights."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return HMSTForCausalLM(HMSTConfig(**shape, vocab_size=VOCAB, num_experts=4, num_key_value_heads=1))


def batch(number: int) -> tuple[Tensor, Tensor]:
    """Token ids and targets [ROWS, TOKENS]; half of them are padding in some rows, so workers' shares differ."""
    generator = torch.Generator().manual_seed(number)
    start = torch.randint(VOCAB, (ROWS, 1), generator=generator)
    ids = (start + 5 * torch.arange(TOKENS + 1)) % VOCAB
    targets = ids[:, 1:].clone()
    targets[::4, TOKENS // 2 :] = -100
    return ids[:, :-1], targets


def write_state(state: FullState, folder: Path) -> None:
    tensors = {k: v for k, v in state.optimizer.items() if isinstance(v, Tensor)}
    settings = {k: v for k, v in state.optimizer.items() if not isinstance(v, Tensor)}
    # save_file refuses tied weights, and live ones must not change under us
    save_file({k: v.clone() for k, v in state.model.items()}, folder / "model.safetensors")
    save_file({k: v.clone() for k, v in tensors.items()}, folder / "optimizer.safetensors")
    (folder / "settings.json").write_text(json.dumps(settings))


def read_state(folder: Path) -> FullState:
    settings = json.loads((folder / "settings.json").read_text())
    return FullState(load_file(folder / "model.safetensors"), load_file(folder / "optimizer.safetensors") | settings)


def chain(folder: Path) -> list[dict[str, float]]:
    """Go on under another strategy every CHAIN_STEPS steps, each time from the files the one before has written."""
    rows = []
    for i, parallel in enumerate(["ddp", "fsdp", "ep"]):
        run = Run(parallel)
        if i:
            run.load(read_state(folder))
        dist.barrier()
        rows += run.steps(i * CHAIN_STEPS, CHAIN_STEPS)
        state = run.full_state()
        if run.rank == 0:
            write_state(state, folder)
        else:
            assert state == FullState()
        dist.barrier()
    return rows


def worker(folder: Path) -> None:
    """Do every run and write this worker's rows."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rows = {
        "ddp": Run("ddp").steps(0, STEPS),
        "fsdp": Run("fsdp").steps(0, STEPS),
        "ep": Run("ep").steps(0, STEPS),
        "ep replicas": Run("ep", expert_parallel_size=1).steps(0, STEPS),
        "fsdp muon": Run("fsdp", optimizer="muon").steps(0, MUON_STEPS),
        "ep muon": Run("ep", optimizer="muon").steps(0, MUON_STEPS),
        "chain": chain(folder),
    }
    (folder / f"rows-{dist.get_rank()}.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def assert_same_curve(got: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    for name in ("loss", "norm", "violation"):
        values, reference = ([row[name] for row in rows] for rows in (got, expected))
        assert values == pytest.approx(reference, abs=1e-4, rel=1e-4), name


@pytest.fixture(scope="module")
def alone() -> list[dict[str, float]]:
    """The same training in one process."""
    rows = Run("ddp").steps(0, 4 * CHAIN_STEPS)
    # it learns and is clipped, so equal curves say something
    assert rows[-1]["loss"] < 0.75 * rows[0]["loss"]
    assert max(row["norm"] for row in rows) > MAX_NORM
    return rows


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the rows of every run; one start for all: imports take longer than runs."""
    folder = tmp_path_factory.mktemp("two_workers")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, __file__, str(folder)], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def rows_of(folder: Path, name: str, rank: int) -> list[dict[str, float]]:
    return json.loads((folder / f"rows-{rank}.json").read_text())[name]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp", "ep"])
def test_two_workers_follow_the_curve_of_one(parallel: str, two_workers: Path, alone: list[dict[str, float]]) -> None:
    first, second = (rows_of(two_workers, parallel, rank) for rank in range(2))
    assert_same_curve(first, alone[:STEPS])
    assert first == second


def test_a_checkpoint_goes_on_under_any_strategy(two_workers: Path, alone: list[dict[str, float]]) -> None:
    rows = rows_of(two_workers, "chain", 0)
    run = Run("fsdp")  # alone: the whole model in this process
    run.load(read_state(two_workers))
    rows += run.steps(3 * CHAIN_STEPS, CHAIN_STEPS)
    assert_same_curve(rows, alone)


def test_full_state_has_the_names_and_shapes_of_a_single_process(two_workers: Path) -> None:
    state, single = read_state(two_workers), Run("ddp")
    single.steps(0, 1)
    expected = single.full_state()
    for got, reference in ((state.model, expected.model), (state.optimizer, expected.optimizer)):
        assert got.keys() == reference.keys()
        for name, value in reference.items():
            assert not isinstance(value, Tensor) or got[name].shape == value.shape, name


def test_replicas_of_the_experts_follow_the_curve_of_one(two_workers: Path, alone: list[dict[str, float]]) -> None:
    assert_same_curve(rows_of(two_workers, "ep replicas", 0), alone[:STEPS])


@pytest.mark.parametrize("name", ["fsdp muon", "ep muon"])
def test_muon_follows_the_same_curve_with_parts_of_the_model(name: str, two_workers: Path) -> None:
    # shorter: orthogonalising the update magnifies the last bit of every sum
    expected = Run("ddp", optimizer="muon").steps(0, MUON_STEPS)
    assert_same_curve(rows_of(two_workers, name, 0), expected)


def test_clipping_at_infinity_measures_and_changes_nothing() -> None:
    run = Run("ddp")
    inputs, targets = batch(0)
    run.model(input_ids=inputs, shift_labels=targets).loss.backward()
    before = [p.grad.clone() for p in run.model.parameters() if p.grad is not None]
    norm = run.strategy.clip_gradients(run.model, float("inf"))
    assert norm == pytest.approx(torch.cat([g.flatten() for g in before]).norm().item(), rel=1e-5)
    after = [p.grad for p in run.model.parameters() if p.grad is not None]
    assert all(torch.equal(now, then) for now, then in zip(after, before, strict=True))


def test_an_expert_parallel_size_that_does_not_divide_the_workers_is_refused() -> None:
    dist.init_process_group("fake", rank=0, world_size=4)
    try:
        with pytest.raises(ConfigError, match="--expert-parallel-size: got 3, which does not divide the 4 workers"):
            make_strategy("ep", device=torch.device("cpu"), expert_parallel_size=3)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
