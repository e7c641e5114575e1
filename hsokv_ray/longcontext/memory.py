"""A text read by a decoder-only model: its keys and values, layer by layer, with the indexes that search them."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hsokv_ray.config import differences
from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext.config import Resolved
from hsokv_ray.longcontext.folder import read_folder, write_folder
from hsokv_ray.longcontext.growable import KVSpan
from hsokv_ray.longcontext.row import Row
from hsokv_ray.longcontext.rows import RowMaker

KIND = "decoder memory"
_COUNTS = ("length", "position", "origin", "num_first")


@dataclass
class Memory:
    """What `LongContext.encode` returns. Requests share it without copying; only `LongContext.append` changes it.

    With long context off there are no rows, and the text itself stands before each prompt.
    """

    token_ids: np.ndarray
    """[N] int64."""
    model_digest: str
    layout: dict[str, Any]
    """The settings the kept tokens depend on; see `layout_of`."""
    rows: list[Row]
    """One sequence, layer by layer; read only. Empty until a loaded memory is first used."""
    num_truncated_tokens: int = 0
    """Tokens cut off because of `max_source_length`."""
    stored: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    """Tensors of a loaded memory no model has taken yet."""
    counts: dict[str, int] = field(default_factory=dict, repr=False)
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)
    """Held while the memory changes, and while what belongs together is read."""

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, indexes apart."""
        spans = (span for row in self.rows for span in (row.sinks, row.local, *(far.span for far in row.far)))
        loaded = (tensor.nbytes for name, tensor in self.stored.items() if name.endswith((".keys", ".values")))
        return sum(span.nbytes for span in spans) + sum(loaded)

    @property
    def index_nbytes(self) -> int:
        """Bytes of the indexes."""
        loaded = (tensor.nbytes for name, tensor in self.stored.items() if ".index." in name)
        return sum(far.index.nbytes for row in self.rows for far in row.far) + sum(loaded)

    def check(self, digest: str, settings: Resolved) -> None:
        """Raise `ConfigError` where another model wrote the memory, or settings that do not fit."""
        if not self.model_digest:
            raise ConfigError("the memory was read with long context off; encode the text again with enabled: true")
        if self.model_digest != digest:
            raise ConfigError(
                f"the memory was encoded by another model (digest {self.model_digest[:12]}, this one's is "
                f"{digest[:12]}); encode the text again with this model"
            )
        if changed := differences(self.layout, layout_of(settings)):
            raise ConfigError(
                f"the memory was encoded with other settings ({'; '.join(changed)}); use those, or encode again"
            )

    def place(self, make: RowMaker) -> None:
        """Build the rows of a loaded memory for the model of `make`."""
        with self.lock:
            if self.stored:
                num_layers = make.shape.num_layers
                self.rows = [
                    _restored(make.row(layer), self.stored, f"{layer}.", self.counts) for layer in range(num_layers)
                ]

    def attached(self, settings: Resolved) -> list[Row]:
        """Return the rows of a new request that begins with this text."""
        with self.lock:
            return [row.attached(settings) for row in self.rows]

    def save(self, path: str | Path) -> None:
        """Write the memory to the folder `path`: safetensors and a manifest with checksums.

        Raises `RunError` where the disk refuses.
        """
        with self.lock:
            self._save(path)

    def _save(self, path: str | Path) -> None:
        tensors = {"token_ids": torch.from_numpy(self.token_ids), **self.stored}
        for layer, row in enumerate(self.rows):
            tensors |= {f"{layer}.{name}": tensor for name, tensor in _tensors(row).items()}
        first = self.rows[0] if self.rows else None
        counts = {name: getattr(first, name) for name in _COUNTS} if first else self.counts
        facts = {
            "kind": KIND,
            "model_digest": self.model_digest,
            "layout": self.layout,
            "counts": counts,
            "num_truncated_tokens": self.num_truncated_tokens,
        }
        write_folder(path, tensors, facts)

    @classmethod
    def load(cls, path: str | Path) -> "Memory":
        """Read what `save` wrote; its tensors go to the model's devices when a `LongContext` first uses it.

        Raises `CheckpointError`: missing, damaged, or not the memory of a decoder-only model.
        """
        tensors, facts = read_folder(path, kind=KIND)
        return cls(
            token_ids=tensors.pop("token_ids").numpy().copy(),  # the others would live as long as it, in one mapping
            model_digest=facts["model_digest"],
            layout=facts["layout"],
            rows=[],
            num_truncated_tokens=facts["num_truncated_tokens"],
            stored=tensors,
            counts=facts["counts"],
        )


def layout_of(settings: Resolved) -> dict[str, Any]:
    """Return the settings that say what is kept and how; the others may change from request to request."""
    return {
        "sink_tokens": settings.sink,
        "block_size": settings.block,
        "layer_begin": settings.layer_begin,
        "layer_end": settings.layer_end,
        "index": settings.index,
        "native_positions": settings.positions == "native",
    }


def _tensors(row: Row) -> dict[str, torch.Tensor]:
    spans = {"sinks": row.sinks, "local": row.local}
    tensors = {}
    for far in row.far:
        spans["far"] = far.span
        tensors |= {f"index.{name}": torch.from_numpy(np.asarray(array)) for name, array in far.index.state().items()}
    for name, span in spans.items():
        tensors |= {f"{name}.keys": span.keys, f"{name}.values": span.values}
    return tensors


def _restored(row: Row, tensors: dict[str, torch.Tensor], prefix: str, counts: dict[str, int]) -> Row:
    """Fill `row` with the tensors whose names begin with `prefix`, and take them out of `tensors`."""
    own = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
    _fill(row.sinks, own, "sinks")
    _fill(row.local, own, "local")
    for far in row.far:
        _fill(far.span, own, "far")
        state = {name.removeprefix("index."): own[name].numpy() for name in own if name.startswith("index.")}
        far.index = far.kind.restore(state)
    for name in _COUNTS:
        setattr(row, name, counts[name])
    return row


def _fill(span: KVSpan, tensors: dict[str, torch.Tensor], name: str) -> None:
    keys = tensors[f"{name}.keys"]
    span.reserve(keys.shape[1])
    span.append(keys, tensors[f"{name}.values"])
