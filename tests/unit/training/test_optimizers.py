import importlib.util
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import MixtralConfig, MixtralForCausalLM

from hsokv_ray.errors import ConfigError
from hsokv_ray.training.checkpoint import CheckpointStore
from hsokv_ray.training.config import OptimConfig
from hsokv_ray.training.optimizers import build_optimizer, parameter_roles, set_learning_rate
from hsokv_ray.training.snapshot import Snapshot

has_bitsandbytes = importlib.util.find_spec("bitsandbytes") is not None
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def moe_model(*, tied: bool = False) -> MixtralForCausalLM:
    """A real mixture-of-experts model with 3-D experts, a router, norms and a head."""
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=4,
            tie_word_embeddings=tied,
        )
    )


def train(model: MixtralForCausalLM, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    tokens = torch.arange(64).view(2, 32)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def short_names(model: torch.nn.Module, params: list[torch.Tensor]) -> set[str]:
    names = {id(param): name.removeprefix("model.layers.0.") for name, param in model.named_parameters()}
    return {names[id(param)] for param in params}


def test_each_parameter_has_the_role_its_place_in_the_model_gives_it():
    model = moe_model()
    roles = parameter_roles(model)
    attention = {f"self_attn.{kind}_proj.weight" for kind in "qkvo"}
    assert short_names(model, roles.matrices) == attention | {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
    assert short_names(model, roles.heads) == {"mlp.gate.weight", "lm_head.weight"}
    norms = {"input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight"}
    assert short_names(model, roles.undecayed) == norms | {"model.embed_tokens.weight"}


def test_roles_are_found_through_a_wrapper():
    model = moe_model()
    wrapped = torch.nn.Sequential(model)
    assert [len(v) for v in vars(parameter_roles(wrapped)).values()] == [
        len(v) for v in vars(parameter_roles(model)).values()
    ]


def test_a_head_tied_to_the_embedding_is_not_decayed():
    model = moe_model(tied=True)
    assert any(param is model.lm_head.weight for param in parameter_roles(model).undecayed)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_frozen_parameters_are_left_out_and_every_other_is_updated_once(name):
    model = moe_model()
    model.model.embed_tokens.weight.requires_grad_(False)
    optimizer = build_optimizer(model, OptimConfig(optimizer=name), device_type="cpu")
    held = [id(param) for group in optimizer.param_groups for param in group["params"]]
    assert sorted(held) == sorted(id(param) for param in model.parameters() if param.requires_grad)


def test_adamw_is_fused_and_decays_only_matrices():
    optimizer = build_optimizer(moe_model(), OptimConfig(weight_decay=0.3), device_type="cpu")
    assert all(group["fused"] for group in optimizer.param_groups)
    assert all(param.ndim > 1 for param in optimizer.param_groups[0]["params"])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_muon_learns_at_least_as_fast_as_adamw():
    losses = {}
    for name in ("adamw", "muon"):
        model = moe_model()
        losses[name] = train(model, build_optimizer(model, OptimConfig(optimizer=name), device_type="cpu"), 10)[-1]
    assert losses["muon"] < losses["adamw"] * 1.05


@pytest.mark.parametrize(
    "name",
    [
        "adamw",
        "muon",
        pytest.param("adamw8bit", marks=pytest.mark.skipif(not has_bitsandbytes, reason="needs bitsandbytes")),
    ],
)
def test_a_checkpoint_continues_the_run_bit_for_bit(name, tmp_path):
    config, store = OptimConfig(optimizer=name), CheckpointStore(tmp_path, keep=1)
    model = moe_model()
    optimizer = build_optimizer(model, config, device_type="cpu")
    train(model, optimizer, 3)
    flat: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=FLAT)
    rng_state = torch.get_rng_state()
    path = store.save(Snapshot(step=3, model=model.state_dict(), optimizer=flat, state={}, rng_state=rng_state))
    expected = train(model, optimizer, 3)

    loaded, resumed = store.load(path), moe_model()
    resumed.load_state_dict(loaded.model)
    again = build_optimizer(resumed, config, device_type="cpu")
    set_optimizer_state_dict(resumed, again, loaded.optimizer, options=FLAT)
    assert train(resumed, again, 3) == expected


def test_setting_the_learning_rate_reaches_every_group():
    optimizer = build_optimizer(moe_model(), OptimConfig(optimizer="muon"), device_type="cpu")
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125] * 3


@pytest.mark.skipif(has_bitsandbytes, reason="bitsandbytes is installed")
@pytest.mark.parametrize("config", [OptimConfig(optimizer="adamw8bit"), OptimConfig(use_8bit_optimizer=True)])
def test_an_absent_8_bit_package_is_named_with_the_extra_that_brings_it(config):
    with pytest.raises(ConfigError, match=r"needs bitsandbytes.*hsokv_ray\[bitsandbytes\]"):
        build_optimizer(moe_model(), config, device_type="cpu")


@pytest.fixture
def sharded_model(tmp_path):
    """The model with every parameter a DTensor, on a mesh of this one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield fully_shard(moe_model(), mesh=init_device_mesh("cpu", (1,)))
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_sharded_parameters_train_as_plain_ones(name, sharded_model):
    config, plain = OptimConfig(optimizer=name), moe_model()
    expected = train(plain, build_optimizer(plain, config, device_type="cpu"), 3)
    optimizer = build_optimizer(sharded_model, config, device_type="cpu")
    assert train(sharded_model, optimizer, 3) == pytest.approx(expected, rel=1e-6)


def test_8_bit_states_of_sharded_parameters_are_refused(sharded_model):
    with pytest.raises(ConfigError, match="adamw8bit cannot update sharded parameters; use --parallel ddp"):
        build_optimizer(sharded_model, OptimConfig(optimizer="adamw8bit"), device_type="cpu")
