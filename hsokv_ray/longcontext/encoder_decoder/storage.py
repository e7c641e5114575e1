"""Encoded texts on disk: one file of tensors and a manifest, in a folder that is whole or absent."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hsokv_ray.errors import CheckpointError, StoreError
from hsokv_ray.longcontext.digest import model_digest
from hsokv_ray.longcontext.encoder_decoder.text import EncodedText, GrowingRows
from hsokv_ray.longcontext.folder import read_folder, write_folder
from hsokv_ray.longcontext.index import restore_index

KIND = "encoder-decoder memory"
_INDEX = "index."


def save_encoded(text: EncodedText, folder: str | Path) -> Path:
    """Write `text` to `folder`, replacing what was there once everything is on disk; return the folder.

    Raises:
        RunError: the disk is full or refuses to write; what was there stays.
    """
    return write_folder(folder, _tensors(text), _facts(text))


def load_encoded(
    folder: str | Path,
    *,
    model: Any = None,
    device: torch.device | str = "cpu",
    index_options: dict[str, Any] | None = None,
) -> EncodedText:
    """Read what `save_encoded` wrote, after checking every file.

    Args:
        folder: where it lies.
        model: the model that shall read it; None checks that when it is used.
        device: where the hidden states shall be kept.
        index_options: further arguments of `restore_index`.

    Raises:
        CheckpointError: damaged, of another kind, or encoded by another model.
    """
    tensors, facts = read_folder(folder, kind=KIND)
    if model is not None and facts["model_digest"] != model_digest(model):
        raise CheckpointError(
            f"{folder} was encoded by the model {facts['model_digest'][:12]}, this is {model_digest(model)[:12]}; "
            "load it with the former, or encode the text again"
        )
    try:
        return _restored(tensors, facts, torch.device(device), index_options or {})
    except (StoreError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} cannot be read ({error!r}); encode the text again") from error


def _tensors(text: EncodedText) -> dict[str, torch.Tensor]:
    tensors = {
        "token_ids": torch.from_numpy(text.token_ids),
        "settled": text.settled.rows_NM.cpu().contiguous(),
        "tail": text.tail_NM.cpu().contiguous(),
    }
    for name, values in text.index.state().items():
        tensors[_INDEX + name] = torch.from_numpy(np.asarray(values, order="C"))
    return tensors


def _facts(text: EncodedText) -> dict[str, Any]:
    return {
        "kind": KIND,
        "index": text.index.name,
        "window": text.window,
        "block_size": text.block_size,
        "model_digest": text.model_digest,
        "num_truncated_tokens": text.num_truncated_tokens,
    }


def _restored(
    tensors: dict[str, torch.Tensor], facts: dict[str, Any], device: torch.device, index_options: dict[str, Any]
) -> EncodedText:
    settled, tail = tensors["settled"].to(device), tensors["tail"].to(device)
    rows = GrowingRows.empty(settled.shape[1], settled.dtype, device, capacity=len(settled)).extended(settled)
    state = {name.removeprefix(_INDEX): value.numpy() for name, value in tensors.items() if name.startswith(_INDEX)}
    index = restore_index(
        facts["index"],
        state,
        num_heads=1,
        head_dim=settled.shape[1],
        block_size=facts["block_size"],
        **{"device": device, **index_options},
    )
    return EncodedText(
        token_ids=tensors["token_ids"].numpy(),
        settled=rows,
        tail_NM=tail,
        index=index,
        window=facts["window"],
        block_size=facts["block_size"],
        model_digest=facts["model_digest"],
        num_truncated_tokens=facts["num_truncated_tokens"],
    )
