"""A fingerprint of a model, so that a memory is only read by the model that wrote it."""

import hashlib
import json
from typing import Any

import torch

from hsokv_ray.errors import ConfigError

_SAMPLES = 1024


def model_digest(model: Any) -> str:
    """Return a hex digest of the model's family, rotary settings, and every weight's name, shape, dtype and a sample.

    A sample of evenly spaced values tells two checkpoints apart without reading gigabytes; it does not prove that all
    weights are equal.
    """
    config = model.config
    digest = hashlib.sha256()
    facts = [config.model_type, getattr(config, "rope_parameters", None)]
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.named_parameters()):
        if weight.is_meta:
            raise ConfigError(f"the weight {name} is not in memory (offloaded to disk or CPU); load the model whole")
        flat = weight.detach().flatten()
        sample = flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES].to("cpu", torch.float32)
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()
