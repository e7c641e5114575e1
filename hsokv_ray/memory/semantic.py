"""SemanticMemory: texts with vectors and metadata for the long term, in any vector store.

    with open_store("faiss:memory/facts") as store:
        facts = SemanticMemory(store, encoder=open_encoder("sentence-transformers:all-MiniLM-L6-v2"))
        facts.add(["Tea grows in Assam."], metadata=[{"topic": "tea"}])
        facts.search("where is tea grown?", top_k=3, filter={"topic": "tea"})

The text stands in the record's metadata under `text` and the encoder's fingerprint under `_encoder`, which is also what
`hsokv memory upsert --embed` writes: both open the same stores.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hsokv_ray.errors import DataError
from hsokv_ray.memory.records import ENCODER, TEXT, Encode, Memory, fingerprint_of, stable_id
from hsokv_ray.memory.stores.base import FilterLike, VectorStore
from hsokv_ray.memory.stores.filters import field
from hsokv_ray.memory.stores.types import Hit, Metadata, Record


class SemanticMemory:
    """Texts in `store`, which stays the caller's to close.

    Args:
        store: where they are kept.
        encoder: turns texts into vectors; None where callers bring vectors.
    """

    def __init__(self, store: VectorStore, encoder: Encode | None = None) -> None:
        self.store = store
        self.encoder = encoder
        self._encoder_fits = False

    def add(
        self,
        texts: Sequence[str],
        vectors: Any = None,
        metadata: Sequence[Metadata] | None = None,
        ids: Sequence[str] | None = None,
        *,
        encoder_ids: Sequence[str] | None = None,
    ) -> list[str]:
        """Store texts durably; return their ids. An id that is there already is replaced.

        Args:
            texts: n strings, kept as they are.
            vectors: [n, d] numbers; None: what the encoder makes of the texts.
            metadata: n JSON objects without the keys `text` and `_encoder`.
            ids: n strings; default: digests of text and metadata, so that adding again stores nothing twice.
            encoder_ids: fingerprints of the encoders that made `vectors`; "" where not known.

        Raises:
            DataError: something cannot be stored, or other texts here have vectors of another encoder.
            StoreError: the store cannot take it.
        """
        if isinstance(texts, str):
            raise DataError("texts: got one string; a sequence of strings is needed")
        if bad := next((text for text in texts if not isinstance(text, str)), None):
            raise DataError(f"texts: got a {type(bad).__name__}; strings are needed")
        facts = [dict(each) for each in metadata] if metadata is not None else [{} for _ in texts]
        for name, given in {"metadata": facts, "ids": ids, "encoder_ids": encoder_ids}.items():
            if given is not None and len(given) != len(texts):
                raise DataError(f"{name}: got {len(given)} for {len(texts)} texts; one per text is needed")
        if taken := next((key for each in facts for key in (TEXT, ENCODER) if key in each), None):
            raise DataError(f"metadata: the key {taken!r} is this memory's own; use another name")
        names = list(ids) if ids is not None else [stable_id(*pair) for pair in zip(texts, facts, strict=True)]
        if vectors is None:
            vectors, encoder_ids = self._encode(texts), [fingerprint_of(self.encoder)] * len(texts)
        marks = [{ENCODER: id} if id else {} for id in encoder_ids or [""] * len(texts)]
        rows = [{TEXT: text} | each | mark for text, each, mark in zip(texts, facts, marks, strict=True)]
        self.store.upsert(names, vectors, rows)
        return names

    def search(self, query: Any, top_k: int = 5, filter: FilterLike = None) -> list[Memory]:
        """Return the `top_k` nearest of the memories that pass `filter`, nearest first.

        Args:
            query: a text, where there is an encoder, or a vector [d].
            top_k: at least 1.
            filter: over the metadata; `text` is a key as any other.

        Raises `DataError` for a query or filter that does not fit.
        """
        vector = self._encode([query])[0] if isinstance(query, str) else query
        [hits] = self.store.query(np.asarray(vector).reshape(1, -1), top_k, filter)
        return [_memory(hit, hit.score) for hit in hits]

    def get(self, ids: Sequence[str]) -> list[Memory | None]:
        """Return the memories of `ids` in their order; None for one that is not there."""
        return [record and _memory(record, 1.0) for record in self.store.get(ids)]

    def delete(self, ids: Sequence[str] | None = None, *, filter: FilterLike = None) -> int:
        """Delete the memories of `ids`, or all that pass `filter`; return how many there were."""
        return self.store.delete(ids, filter=filter)

    def count(self, filter: FilterLike = None) -> int:
        """Return how many memories pass `filter`."""
        return self.store.count(filter)

    @property
    def num_stale(self) -> int:
        """Memories whose vector is known to be another encoder's than this memory's."""
        if not (own := fingerprint_of(self.encoder)):
            return 0
        return self.store.count(field(ENCODER).exists() & (field(ENCODER) != own))

    def check_integrity(self) -> list[str]:
        """Return what is wrong with the stored records, reading them all; [] where nothing is."""
        dim, seen, texts, vectors, other = self.store.dim, set(), 0, 0, 0
        own = fingerprint_of(self.encoder)
        for record in self.store.records():
            seen.add(record.id)
            texts += not isinstance(record.metadata.get(TEXT), str)
            vectors += not _is_sound(record.vector, dim, self.store.metric == "cosine")
            other += bool(own) and record.metadata.get(ENCODER, own) != own
        count = self.store.count()
        found = {
            f"{texts} records without a text": texts,
            f"{vectors} vectors of the wrong dimensions or length, or not finite": vectors,
            f"{other} vectors of another encoder than this one ({own})": other,
            f"{len(seen)} records found where {count} are counted": len(seen) != count,
        }
        return [problem for problem, is_so in found.items() if is_so]

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        if self.encoder is None:
            raise DataError("this memory has no encoder; give vectors, or an encoder= to SemanticMemory")
        if not self._encoder_fits and (stale := self.num_stale):
            raise DataError(
                f"encoder: {stale} of the texts in this store have vectors of another encoder than this one "
                f"({fingerprint_of(self.encoder)}); use that encoder, or another store"
            )
        self._encoder_fits = True
        return self.encoder(list(texts))


def _memory(record: Hit | Record, score: float) -> Memory:
    facts = {key: value for key, value in record.metadata.items() if key not in (TEXT, ENCODER)}
    return Memory(record.id, str(record.metadata.get(TEXT, "")), score, facts)


def _is_sound(vector: np.ndarray, dim: int | None, at_unit_length: bool) -> bool:
    right = vector.ndim == 1 and len(vector) == dim and bool(np.isfinite(vector).all())
    return right and (not at_unit_length or abs(float(np.linalg.norm(vector)) - 1) < 1e-3)
