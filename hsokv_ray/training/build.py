"""From configuration to a trainer: model, optimiser, strategy, data."""

import torch

from hsokv_ray.data import TextTokenizer
from hsokv_ray.models import HMSTConfig, HMSTForCausalLM
from hsokv_ray.models.experts import fastest_experts_implementation
from hsokv_ray.models.presets import flops_per_token, model_shape
from hsokv_ray.training.config import TrainHMSTConfig
from hsokv_ray.training.feed import Feed
from hsokv_ray.training.host import Host
from hsokv_ray.training.loop import Trainer
from hsokv_ray.training.optimizers import build_optimizer
from hsokv_ray.training.parallel import make_strategy
from hsokv_ray.training.place import Place
from hsokv_ray.training.run_folder import RunFolder


def build_trainer(
    config: TrainHMSTConfig,
    *,
    max_steps: int,
    step_limit: int | None,
    epochs: float | None,
    folder: RunFolder,
    place: Place,
    host: Host,
    use_ray_data: bool,
) -> Trainer:
    """Build everything one worker of a prepared run needs.

    Args:
        max_steps, step_limit: see `Length`.
        epochs: passes over the documents; None: without end.
        use_ray_data: read and tokenise in Ray tasks, or else in this process.
    """
    feed = Feed(config, epochs=epochs, folder=folder, place=place, use_ray_data=use_ray_data)
    strategy = make_strategy(
        config.run.parallel, device=place.device, expert_parallel_size=config.run.expert_parallel_size
    )
    model = build_model(config, feed.tokenizer, device=place.device, bf16=place.bf16)
    if config.run.compile:
        model.compile()
    model = strategy.prepare(model)
    return Trainer(
        config,
        max_steps=max_steps,
        step_limit=step_limit,
        model=model,
        optimizer=build_optimizer(model, config.optim, device_type=place.device.type),
        strategy=strategy,
        feed=feed,
        folder=folder,
        place=place,
        host=host,
        flops_per_token=flops_per_token(strategy.bare(model).config.to_dict(), config.data.seq_len),
    )


def build_model(
    config: TrainHMSTConfig, tokenizer: TextTokenizer, *, device: torch.device, bf16: bool
) -> HMSTForCausalLM:
    """Return the model with fresh weights on `device`; the same seed gives the same weights on every worker."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    shape = model_shape(config.model, vocab_size=tokenizer.vocab_size, seq_len=config.data.seq_len)
    shape.setdefault("experts_implementation", fastest_experts_implementation(device.type, dtype))
    torch.manual_seed(config.run.seed)
    with device:
        model = HMSTForCausalLM(
            HMSTConfig(
                **shape,
                eos_token_id=tokenizer.eos_id,
                bos_token_id=None,
                pad_token_id=tokenizer.pad_id,
            )
        )
    if config.run.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model
