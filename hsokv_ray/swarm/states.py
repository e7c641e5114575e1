"""The states that orders left, one safetensors file each, and the same bytes for the way between processes.

states = States("~/hsokv_runs/words/states")
states.write("a3.17", pack(state))                   # on disk, as a whole or not at all, when it returns
state = states.read("a3.17")
states.drop({"a3.16"})
"""

import json
import os
import struct
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hsokv_ray.errors import CheckpointError, RunError
from hsokv_ray.manifest import flush_folder
from hsokv_ray.swarm.learner import State

_SUFFIX = ".safetensors"
_TEMPORARY = ".tmp"
_VALUES = "values"


class States:
    """A folder of states by order id. Several processes may write, each its own orders.

    Args:
        folder: made by the first write.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser().absolute()

    def path(self, order_id: str) -> Path:
        """Return where the state of an order lies."""
        return self.folder / (order_id + _SUFFIX)

    def names(self) -> set[str]:
        """Return the orders whose states are here."""
        if not self.folder.is_dir():
            return set()
        return {path.name.removesuffix(_SUFFIX) for path in self.folder.glob(f"a*{_SUFFIX}")}

    def write(self, order_id: str, data: bytes) -> None:
        """Put what `pack` returned on disk. Raises `RunError`: the disk refuses."""
        temporary = self.folder / f".{order_id}.{os.getpid()}{_TEMPORARY}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path(order_id))
            flush_folder(self.folder)
        except OSError as error:
            raise RunError(
                f"{self.path(order_id)} cannot be written ({error.strerror}); make room, then resume the search"
            ) from None

    def read(self, order_id: str) -> State:
        """Return the state of an order. Raises `CheckpointError`: it is missing or damaged."""
        path = self.path(order_id)
        try:
            return unpack(path.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror}); the order has to be done again") from None
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None

    def drop(self, order_ids: Collection[str]) -> None:
        """Remove these states; those that are not here need no removing."""
        for order_id in order_ids:
            self.path(order_id).unlink(missing_ok=True)

    def clean(self, order_id: str | None = None) -> None:
        """Remove what writers that were killed left half written: of one order, or of all. Nobody may be writing it."""
        for path in self.folder.glob(f".*{_TEMPORARY}" if order_id is None else f".{order_id}.*{_TEMPORARY}"):
            path.unlink(missing_ok=True)


def pack(state: State) -> bytes:
    """Return `state` as the bytes of a safetensors file; `State.values` are in its header. NaN is written as such.

    Raises:
        RunError: the values are no JSON.
    """
    try:
        values = json.dumps(state.values, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise RunError(f"state: its values are no JSON ({error}); a learner's State.values must be") from None
    return save(_apart(state.tensors), {_VALUES: values})


def unpack(data: bytes) -> State:
    """Return what `pack` was given. Raises `CheckpointError`: damaged."""
    try:
        tensors = load(data)
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        return State(tensors, json.loads(header["__metadata__"][_VALUES]))
    except (SafetensorError, ValueError, KeyError, TypeError, struct.error) as error:
        raise CheckpointError(
            f"damaged state ({type(error).__name__}: {error}); the order has to be done again"
        ) from None


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors on the CPU, of which no two share memory: the format has no sharing."""
    apart, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        start = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone(memory_format=torch.contiguous_format) if start in seen else tensor
        seen.add(start)
    return apart
