"""A key-value transformer in a folder: what transformers writes, the memory in `memory/`, a tokenizer where given.

Everything is first written beside the folder. A new folder appears whole. An existing one takes the memory (whole by
itself), then each file by a rename, `config.json` last; it names the versions of weights and keys that belong together,
so that a folder which a killed process left half old is found out when it is loaded.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from hsokv_ray.errors import CheckpointError, ConfigError
from hsokv_ray.manifest import flush_folder
from hsokv_ray.memory.config import KeyValueConfig
from hsokv_ray.memory.key_value import KeyValueMemory

if TYPE_CHECKING:
    from hsokv_ray.models.kv_transformer import TransformerWithKV

MEMORY = "memory"
CONFIG = "config.json"
StaleMemory = Literal["refuse", "reencode", "keep", "empty"]
"""What becomes of a saved memory whose keys other weights made. refuse: an error. reencode: its stored inputs are
encoded with the weights that are there. keep: its keys stay as they are. empty: an empty memory takes its place, also
where there is none."""


class SavesItself(Protocol):
    """A tokenizer of transformers."""

    def save_pretrained(self, save_directory: str, /) -> Any: ...


class Saves(Protocol):
    """A tokenizer of this package."""

    def save(self, folder: str, /) -> Any: ...


def save_folder(
    folder: str | os.PathLike[str],
    save_weights: Callable[[Path], None],
    memory: KeyValueMemory | None,
    tokenizer: SavesItself | Saves | None,
) -> None:
    """Write a checkpoint; `save_weights` is transformers' own writer. One process writes.

    Raises:
        CheckpointError: the path is a file.
        StoreError, OSError: the disk refuses.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give a folder")
    with _stage(folder) as stage:
        save_weights(stage)
        if tokenizer is not None:
            (getattr(tokenizer, "save_pretrained", None) or tokenizer.save)(str(stage))  # pyright: ignore
        exists = folder.is_dir() and any(folder.iterdir())
        if memory is not None:
            memory.save((folder if exists else stage) / MEMORY)
        _flush(stage)
        if exists:
            _take_over(stage, folder)
        else:
            stage.replace(folder)
    flush_folder(folder.parent)


def attach_memory(model: "TransformerWithKV", folder: Path, stale: StaleMemory) -> None:
    """Give `model` the memory that was saved with it in `folder`.

    Raises:
        CheckpointError: it is missing, damaged, of other dimensions, or of other weights than those of `model`.
        ConfigError: `stale` is none of the options.
    """
    if stale not in ("refuse", "reencode", "keep", "empty"):
        raise ConfigError(f"stale_memory: got {stale!r}; refuse, reencode, keep or empty is needed")
    own = KeyValueConfig(**(model.config.memory or {}))
    if stale == "empty":
        _put(model, KeyValueMemory(own))
        return
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} holds no saved memory; copy it there, or load with stale_memory='empty' for a fresh one"
        )
    memory = KeyValueMemory.load(folder)
    if (memory.config.key_dim, memory.config.value_dim) != (own.key_dim, own.value_dim):
        raise CheckpointError(
            f"{folder}: keys and values have {memory.config.key_dim} and {memory.config.value_dim} dimensions; this "
            f"model needs {own.key_dim} and {own.value_dim}; load with stale_memory='empty' for a fresh memory"
        )
    belongs = not len(memory) or _belongs(model, memory.encoder_id)
    if not belongs and stale == "refuse":
        raise CheckpointError(
            f"{folder}: its keys were made by the encoder {memory.encoder_id!r}, and the weights are "
            f"{model.encoder_id()!r}; load with stale_memory='reencode' to encode its inputs again, or 'keep' "
            "to leave its keys as they are"
        )
    _put(model, memory)
    if not belongs and stale == "reencode":
        with memory.writable():
            left = model.reencode().left
        if left:
            raise CheckpointError(
                f"{folder}: {len(left)} entries (first {left[0]!r}) have no stored input and cannot be encoded again; "
                "load with stale_memory='keep'"
            )


def _belongs(model: "TransformerWithKV", version: str) -> bool:
    """Whether the keys were made by these weights, or were saved with them when training had gone past them."""
    weights, saved = model.encoder_id(), model.config.key_versions or {}
    return version == weights or (version == saved.get("memory") and weights == saved.get("weights"))


def _put(model: "TransformerWithKV", memory: KeyValueMemory) -> None:
    model.memory = memory.to(device=model.device, dtype=model.dtype).train(model.training)
    model.config.memory = memory.config.model_dump(mode="json")


@contextmanager
def _stage(folder: Path) -> Iterator[Path]:
    stage = folder.parent / f".tmp-{folder.name}"
    if stage.exists():  # of a process that was killed
        shutil.rmtree(stage)
    stage.mkdir(parents=True)
    try:
        yield stage
    finally:
        if stage.exists():
            shutil.rmtree(stage)


def _flush(stage: Path) -> None:
    """Put the files on disk before their names stand for something."""
    for path in stage.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _take_over(stage: Path, folder: Path) -> None:
    """Move the files of `stage` over those in `folder`, which may hold others; weights of another cut go."""
    names = sorted((path.name for path in stage.iterdir()), key=lambda name: (name == CONFIG, name))
    for name in names[:-1]:
        (stage / name).replace(folder / name)
    for old in [*folder.glob("model*.safetensors"), *folder.glob("model*.safetensors.index.json")]:
        if old.name not in names:
            old.unlink()
    (stage / names[-1]).replace(folder / names[-1])
    flush_folder(folder)
