"""A key-value memory of labelled examples of a stream, within a number of bytes.

Which examples stay is decided by a reservoir over what the write policy lets through, so that early tasks keep their
share; the memory's own rule, which evicts what is mature and was not used of late, would give them up first.

Shapes: B queries, N examples, K key_dim, L labels, C slots.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hsokv_ray.memory.config import KeyValueConfig, LifecycleConfig
from hsokv_ray.memory.key_value import KeyValueMemory
from hsokv_ray.memory.retrieval import Retrieval, retrieve
from hsokv_ray.models.kv_statistics import memory_bytes
from hsokv_ray.swarm.learners import packing
from hsokv_ray.swarm.learners.replay import NOWHERE, Reservoir

_FLOAT_BYTES = 4


class ClassMemory:
    """Keys beside the one-hot direction of their label.

    Args:
        num_bytes: for keys and values together, as float32.
        key_dim: K.
        num_labels: L, the width of a value.
        threshold: cosine below which an entry is no hit.

    Raises:
        ConfigError: the bytes do not hold one entry.
    """

    def __init__(self, num_bytes: int, key_dim: int, num_labels: int, *, threshold: float) -> None:
        self.reservoir = Reservoir(num_bytes // (_FLOAT_BYTES * (key_dim + num_labels)))
        self.num_labels = num_labels
        self._places: list[str] = []
        # No boost for the new and no entry that speaks alone: a new task's entries count like those of an old one.
        self.entries = KeyValueMemory(
            KeyValueConfig(
                key_dim=key_dim,
                value_dim=num_labels,
                capacity=self.reservoir.capacity,
                threshold=threshold,
                learning_recall="blend",
                exclude_stale=False,
                lifecycle=LifecycleConfig(boost=1.0),
            )
        )

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def num_bytes(self) -> int:
        """Bytes of the keys and values that are held."""
        return memory_bytes(self.entries)

    @property
    def num_compared(self) -> int:
        """Keys that a query is compared with; an empty memory has one empty slot."""
        return max(len(self.entries), 1)

    def labels(self) -> Tensor:
        """Return the label of each slot, int64 [C]; 0 in an empty one."""
        return self.entries.values.argmax(-1)

    def read(self, queries_BK: Tensor, top_k: int, *, but: Sequence[int | None] = ()) -> Retrieval:
        """Return what lies near each query; nothing is counted, for no entry's fate hangs on it.

        Args:
            but: a slot per query which it does not see (an example is not to find itself); empty: all see all.
        """
        end = self.num_compared
        valid = self.entries.valid[:end]
        if any(slot is not None for slot in but):
            own = torch.tensor([-1 if slot is None else slot for slot in but])
            valid = valid & (own[:, None] != torch.arange(end))
        return retrieve(
            queries_BK,
            self.entries.keys[:end],
            self.entries.values[:end],
            valid_C=valid,
            log_strength_C=self.entries.log_strength[:end],
            alone_C=torch.zeros(end, dtype=torch.bool),
            top_k=top_k,
            temperature=self.entries.config.temperature,
            threshold=self.entries.config.threshold,
        )

    def offer(self, keys_NK: Tensor, labels_N: Tensor, ids: Sequence[str], rng: np.random.Generator) -> None:
        """Show new examples, none of which is held; the reservoir keeps some in the place of others."""
        places = self.reservoir.offer(len(ids), rng)
        kept: dict[int, int] = {}
        for row, place in enumerate(places.tolist()):
            if place != NOWHERE:
                kept[place] = row  # of two that are given the same place the later stays
        self.entries.remove([self._places[place] for place in kept if place < len(self._places)])
        self._places += [""] * (len(self.reservoir) - len(self._places))
        for place, row in kept.items():
            self._places[place] = ids[row]
        self.write(keys_NK, labels_N, ids, sorted(kept.values()))

    def write(self, keys_NK: Tensor, labels_N: Tensor, ids: Sequence[str], rows: list[int]) -> None:
        """Store the examples in `rows`; one that is held gets its new key."""
        if not rows:
            return
        values = F.one_hot(labels_N[rows], self.num_labels).float()
        facts = [{"label": int(labels_N[row])} for row in rows]
        self.entries.write(keys_NK.detach()[rows], values, ids=[ids[row] for row in rows], metadata=facts)

    def sample(self, num: int, rng: np.random.Generator) -> list[int]:
        """Return up to `num` different slots in use."""
        return rng.permutation(len(self))[:num].tolist()

    def slots_of(self, ids: Sequence[str]) -> list[int | None]:
        """Return the slot of each id; None for one that is not held."""
        return self.entries.slots_of(ids)

    def tensors(self) -> dict[str, Tensor]:
        """Return the arrays."""
        return packing.memory_tensors(self.entries)

    def values(self) -> dict[str, Any]:
        """Return what is JSON."""
        memory = packing.memory_values(self.entries)
        return {"memory": memory, "places": list(self._places), "num_seen": self.reservoir.num_seen}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take over what `tensors` and `values` returned. Raises `CheckpointError`: it is not sound."""
        self.entries = packing.load_memory(tensors, values["memory"])
        self._places, self.reservoir.num_seen = list(values["places"]), values["num_seen"]
