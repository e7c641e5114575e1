"""Which index a name stands for."""

import logging
from functools import cache
from typing import Any

import numpy as np
import torch

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext.index.base import BlockIndex
from hsokv_ray.longcontext.index.coded import CodedIndex
from hsokv_ray.longcontext.index.codes import Codes
from hsokv_ray.longcontext.index.devices import GpuSearcher, find_gpu
from hsokv_ray.longcontext.index.faiss_library import load_faiss
from hsokv_ray.longcontext.index.flat import FlatIndex
from hsokv_ray.longcontext.index.inverted import InvertedLists, PlainVectors
from hsokv_ray.longcontext.index.product import DIM_PER_CODE, ProductCodes
from hsokv_ray.longcontext.index.summaries import BlockMeanIndex, BlockMinMaxIndex

FLAT_BELOW = 8192
"""Tokens. From about 4096 scanning codes is faster than multiplying keys, for 1 to 4 queries per head; learning the
codebooks, once, takes as long as a few hundred searches save at this length."""
NAMES = ("auto", "flat", "pq", "block_mean", "block_minmax", "ivf")

_SUMMARIES = {"block_mean": BlockMeanIndex, "block_minmax": BlockMinMaxIndex}

logger = logging.getLogger(__name__)


def make_index(
    name: str,
    *,
    num_heads: int,
    head_dim: int,
    block_size: int,
    device: torch.device | str = "cpu",
    flat_below: int = FLAT_BELOW,
    seed: int = 0,
    gpu: int | None = None,
) -> BlockIndex:
    """Return an empty index of one layer.

    Args:
        name: flat, pq, block_mean, block_minmax, ivf, or auto: flat while short, then pq where FAISS is installed and
            the keys are in main memory.
        num_heads: key-value heads.
        head_dim: numbers per key.
        block_size: tokens per block; 1 finds single tokens.
        device: where the store's keys are; summaries lie there too.
        flat_below: tokens up to which auto stays exact.
        seed: of the codebooks.
        gpu: number of the GPU on which flat and ivf search through FAISS; where it cannot, and for the others, the
            search is where the keys are, with a warning. None: no GPU.

    Raises:
        ConfigError: there is no such index, it needs FAISS and there is none, or it cannot have such heads or blocks.
    """
    shape: dict[str, Any] = {"num_heads": num_heads, "head_dim": head_dim, "block_size": block_size}
    if name not in NAMES:
        raise ConfigError(f"index {name!r} is unknown; give one of {', '.join(NAMES)}")
    searcher = None if gpu is None else _gpu_for(name, gpu)
    if name in _SUMMARIES:
        if block_size == 1:
            raise ConfigError(f"--index {name} summarises blocks; with --granularity token use flat, pq or ivf")
        return _SUMMARIES[name](**shape, device=device)
    codes = _codes(name, head_dim, seed, torch.device(device), searcher)
    if codes is None:
        return FlatIndex(**shape, name=name)
    return CodedIndex(name, codes, **shape, exact_tokens=flat_below if name == "auto" else 0)


def restore_index(
    name: str,
    state: dict[str, np.ndarray],
    *,
    num_heads: int,
    head_dim: int,
    block_size: int,
    device: torch.device | str = "cpu",
    flat_below: int = FLAT_BELOW,
    seed: int = 0,
    gpu: int | None = None,
) -> BlockIndex:
    """Return the index whose `state()` this is, made with the same name and arguments.

    An auto index is restored without FAISS, too: it scores exactly then.

    Raises:
        ConfigError: as `make_index`.
        StoreError: the state is damaged or of another shape.
    """
    index = make_index(
        name,
        num_heads=num_heads,
        head_dim=head_dim,
        block_size=block_size,
        device=device,
        flat_below=flat_below,
        seed=seed,
        gpu=gpu,
    )
    index.restore(state)
    return index


def _codes(name: str, head_dim: int, seed: int, device: torch.device, searcher: GpuSearcher | None) -> Codes | None:
    """Return what codes the keys, None where nothing does and they are scored exactly."""
    if name == "flat":
        return None if searcher is None else PlainVectors(head_dim, gpu=searcher)
    if name == "auto":
        return ProductCodes(head_dim, seed=seed) if _auto_codes(device.type, head_dim) else None
    load_faiss()
    return ProductCodes(head_dim, seed=seed) if name == "pq" else InvertedLists(head_dim, seed=seed, gpu=searcher)


def _gpu_for(name: str, gpu: int) -> GpuSearcher | None:
    if name in ("flat", "ivf"):
        return find_gpu(gpu)
    _say_once(logging.WARNING, f"--gpu-index: FAISS has no GPU search for --index {name}; use flat or ivf")
    return None


def _auto_codes(device_type: str, head_dim: int) -> bool:
    if device_type != "cpu":
        reason = f"the keys are on {device_type}"
    elif head_dim % DIM_PER_CODE:
        reason = f"the head dim {head_dim} is odd"
    else:
        try:
            load_faiss()
        except ConfigError:
            reason = "FAISS is not installed"
        else:
            return True
    _say_once(logging.INFO, f"index auto scores every token exactly, however long the text: {reason}")
    return False


@cache
def _say_once(level: int, message: str) -> None:
    logger.log(level, message)
