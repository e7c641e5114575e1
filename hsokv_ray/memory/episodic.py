"""EpisodicMemory: the latest interactions, in order, with their original text; beyond the capacity the oldest goes.

episodes = EpisodicMemory(capacity=1000, encoder=encode)
id = episodes.add("She prefers tea.", metadata={"user": "ada"})
episodes.recent(5)                       # newest first
episodes.search("what does she drink?", top_k=3)
episodes.save("memory/episodes")
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from hsokv_ray.errors import CheckpointError, DataError
from hsokv_ray.memory.records import Encode, Memory, fingerprint_of
from hsokv_ray.memory.snapshots import load_state, save_state
from hsokv_ray.memory.stores.checks import check_ids, check_top_k, check_vectors, encode_metadata

KIND = "episodic"


@dataclass(frozen=True)
class Episode:
    """One interaction."""

    id: str
    text: str
    metadata: dict[str, Any]
    time_s: float
    """When it was added, by the memory's clock; never earlier than the one before."""
    uses: int = 0
    """How often a search returned it."""
    last_used_s: float = 0.0
    """When it was last returned, else when it was added."""
    encoder_id: str = ""
    """Fingerprint of the encoder that made its vector; empty where that is not known."""


class EpisodicMemory:
    """A bounded, time-ordered memory in this process. Its methods may be called from several threads.

    Args:
        capacity: episodes held at most.
        encoder: turns texts into vectors; None where callers bring vectors.
        clock: seconds, any epoch; one that goes back is taken to stand still.
        new_id: makes the id of an episode; the default's never come twice, in any process.
    """

    def __init__(
        self,
        capacity: int,
        *,
        encoder: Encode | None = None,
        clock: Callable[[], float] = time.time,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        if capacity < 1:
            raise DataError(f"capacity: got {capacity}; at least 1 is needed")
        self.capacity = capacity
        self.num_dropped = 0
        """Episodes that made room for newer ones."""
        self._encoder, self._clock, self._new_id = encoder, clock, new_id
        self._lock = threading.RLock()
        self._episodes: dict[str, Episode] = {}
        self._vectors: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._episodes)

    def add(
        self, text: str, vector: Any = None, *, metadata: dict[str, Any] | None = None, id: str | None = None
    ) -> str:
        """Append an episode; return its id.

        Args:
            text: kept as it is.
            vector: [d] numbers; None: what the encoder makes of the text, or none at all without an encoder: such an
                episode is not searched.
            metadata: a JSON object.
            id: a new one by default.

        Raises:
            DataError: text, vector, metadata or id cannot be stored, or the id is there already.
        """
        _check_text(text)
        encode_metadata(metadata or {})
        encoder_id = ""
        if vector is None and self._encoder is not None:
            vector, encoder_id = self._encoder([text]), fingerprint_of(self._encoder)
        with self._lock:
            unit = None if vector is None else check_vectors(vector, metric="cosine", dim=self.dim, num_rows=1)[0]
            [name] = check_ids([self._new_id() if id is None else id])
            if name in self._episodes:
                raise DataError(f"id: {name!r} is in the memory already; leave it out, or remove that episode first")
            now = self._now()
            self._episodes[name] = Episode(name, text, dict(metadata or {}), now, 0, now, encoder_id)
            if unit is not None:
                self._vectors[name] = unit
            self._drop_oldest()
            return name

    @property
    def dim(self) -> int | None:
        """The d of the vectors; None while there are none."""
        return next((len(vector) for vector in self._vectors.values()), None)

    def search(self, query: Any, top_k: int = 3, *, count: bool = True) -> list[Memory]:
        """Return the episodes nearest to `query` by cosine, nearest first; of equals the newer one first.

        Args:
            query: a text, where there is an encoder, or a vector [d].
            top_k: at least 1.
            count: whether this is a use of what is returned. False in evaluation.

        Raises `DataError` for a query that does not fit.
        """
        top_k = check_top_k(top_k)
        vector = self._query_vector(query)
        with self._lock:
            if not self._vectors:
                return []
            [unit] = check_vectors(vector, metric="cosine", dim=self.dim, num_rows=1)
            ids = list(self._vectors)
            scores = np.stack(list(self._vectors.values())) @ unit
            order = np.lexsort((-np.arange(len(ids)), -scores))[:top_k]
            found = [(self._episodes[ids[i]], float(scores[i])) for i in order]
            if count:
                now = self._now()
                for episode, _ in found:
                    self._episodes[episode.id] = replace(episode, uses=episode.uses + 1, last_used_s=now)
        return [Memory(episode.id, episode.text, score, dict(episode.metadata)) for episode, score in found]

    def recent(self, num: int | None = None) -> list[Episode]:
        """Return the `num` newest episodes (None: all), newest first."""
        with self._lock:
            episodes = list(self._episodes.values())[::-1]
        return episodes if num is None else episodes[: max(num, 0)]

    def get(self, ids: Sequence[str]) -> list[Episode | None]:
        """Return the episodes of `ids` in their order; None for one that is not there."""
        with self._lock:
            return [self._episodes.get(id) for id in check_ids(ids)]

    def vectors(self, ids: Sequence[str]) -> list[np.ndarray | None]:
        """Return the vectors of `ids`, float32 [d] at unit length; None where there is none."""
        with self._lock:
            return [self._vectors.get(id) for id in check_ids(ids)]

    def remove(self, ids: Sequence[str]) -> int:
        """Remove exactly the episodes of `ids`; return how many were there."""
        with self._lock:
            there = [id for id in dict.fromkeys(check_ids(ids)) if id in self._episodes]
            for id in there:
                del self._episodes[id]
                self._vectors.pop(id, None)
            return len(there)

    def save(self, folder: str | Path) -> Path:
        """Write the memory to `folder`; return where. Raises `StoreError`: the disk refuses."""
        with self._lock:
            vectors = [self._vectors[id] for id in self._episodes if id in self._vectors]
            arrays = {"vectors": np.stack(vectors) if vectors else np.zeros((0, 0), np.float32)}
            values = {
                "capacity": self.capacity,
                "num_dropped": self.num_dropped,
                "episodes": [asdict(each) | {"vector": id in self._vectors} for id, each in self._episodes.items()],
            }
        return save_state(folder, KIND, arrays, values)

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> Self:
        """Read a memory that `save` wrote; `options` are those of the constructor beside the capacity.

        Raises `CheckpointError`: absent, damaged or not one.
        """
        arrays, values = load_state(folder, KIND)
        with _refused(folder):
            memory = cls(values["capacity"], **options)
            memory.num_dropped = values["num_dropped"]
            rows = iter(arrays["vectors"])
            for fields in values["episodes"]:
                has_vector = fields.pop("vector")
                memory._episodes[fields["id"]] = Episode(**fields)
                if has_vector:
                    memory._vectors[fields["id"]] = next(rows)
        if found := memory.check_integrity():
            raise CheckpointError(f"{folder} holds an episodic memory that is not sound: {'; '.join(found)}")
        return memory

    def check_integrity(self) -> list[str]:
        """Return what is wrong with the memory's inside; [] where nothing is."""
        with self._lock:
            episodes, vectors = list(self._episodes.values()), self._vectors
            found = []
            if len(episodes) > self.capacity:
                found.append(f"{len(episodes)} episodes in a capacity of {self.capacity}")
            if any(key != episode.id for key, episode in self._episodes.items()):
                found.append("an episode stands under an id that is not its own")
            if strays := vectors.keys() - self._episodes.keys():
                found.append(f"{len(strays)} vectors without an episode")
            if list(vectors) != [each.id for each in episodes if each.id in vectors]:
                found.append("vectors and episodes stand in different orders")
            times = [each.time_s for each in episodes]
            if times != sorted(times):
                found.append("episodes are not in the order of their times")
            if any(each.uses < 0 or each.last_used_s < each.time_s for each in episodes):
                found.append("an episode was used a negative number of times, or before it was added")
            lengths = np.array([np.linalg.norm(vector) for vector in vectors.values()])
            if len({len(vector) for vector in vectors.values()}) > 1 or not (np.abs(lengths - 1) < 1e-4).all():
                found.append("vectors differ in dimensions, or are not at unit length")
            return found

    def _query_vector(self, query: Any) -> Any:
        if not isinstance(query, str):
            return query
        if self._encoder is None:
            raise DataError("query: got a text, and this memory has no encoder; give a vector, or an encoder= to it")
        return self._encoder([query])

    def _now(self) -> float:
        newest = max((each.last_used_s for each in self._episodes.values()), default=-np.inf)
        return max(float(self._clock()), newest)

    def _drop_oldest(self) -> None:
        while len(self._episodes) > self.capacity:
            self.remove([next(iter(self._episodes))])
            self.num_dropped += 1


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise DataError(f"text: got {type(text).__name__}; a string is needed")
    encode_metadata({"text": text})


@contextmanager
def _refused(folder: str | Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise CheckpointError(f"{folder} is not an episodic memory ({error!r}); use another copy") from None
