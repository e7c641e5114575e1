"""What retrieval has to know of an encoder-decoder model: its window, and the projections of its cross attention.

Shapes: H heads, D head size, M model width.
"""

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext.config import LongContextConfig, Resolved

_T5_WINDOW = 512
"""Tokens T5 was trained on (Raffel et al. 2020); its relative positions set no limit of their own."""


@dataclass(frozen=True)
class _Names:
    """Attributes of a family's modules."""

    key: str
    value: str
    num_heads: str
    head_dim: str


_BART = _Names(key="k_proj", value="v_proj", num_heads="num_heads", head_dim="head_dim")
_T5 = _Names(key="k", value="v", num_heads="n_heads", head_dim="key_value_proj_dim")
_FAMILIES = {"bart": _BART, "t5": _T5}

SUPPORTED = tuple(_FAMILIES)
"""Values of `config.model_type` that can be served."""


@dataclass(frozen=True)
class CrossProjections:
    """How one layer's cross attention reads hidden states."""

    key_HDM: torch.Tensor
    value_HDM: torch.Tensor
    value_bias_HD: torch.Tensor | None
    """The key's bias adds the same to every logit of a query, so the softmax cancels it."""


def check_family(model: Any) -> None:
    """Raise `ConfigError` where `model` is of a family that cannot be served."""
    family = model.config.model_type
    if family not in _FAMILIES:
        raise ConfigError(
            f"long inputs for encoder-decoder models: the family {family!r} is not served; "
            f"served are {', '.join(SUPPORTED)}"
        )


def WINDOW(model: Any) -> int:  # noqa: N802  (the extension point's name)
    """Return the tokens that the encoder of `model` was trained to read at once."""
    check_family(model)
    config = model.config
    if model.config.model_type == "t5":
        return getattr(config, "n_positions", None) or _T5_WINDOW
    return config.max_position_embeddings


def resolve(config: LongContextConfig, model: Any) -> Resolved:
    """Return `config` in numbers for an encoder-decoder `model`.

    Cross attention has no positions, no sinks and no local part: the whole window is the budget unless
    `budget_tokens` says otherwise, and that may exceed the window.

    Raises `ConfigError`: the family is not served, the layers do not exist, or the budget is less than a block.
    """
    window = config.context_window_size or WINDOW(model)
    _check_window(window, model)
    num_layers = len(cross_attentions(model))
    begin, end = config.layer_begin or 0, config.layer_end or num_layers
    if end > num_layers or begin >= end:
        raise ConfigError(
            f"--layer-begin {begin} --layer-end {end}: the decoder has {num_layers} layers; "
            f"give begin < end <= {num_layers}"
        )
    block = 1 if config.granularity == "token" else config.block_size or max(1, min(32, window // 16))
    budget = window if config.budget_tokens is None else config.budget_tokens
    if budget < block:
        raise ConfigError(
            f"--budget-tokens {budget} is less than one block of {block}, so cross attention would see nothing; "
            f"give at least {block}"
        )
    return Resolved(
        window=window,
        sink=0,
        local=0,
        num_blocks=budget // block,
        block=block,
        chunk=window,
        piece=window,
        layer_begin=begin,
        layer_end=end,
        positions=config.positions,
        index=config.index,
    )


def _check_window(window: int, model: Any) -> None:
    if model.config.model_type != "t5" and window > WINDOW(model):
        raise ConfigError(
            f"--context-window-size {window}: the model's encoder has {WINDOW(model)} positions; give at most that"
        )


def cross_attentions(model: Any) -> list[nn.Module]:
    """Return the cross attention of each decoder layer.

    Raises:
        ConfigError: the family is not served; its transformers version does not call the attention interface; or its
            projections are not plain linear layers (adapters that are not merged, packed weights).
    """
    check_family(model)
    decoder = model.get_decoder()
    if model.config.model_type == "t5":
        modules = [block.layer[1].EncDecAttention for block in decoder.block]
    else:
        modules = [layer.encoder_attn for layer in decoder.layers]
    _check_modules(modules, model.config.model_type)
    return modules


def heads(module: nn.Module) -> tuple[int, int]:
    """Return the number of heads and the head size of a cross attention."""
    names = _names(module)
    return getattr(module, names.num_heads), getattr(module, names.head_dim)


def projections(module: nn.Module) -> CrossProjections:
    """Return the key and value projections of a cross attention, per head; views of its weights."""
    names = _names(module)
    shape = heads(module)
    key: nn.Linear = getattr(module, names.key)
    value: nn.Linear = getattr(module, names.value)
    bias = None if value.bias is None else value.bias.unflatten(0, shape)
    return CrossProjections(key.weight.unflatten(0, shape), value.weight.unflatten(0, shape), bias)


def _names(module: nn.Module) -> _Names:
    return _BART if hasattr(module, _BART.key) else _T5


def _check_modules(modules: list[nn.Module], family: str) -> None:
    for module in modules:
        if not hasattr(sys.modules[type(module).__module__], "ALL_ATTENTION_FUNCTIONS"):
            import transformers

            raise ConfigError(
                f"{family} in transformers {transformers.__version__} computes attention by itself, so retrieval "
                "cannot reach it; install a newer transformers (5.23 is known to work)"
            )
        for name in (_names(module).key, _names(module).value):
            projection = getattr(module, name)
            if not isinstance(projection, nn.Linear) or not projection.weight.is_floating_point():
                raise ConfigError(
                    f"{family}: {name} of cross attention is a {type(projection).__name__}, whose weight cannot be "
                    "read; merge adapters into the model, and load it without quantisation"
                )
