"""KeyValueMemory (H-SOKV): keys at unit length, values, and a standing per entry; read by differentiable top-k.

    memory = KeyValueMemory(KeyValueConfig(key_dim=128, value_dim=256), encoder_id="minilm-2f1a")
    memory.write(keys, values, inputs=["a murngale is ..."], metadata=[{"word": "murngale"}])
    retrieval = memory.read(queries)                          # gradients reach the queries
    memory.feedback(retrieval.indices[:, 0], correct, clock=retrieval.clock)
    memory.eval()                                             # now nothing changes: writes raise, reads count nothing

What is worth writing, and when, is the caller's decision.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from hsokv_ray.errors import DataError, StoreError
from hsokv_ray.memory import key_value_state
from hsokv_ray.memory.config import KeyValueConfig
from hsokv_ray.memory.key_value_entry import Entry, check_entries, check_matrix
from hsokv_ray.memory.lifecycle import Lifecycle, Stage
from hsokv_ray.memory.retrieval import Retrieval, retrieve
from hsokv_ray.memory.snapshots import load_state, save_state


@dataclass(frozen=True)
class Written:
    """What a write did."""

    ids: list[str]
    slots: list[int]
    replaced: int
    """Ids that were there already: key and value are new, the standing stays."""
    evicted: list[str]
    """Ids that made room, least useful first."""
    evicted_protected: int
    """How many of them were still learning or in reinforcement, because no mature entry was left."""


@dataclass(frozen=True)
class Reencoded:
    """What `reencode` did."""

    done: int
    left: list[str]
    """Ids without a stored input, which stay stale."""


class KeyValueMemory(nn.Module):
    """Up to `capacity` entries on one device; moves with the module it is part of, but is not in its state_dict.

    In training mode reads count retrievals, which moves entries through their lifecycle; in evaluation nothing changes.

    Args:
        config: sizes and rules.
        encoder_id: names the encoder (and its version) whose keys are current.
    """

    keys: Tensor
    values: Tensor
    valid: Tensor
    log_strength: Tensor
    learning: Tensor

    def __init__(self, config: KeyValueConfig, *, encoder_id: str = "") -> None:
        super().__init__()
        self.config = config
        self.encoder_id = encoder_id
        self.entries: list[Entry | None] = [None] * config.capacity
        self.lifecycle = Lifecycle(config.lifecycle, config.capacity)
        self._slots: dict[str, int] = {}
        for name, buffer in {
            "keys": torch.zeros(config.capacity, config.key_dim),
            "values": torch.zeros(config.capacity, config.value_dim),
            "valid": torch.zeros(config.capacity, dtype=torch.bool),
            "log_strength": torch.zeros(config.capacity),
            "learning": torch.zeros(config.capacity, dtype=torch.bool),
        }.items():
            self.register_buffer(name, buffer, persistent=False)

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def ids(self) -> list[str]:
        """Ids of all entries, by slot."""
        return [entry.id for entry in self.entries if entry is not None]

    @property
    def num_stale(self) -> int:
        """Entries whose key was made by another encoder than the current one."""
        return sum(entry is not None and self._is_stale(entry) for entry in self.entries)

    def slots_of(self, ids: Sequence[str]) -> list[int | None]:
        """Return the slot of each id; None for one that is not there."""
        return [self._slots.get(id) for id in ids]

    def stage(self, id: str) -> Stage:
        """Return the stage of an entry. Raises `DataError`: it is not there."""
        return Stage(int(self.lifecycle.stages(np.array([self._slot(id)]))[0]))

    def read(self, queries: Tensor, top_k: int | None = None, *, record: bool = True) -> Retrieval:
        """Return what the memory holds near `queries`, without changing them in place.

        Args:
            queries: float [..., key_dim]; need not be at unit length.
            top_k: entries per query; default the configuration's.
            record: whether a read in training mode counts as a retrieval. False where a read is run twice, as under
                activation checkpointing.
        """
        if queries.shape[-1] != self.config.key_dim or not queries.is_floating_point():
            raise DataError(
                f"queries: got {queries.dtype} {list(queries.shape)}; floats [..., {self.config.key_dim}] are needed"
            )
        top_k = self.config.top_k if top_k is None else top_k
        if top_k < 1:
            raise DataError(f"top_k: got {top_k}; at least 1 is needed")
        recording = record and self.training
        end = max(self._slots.values(), default=0) + 1
        found = retrieve(
            queries,
            self.keys[:end],
            self.values[:end],
            valid_C=self.valid[:end],
            log_strength_C=self.log_strength[:end],
            alone_C=self.learning[:end] & (self.config.learning_recall == "top1"),
            top_k=top_k,
            temperature=self.config.temperature,
            threshold=self.config.threshold,
            clock=self.lifecycle.tick() if recording else self.lifecycle.clock,
        )
        if recording:
            self._record(found)
        return found

    def write(
        self,
        keys: Any,
        values: Any,
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[dict[str, Any]] | None = None,
        inputs: Sequence[Any] | None = None,
        encoder_id: str | None = None,
    ) -> Written:
        """Store entries; gradients do not reach them.

        Args:
            keys: [n, key_dim] numbers, kept at unit length.
            values: [n, value_dim] numbers.
            ids: n strings; an id that is there already is replaced, of one that comes twice the last row is kept.
                Default: a digest of input and metadata, or of key and value without them; the same in every process.
            metadata: n JSON objects.
            inputs: what the keys were encoded from, n JSON values; `reencode` needs them.
            encoder_id: which encoder made the keys; default the current one.

        Raises:
            DataError: shapes, types, NaN, infinity, zero keys, or more rows than the capacity.
            StoreError: the memory is in evaluation.
        """
        self._check_writable()
        key_ND = self._matrix("keys", keys, self.config.key_dim)
        value_NV = self._matrix("values", values, self.config.value_dim)
        encoder_id = self.encoder_id if encoder_id is None else encoder_id
        rows = check_entries(key_ND, value_NV, ids=ids, metadata=metadata, inputs=inputs, encoder_id=encoder_id)
        lengths = key_ND.norm(dim=-1, keepdim=True)
        if not (lengths > 0).all():
            raise DataError(f"keys: row {int((lengths == 0).flatten().nonzero()[0])} is all zeros: it has no direction")
        last = {entry.id: i for i, entry in enumerate(rows)}
        picked = sorted(last.values())
        if len(picked) > self.config.capacity:
            raise DataError(f"write: got {len(picked)} entries; the capacity is {self.config.capacity}")
        return self._store([rows[i] for i in picked], (key_ND / lengths)[picked], value_NV[picked])

    def feedback(self, indices: Any, success: Any, *, clock: int | None = None) -> int:
        """Say how well retrieved entries served; return how many judgements were applied.

        Args:
            indices: int [n] or [B, K] slots of a retrieval; -1 is passed over.
            success: [n] or [B], in [0, 1] or bool; one value per row of `indices`.
            clock: `Retrieval.clock`; entries written since are passed over.

        Raises:
            DataError: shapes or values.
            StoreError: the memory is in evaluation.
        """
        self._check_writable()
        slots = torch.as_tensor(indices).cpu().numpy().astype(np.int64)
        grades = torch.as_tensor(success).cpu().numpy().astype(np.float64)
        if grades.shape != slots.shape[:1] or slots.ndim not in (1, 2):
            got = f"indices {list(slots.shape)} and success {list(grades.shape)}"
            raise DataError(f"feedback: got {got}; [n] or [n, k] and [n] are needed")
        if not ((grades >= 0) & (grades <= 1)).all():
            raise DataError("feedback: success holds a value outside [0, 1]")
        grades = np.broadcast_to(grades.reshape(-1, *[1] * (slots.ndim - 1)), slots.shape).ravel()
        slots = slots.ravel()
        if ((slots < -1) | (slots >= self.config.capacity)).any():
            raise DataError(f"feedback: an index is outside [-1, {self.config.capacity - 1}]")
        keep = (slots >= 0) & self._used()[slots]
        if clock is not None:
            keep &= self.lifecycle.created[slots] <= clock
        self.lifecycle.tick()
        self.lifecycle.judge(slots[keep], grades[keep])
        self._refresh(np.unique(slots[keep]))
        return int(keep.sum())

    def remove(self, ids: Sequence[str]) -> int:
        """Remove entries; return how many were there. Raises `StoreError` in evaluation."""
        self._check_writable()
        slots = [self._slots[id] for id in dict.fromkeys(ids) if id in self._slots]
        for slot in slots:
            entry = self.entries[slot]
            assert entry is not None
            del self._slots[entry.id]
            self.entries[slot] = None
        self._set(slots, torch.zeros(len(slots), self.config.key_dim), torch.zeros(len(slots), self.config.value_dim))
        self.lifecycle.clear(np.array(slots, np.int64))
        self._refresh(np.array(slots, np.int64))
        return len(slots)

    def prune(self, min_utility: float) -> list[str]:
        """Remove mature entries whose utility is below `min_utility`; return their ids. Raises `StoreError`."""
        self._check_writable()
        weak = self._used() & (self.lifecycle.stages() == Stage.MATURE) & (self.lifecycle.utility() < min_utility)
        ids = [entry.id for slot in np.flatnonzero(weak) if (entry := self.entries[slot]) is not None]
        self.remove(ids)
        return ids

    def reencode(self, encoder_id: str, encode_fn: Callable[[list[Any]], Any], *, batch_size: int = 256) -> Reencoded:
        """Make `encoder_id` the current encoder and encode the inputs of all other entries with it.

        Args:
            encode_fn: n inputs -> [n, key_dim] numbers. If it raises, nothing has changed.
            batch_size: inputs per call.

        Raises:
            DataError: it returns something else than finite, non-zero keys.
            StoreError: the memory is in evaluation.
        """
        self._check_writable()
        other = [(slot, entry) for slot, entry in enumerate(self.entries) if entry and entry.encoder_id != encoder_id]
        todo = [(slot, entry) for slot, entry in other if entry.input is not None]
        parts = []
        for start in range(0, len(todo), batch_size):
            inputs = [entry.input for _, entry in todo[start : start + batch_size]]
            part = self._matrix("encode_fn", encode_fn(inputs), self.config.key_dim)
            if len(part) != len(inputs) or not (part.norm(dim=-1) > 0).all():
                raise DataError(f"encode_fn: got {len(part)} keys for {len(inputs)} inputs, none of which may be zero")
            parts.append(nn.functional.normalize(part, dim=-1))
        self.encoder_id = encoder_id
        if todo:
            slots = [slot for slot, _ in todo]
            self._set(slots, torch.cat(parts), self.values[slots])
            for slot, entry in todo:
                self.entries[slot] = Entry(entry.id, entry.metadata, entry.input, encoder_id)
        self._refresh(np.arange(self.config.capacity))
        return Reencoded(len(todo), [entry.id for _, entry in other if entry.input is None])

    @contextmanager
    def writable(self) -> Iterator[None]:
        """Allow writes inside the block although the model around is in evaluation."""
        before, self.training = self.training, True
        try:
            yield
        finally:
            self.training = before

    def digest(self) -> str:
        """Return a digest of everything the memory holds, standing included: equal before and after an evaluation."""
        return key_value_state.digest(self)

    def check_integrity(self) -> list[str]:
        """Return what is wrong with the memory's inside; [] where nothing is."""
        return key_value_state.problems(self)

    def save(self, folder: str | Path) -> Path:
        """Write the memory to `folder` as safetensors and JSON; return where. Raises `StoreError`: the disk refuses."""
        return save_state(folder, key_value_state.KIND, *key_value_state.dump(self))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a memory that `save` wrote. Raises `CheckpointError`: absent, damaged or not one."""
        arrays, values = load_state(folder, key_value_state.KIND)
        with key_value_state.refuse_what_does_not_fit(folder):
            memory = cls(KeyValueConfig(**values["config"]), encoder_id=values["encoder_id"])
            key_value_state.fill(memory, arrays, values)
        return memory

    def _store(self, rows: list[Entry], keys: Tensor, values: Tensor) -> Written:
        self.lifecycle.tick()
        known = {entry.id for entry in rows if entry.id in self._slots}
        evicted, protected = self._make_room(len(rows) - len(known), keep=known)
        free = iter([slot for slot, entry in enumerate(self.entries) if entry is None])
        slots = [self._slots[entry.id] if entry.id in known else next(free) for entry in rows]
        fresh = [slot for slot, entry in zip(slots, rows, strict=True) if entry.id not in known]
        self.lifecycle.start(np.array(fresh, np.int64))
        self.lifecycle.touch(np.array(slots, np.int64))
        for slot, entry in zip(slots, rows, strict=True):
            self.entries[slot], self._slots[entry.id] = entry, slot
        self._set(slots, keys, values)
        self._refresh(np.array(slots, np.int64))
        return Written([entry.id for entry in rows], slots, len(known), evicted, protected)

    def _make_room(self, num: int, *, keep: set[str]) -> tuple[list[str], int]:
        """Evict what is too many, mature entries first, then the least useful, then the oldest."""
        too_many = len(self) + num - self.config.capacity
        if too_many <= 0:
            return [], 0
        protected = self.lifecycle.stages() != Stage.MATURE
        utility, created = self.lifecycle.utility(), self.lifecycle.created
        slots = [slot for slot, entry in enumerate(self.entries) if entry is not None and entry.id not in keep]
        slots.sort(key=lambda slot: (protected[slot], utility[slot], created[slot], slot))
        going = slots[:too_many]
        ids = [entry.id for slot in going if (entry := self.entries[slot]) is not None]
        num_protected = int(protected[going].sum())
        self.remove(ids)
        return ids, num_protected

    def _record(self, found: Retrieval) -> None:
        slots = found.indices[found.hits].cpu().numpy()
        self.lifecycle.retrieve(slots)
        self._refresh(np.unique(slots))

    @torch.inference_mode(False)  # tensors made in inference mode could never be read with gradients
    def _set(self, slots: list[int], keys: Tensor, values: Tensor) -> None:
        # Out of place, here and below: a graph that backward() has still to walk may hold the old tensor.
        at = torch.tensor(slots, device=self.keys.device, dtype=torch.long)
        self.keys = self.keys.index_copy(0, at, keys.to(self.keys))
        self.values = self.values.index_copy(0, at, values.to(self.values))

    @torch.inference_mode(False)
    def _refresh(self, slots: np.ndarray) -> None:
        """Bring what `read` uses of the standing of `slots` up to date."""
        used = self._used()[slots]
        valid = [self._may_be_read(int(slot)) for slot in slots]
        strength = np.where(used, self.lifecycle.strength(slots), 1.0)
        at, device = torch.as_tensor(slots, device=self.keys.device), self.keys.device
        self.valid = self.valid.index_copy(0, at, torch.tensor(valid, dtype=torch.bool, device=device))
        self.log_strength = self.log_strength.index_copy(0, at, torch.as_tensor(np.log(strength)).to(self.log_strength))
        learning = used & (self.lifecycle.stages(slots) == Stage.LEARNING)
        self.learning = self.learning.index_copy(0, at, torch.as_tensor(learning, device=device))

    def _may_be_read(self, slot: int) -> bool:
        entry = self.entries[slot]
        return entry is not None and not (self.config.exclude_stale and self._is_stale(entry))

    def _is_stale(self, entry: Entry) -> bool:
        return entry.encoder_id != self.encoder_id

    def _used(self) -> np.ndarray:
        return self.lifecycle.created > 0

    def _slot(self, id: str) -> int:
        if id not in self._slots:
            raise DataError(f"the memory has no entry {id!r}")
        return self._slots[id]

    def _check_writable(self) -> None:
        if not self.training:
            raise StoreError("the memory is read-only in evaluation; call train(), or use `with memory.writable():`")

    def _matrix(self, name: str, given: Any, dim: int) -> Tensor:
        return check_matrix(name, given, dim, device=self.keys.device)
