"""Load a causal language model and its tokenizer from what `checkpoints.resolve` found, or say in one line why not."""

from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import hsokv_ray.models
from hsokv_ray.errors import CheckpointError, ConfigError
from hsokv_ray.inference.checkpoints import ModelSource
from hsokv_ray.manifest import NAME as MANIFEST
from hsokv_ray.manifest import verify_manifest

_LEAST_VOCABULARY_SHARE = 0.9
"""Embeddings are padded to round numbers (a few percent at most in published models); less is another tokenizer."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to generate."""

    model: Any
    """A `PreTrainedModel` that generates."""
    tokenizer: Any
    """Its `PreTrainedTokenizerBase`."""
    source: ModelSource

    @property
    def window_tokens(self) -> int | None:
        """Tokens the model can attend to, or None where its configuration does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)


def load(source: ModelSource, *, device: str = "auto", encoder_decoders: bool = False) -> LoadedModel:
    """Load the model of `source` onto `device` (auto, cpu, cuda or mps), ready to generate.

    Args:
        encoder_decoders: load such a model whole; otherwise its decoder alone, as a language model.

    Raises:
        CheckpointError: a file damaged or missing, weights or tokenizer that do not fit the model.
        ConfigError: the device is not there.
    """
    target = choose_device(device)
    if source.folder is not None and (source.folder / MANIFEST).is_file():
        verify_manifest(source.folder)
    model = _load_model(source, encoder_decoders)
    tokenizer = _load_tokenizer(source)
    _check_vocabulary(source, model, tokenizer)
    return LoadedModel(model=model.to(target).eval(), tokenizer=tokenizer, source=source)


def choose_device(device: str) -> torch.device:
    """Return the device that `device` names; auto takes CUDA, then MPS, then the CPU. Raises `ConfigError`."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, present in there.items() if present))
    if not there[device]:
        raise ConfigError(f"--device {device}: PyTorch {torch.__version__} finds none here; use --device auto or cpu")
    return torch.device(device)


def _load_model(source: ModelSource, encoder_decoders: bool) -> Any:
    hsokv_ray.models.register()
    try:
        whole = encoder_decoders and AutoConfig.from_pretrained(source.model).is_encoder_decoder
        auto = AutoModelForSeq2SeqLM if whole else AutoModelForCausalLM
        loaded: Any = auto.from_pretrained(source.model, dtype="auto", use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(_cannot("model", source, source.model, error)) from error
    model, info = loaded
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if lacking:
        raise CheckpointError(f"{source.model}: its weights lack {_few(lacking)}; the folder is not this model's")
    return model


def _load_tokenizer(source: ModelSource) -> Any:
    try:
        return AutoTokenizer.from_pretrained(source.tokenizer)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise CheckpointError(_cannot("tokenizer", source, source.tokenizer, error)) from error


def _check_vocabulary(source: ModelSource, model: Any, tokenizer: Any) -> None:
    embeddings, entries = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if not embeddings * _LEAST_VOCABULARY_SHARE <= entries <= embeddings:
        raise CheckpointError(
            f"the tokenizer in {source.tokenizer} has {entries} entries, the model in {source.model} has {embeddings}; "
            "give the model its own tokenizer"
        )


def _cannot(what: str, source: ModelSource, where: str, error: Exception) -> str:
    cause = " ".join(str(error).split())[:300]
    if source.folder is None:
        return f"{where} is neither a folder here nor a {what} that the hub gave: {cause}"
    return f"cannot load the {what} in {where}: {cause}"


def _few(names: list[Any]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(str, names[:3])) + more
