"""A key-value memory on disk, and the examination of its inside."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hsokv_ray.errors import CheckpointError
from hsokv_ray.memory.key_value_entry import Entry
from hsokv_ray.memory.lifecycle import Stage

if TYPE_CHECKING:
    from hsokv_ray.memory.key_value import KeyValueMemory

KIND = "key_value"
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def dump(memory: "KeyValueMemory") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays and JSON values that `fill` takes."""
    slots = np.flatnonzero([entry is not None for entry in memory.entries])
    arrays = {
        "slots": slots,
        "keys": memory.keys[slots].cpu().float().numpy(),
        "values": memory.values[slots].cpu().float().numpy(),
        **memory.lifecycle.arrays(slots),
    }
    values = {
        "config": memory.config.model_dump(mode="json"),
        "encoder_id": memory.encoder_id,
        "clock": memory.lifecycle.clock,
        "entries": [[e.id, e.metadata, e.input, e.encoder_id] for e in memory.entries if e is not None],
    }
    return arrays, values


def fill(memory: "KeyValueMemory", arrays: dict[str, np.ndarray], values: dict[str, Any]) -> None:
    """Put what `dump` returned into the empty `memory`. Raises `CheckpointError`: it is not sound."""
    slots = arrays["slots"]
    memory.lifecycle.clock = values["clock"]
    memory.lifecycle.restore(slots, arrays)
    for slot, (id, metadata, given, encoder_id) in zip(slots.tolist(), values["entries"], strict=True):
        memory.entries[slot] = Entry(id, metadata, given, encoder_id)
        memory._slots[id] = slot
    memory.keys[slots] = torch.from_numpy(arrays["keys"])
    memory.values[slots] = torch.from_numpy(arrays["values"])
    memory._refresh(np.arange(memory.config.capacity))
    if found := problems(memory):
        raise CheckpointError(f"the saved key-value memory is not sound: {'; '.join(found)}")


@contextmanager
def refuse_what_does_not_fit(folder: str | Path) -> Iterator[None]:
    """Turn what goes wrong while a state is filled in into `CheckpointError`."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} is not a key-value memory ({error!r}); use another copy") from None


def digest(memory: "KeyValueMemory") -> str:
    """Return a digest of everything `memory` holds, standing included."""
    used = np.flatnonzero([entry is not None for entry in memory.entries])
    state = hashlib.blake2b(digest_size=16)
    for tensor in (memory.keys, memory.values, memory.valid, memory.log_strength, memory.learning):
        state.update(tensor.detach().cpu().float().numpy().tobytes())
    for array in memory.lifecycle.arrays(used).values():
        state.update(array.tobytes())
    words: list[Any] = [memory.config.model_dump(mode="json"), memory.encoder_id, memory.lifecycle.clock, used.tolist()]
    words += [[entry.id, entry.metadata, entry.input, entry.encoder_id] for entry in memory.entries if entry]
    state.update(json.dumps(words, sort_keys=True).encode())
    return state.hexdigest()


def problems(memory: "KeyValueMemory") -> list[str]:
    """Return what is wrong with the inside of `memory`; [] where nothing is."""
    used = np.array([entry is not None for entry in memory.entries], bool)
    found = memory.lifecycle.problems(used)
    places = {entry.id: slot for slot, entry in enumerate(memory.entries) if entry is not None}
    if len(places) != int(used.sum()):
        found.append("an id stands in two slots")
    if places != memory._slots:
        found.append("the map of ids does not fit the entries")
    found += _tensor_problems(memory, torch.as_tensor(used, device=memory.keys.device))
    return found


def _tensor_problems(memory: "KeyValueMemory", used: torch.Tensor) -> list[str]:
    found = []
    keys, values = memory.keys.detach(), memory.values.detach()
    if not (torch.isfinite(keys).all() and torch.isfinite(values).all()):
        found.append("a key or value holds NaN or infinity")
    off = (keys.float().norm(dim=-1) - used.float()).abs() > _TOLERANCE[keys.dtype]
    if off.any():
        found.append(f"{int(off.sum())} keys are not at unit length (or not zero in an empty slot)")
    if values[~used].any():
        found.append("an empty slot has a value")
    valid = [memory._may_be_read(slot) for slot in range(memory.config.capacity)]
    if memory.valid.tolist() != valid:
        found.append("the readable slots do not fit the entries")
    learning = (memory.lifecycle.stages() == Stage.LEARNING) & used.cpu().numpy()
    if memory.learning.tolist() != learning.tolist():
        found.append("the learning slots do not fit the retrievals")
    strength = torch.as_tensor(np.log(np.where(used.cpu().numpy(), memory.lifecycle.strength(), 1.0)))
    if not torch.allclose(memory.log_strength.cpu().double(), strength, atol=1e-2 if keys.itemsize < 4 else 1e-5):
        found.append("the strengths do not fit the standing")
    return found
