"""What the memories of text return."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ID_BYTES = 16
TEXT = "text"
"""Key of a record's metadata that holds the text its vector was made from."""
ENCODER = "_encoder"
"""Key of a record's metadata that holds the fingerprint of the encoder that made its vector."""

Encode = Callable[[list[str]], np.ndarray]
"""n texts -> float32 [n, d]. One that has an attribute `fingerprint` (a string) is told apart from others."""


@dataclass(frozen=True)
class Memory:
    """One remembered text."""

    id: str
    text: str
    """As it was given."""
    score: float
    """Similarity to the query, larger is nearer; 1.0 where there was no query."""
    metadata: dict[str, Any] = field(default_factory=dict)


def stable_id(*parts: Any) -> str:
    """Return a digest of JSON values that is the same in every process."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=ID_BYTES).hexdigest()


def fingerprint_of(encoder: Encode | None) -> str:
    """Return what tells `encoder` apart from others; empty where it does not say."""
    return str(getattr(encoder, "fingerprint", ""))
