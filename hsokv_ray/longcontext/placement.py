"""Where keys, values and indexes of a model's memory lie, and what is said when they cannot lie where they should."""

import logging
from dataclasses import dataclass
from typing import Any

import torch

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext.config import LongContextConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """Devices and types of one layer."""

    device: torch.device
    """The layer's own: new keys and values come from there."""
    dtype: torch.dtype
    store_device: torch.device
    store_dtype: torch.dtype
    index_gpu: int | None
    """Number of the GPU that searches; None: the CPU, or wherever torch holds the keys."""

    def describe(self) -> str:
        """Return one line."""
        search = "CPU" if self.index_gpu is None else f"GPU {self.index_gpu}"
        store = f"datastore on {self.store_device} {self.store_dtype}"
        return f"model on {self.device} {self.dtype}, {store}, search: {search}"


def place_layers(layers: Any, dtype: torch.dtype, config: LongContextConfig) -> list[Placement]:
    """Return the placement of each decoder layer in `layers` of a model that computes in `dtype`.

    What asks for a GPU that is not there falls back to the CPU with one warning.
    """
    datastore = _datastore(config)
    gpus = config.index_devices if config.gpu_index else ()
    placements = []
    for number, layer in enumerate(layers):
        weight = next(layer.parameters())
        placements.append(
            Placement(
                device=weight.device,
                dtype=dtype,
                store_device=datastore or weight.device,
                store_dtype=_dtype(config.store_dtype, dtype),
                index_gpu=gpus[number % len(gpus)] if gpus else None,
            )
        )
    return placements


def _datastore(config: LongContextConfig) -> torch.device | None:
    """Return the device of the datastore; None: each layer's own."""
    if not config.use_datastore:
        return None
    if not config.gpu_datastore:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        logger.warning("gpu_datastore: PyTorch %s finds no GPU; the datastore is in main memory", torch.__version__)
        return torch.device("cpu")
    if config.datastore_device >= torch.cuda.device_count():
        raise ConfigError(
            f"--datastore-device {config.datastore_device}: there are {torch.cuda.device_count()} GPUs, from 0"
        )
    return torch.device("cuda", config.datastore_device)


def _dtype(name: str, own: torch.dtype) -> torch.dtype:
    return own if name == "auto" else getattr(torch, name)
