"""How a model is spread over worker processes: replicas (DDP), sharded weights (FSDP2), experts spread over workers.

    strategy = make_strategy("fsdp", device=device)
    model = strategy.prepare(model)
    for i, batch in enumerate(batches):
        with strategy.accumulate(model, last=i == len(batches) - 1):
            loss_of(batch).backward()
    strategy.finish_gradients(model)
    norm = strategy.clip_gradients(model, 1.0)

A worker's loss is the sum over its own tokens divided by the tokens of the whole step, so every strategy sums gradients
over workers and never averages them. State goes in and out whole, under the names a single process has: a checkpoint
made by one strategy loads into any other, with any number of workers.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from hsokv_ray.errors import ConfigError, RunError
from hsokv_ray.models.expert_parallel import all_experts, own_experts, shard_experts
from hsokv_ray.models.modeling_hmst import HMSTDecoderLayer, HMSTForCausalLM

Parallel = Literal["ddp", "fsdp", "ep"]


@dataclass(frozen=True)
class FullState:
    """Everything a checkpoint needs of model and optimiser, whole, on the CPU; empty on workers other than the first.

    Tensors may share memory with the live ones: write or copy them before the next step.
    """

    model: dict[str, Tensor] = field(default_factory=dict)
    """Weights and buffers under the names of the model in a single process; tied weights are one tensor."""

    optimizer: dict[str, Any] = field(default_factory=dict)
    """`state.<parameter>.<name>` tensors and `param_groups.<parameter>.<name>` settings."""


def make_strategy(parallel: Parallel, *, device: torch.device, expert_parallel_size: int | None = None) -> "Strategy":
    """Return how to spread a model over the workers of the default process group; alone, it stays whole.

    Args:
        parallel: `ddp`, `fsdp` or `ep`.
        device: of this worker.
        expert_parallel_size: with `ep`, workers that share one set of experts; None: all of them.

    Raises:
        ConfigError: `expert_parallel_size` does not divide the number of workers.
    """
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    if world_size == 1:
        return Strategy(device)
    match parallel:
        case "ddp":
            return DDPStrategy(device)
        case "fsdp":
            return FSDPStrategy(device)
        case "ep":
            size = expert_parallel_size or world_size
            if world_size % size:
                raise ConfigError(f"--expert-parallel-size: got {size}, which does not divide the {world_size} workers")
            return ExpertParallelStrategy(device, size)


class Strategy:
    """One process with the whole model; what the others derive from."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def prepare(self, model: HMSTForCausalLM) -> nn.Module:
        """Return the model to call; build the optimiser from its parameters, after this."""
        return nn.Module.to(model, self.device)

    @contextlib.contextmanager
    def accumulate(self, model: nn.Module, *, last: bool) -> Iterator[None]:
        """Surround forward and backward of one micro-batch; gradients are exchanged with the `last` one."""
        yield

    def finish_gradients(self, model: nn.Module) -> None:
        """Reduce what the backward of the last micro-batch has not; call once per step, before clipping."""

    def clip_gradients(self, model: nn.Module, max_norm: float) -> float:
        """Scale gradients down to the global norm `max_norm` (inf: not at all); return their norm before.

        The norm is over the whole model and the same on all workers.
        """
        norm = self._norm(model)
        if math.isfinite(max_norm):
            nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
        return norm.item()

    def bare(self, model: nn.Module) -> HMSTForCausalLM:
        """Return the HMST model inside; its parameters may be parts."""
        return cast(HMSTForCausalLM, model)

    def full_state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> FullState:
        """Return the whole state on the first worker; a collective."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, flatten_optimizer_state_dict=True)
        weights = get_model_state_dict(model, options=options)
        state = get_optimizer_state_dict(model, optimizer, options=options)
        return FullState(_tie(self.bare(model), cast(dict[str, Tensor], weights)), cast(dict[str, Any], state))

    def load_full_state(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: FullState) -> None:
        """Take over a whole state, of which every worker passes the same copy; a collective."""
        options = StateDictOptions(full_state_dict=True)
        # both setters change the dict they are given
        set_model_state_dict(model, dict(state.model), options=options)
        set_optimizer_state_dict(model, optimizer, _unflatten(state.optimizer), options=options)

    def _norm(self, model: nn.Module) -> Tensor:
        return _norm_of(model.parameters())


class DDPStrategy(Strategy):
    """A replica of the model in every worker; gradients are summed while the backward runs."""

    def prepare(self, model: HMSTForCausalLM) -> nn.Module:
        _place(model, self.device)
        return self._wrap(model)

    @contextlib.contextmanager
    def accumulate(self, model: nn.Module, *, last: bool) -> Iterator[None]:
        with contextlib.nullcontext() if last else cast(DistributedDataParallel, model).no_sync():
            yield

    def bare(self, model: nn.Module) -> HMSTForCausalLM:
        return cast(HMSTForCausalLM, cast(DistributedDataParallel, model).module)

    def _wrap(self, model: HMSTForCausalLM, own: Iterable[str] = ()) -> nn.Module:
        """Wrap a model that is equal on all workers but for the parameters named in `own`."""
        # The load balancer keeps the buffers equal; DDP's broadcasts would erase the counts of all workers but one.
        ignored = [*own, *(name for name, _ in model.named_buffers())]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
        device_ids = [self.device] if self.device.type == "cuda" else None
        ddp = DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)
        ddp.register_comm_hook(None, _sum_bucket)
        return ddp


class FSDPStrategy(Strategy):
    """Weights, gradients and optimiser state cut over the workers (FSDP2), gathered layer by layer."""

    def prepare(self, model: HMSTForCausalLM) -> nn.Module:
        mesh = init_device_mesh(self.device.type, (dist.get_world_size(),))
        _place(model, self.device)
        for module in model.modules():
            if isinstance(module, HMSTDecoderLayer):
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        return model

    @contextlib.contextmanager
    def accumulate(self, model: nn.Module, *, last: bool) -> Iterator[None]:
        root = cast(FSDPModule, model)
        root.set_requires_gradient_sync(last)
        root.set_is_last_backward(last)
        yield


class ExpertParallelStrategy(DDPStrategy):
    """Experts spread over groups of `size` workers, the rest of the model replicated.

    With more workers than `size`, each group holds a full set of experts.
    """

    def __init__(self, device: torch.device, size: int) -> None:
        super().__init__(device)
        self.mesh: DeviceMesh = init_device_mesh(
            device.type, (dist.get_world_size() // size, size), mesh_dim_names=("replica", "expert")
        )
        self.names: frozenset[str] = frozenset()
        """Parameters of which each worker of a group has its own part."""

    @property
    def group(self) -> dist.ProcessGroup:
        """The workers among which one set of experts is spread."""
        return self.mesh.get_group("expert")

    def prepare(self, model: HMSTForCausalLM) -> nn.Module:
        _place(model, self.device)
        self.names = frozenset(shard_experts(model, self.group))
        return self._wrap(model, self.names)

    def finish_gradients(self, model: nn.Module) -> None:
        replicas = self.mesh.get_group("replica")
        if replicas.size() > 1:
            for parameter in self._experts(model):
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad, group=replicas)

    def full_state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> FullState:
        weights = get_model_state_dict(model)
        state = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=True))
        whole_weights = {name: self._gather(value, name in self.names) for name, value in weights.items()}
        whole_state = {key: self._gather(value, self._is_cut(key, value)) for key, value in state.items()}
        if dist.get_rank() != 0:
            return FullState()
        return FullState(_tie(self.bare(model), whole_weights), whole_state)

    def load_full_state(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: FullState) -> None:
        weights = {name: self._cut(value, name in self.names) for name, value in state.model.items()}
        own = {key: self._cut(value, self._is_cut(key, value)) for key, value in state.optimizer.items()}
        super().load_full_state(model, optimizer, FullState(weights, own))

    def _experts(self, model: nn.Module) -> list[nn.Parameter]:
        return [parameter for name, parameter in self.bare(model).named_parameters() if name in self.names]

    def _norm(self, model: nn.Module) -> Tensor:
        experts = self._experts(model)
        others = [p for name, p in self.bare(model).named_parameters() if name not in self.names]
        expert_square = _norm_of(experts).square()
        dist.all_reduce(expert_square, group=self.group)
        return (_norm_of(others).square() + expert_square).sqrt()

    def _is_cut(self, key: str, value: Any) -> bool:
        """Whether an entry of the optimiser's state belongs to an expert and has its shape."""
        kind, _, rest = key.partition(".")
        name, _, entry = rest.rpartition(".")
        if kind != "state" or name not in self.names or not isinstance(value, Tensor) or value.ndim == 0:
            return False
        if value.ndim != 3:
            raise RunError(
                f"--parallel ep: the optimiser keeps {entry!r} of shape {tuple(value.shape)} for an expert and it "
                "cannot be put together over workers; use --optimizer adamw or muon"
            )
        return True

    def _gather(self, value: Any, cut: bool) -> Any:
        if cut:
            value = all_experts(value, self.group)
        return value.cpu() if isinstance(value, Tensor) and dist.get_rank() == 0 else value

    def _cut(self, value: Any, cut: bool) -> Any:
        return own_experts(value, self.group) if cut else value


def _norm_of(parameters: Any) -> Tensor:
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _sum_bucket(_state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP communication hook: the sum over workers, where DDP's own is the mean."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda future: future.value()[0])


def _place(model: nn.Module, device: torch.device) -> None:
    """Move the model to `device` and give every worker the first one's weights."""
    model.to(device)
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, src=0)


def _tie(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Make names that share a parameter in `model` share a tensor in `weights` too."""
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in weights:
            weights[name] = weights[first.setdefault(id(parameter), name)]
    return weights


def _unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """Return the optimiser's state by parameter, with a group for each.

    torch cannot load a flat state whole: `set_optimizer_state_dict` with both `full_state_dict` and
    `flatten_optimizer_state_dict` fails with KeyError 'param_groups.0.params.0' (torch 2.13).
    """
    state: dict[str, dict[str, Any]] = {}
    groups: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        kind, _, rest = key.partition(".")
        name, _, entry = rest.rpartition(".")
        if kind == "state":
            state.setdefault(name, {})[entry] = value
        else:
            groups.setdefault(name, {"params": [name]})[entry] = value
    return {"state": state, "param_groups": list(groups.values())}
