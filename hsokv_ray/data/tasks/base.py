"""Labelled examples and their splits; what every task of this package gives.

Digests are of content: of the input alone where splits are compared, of input and label where a whole set is named.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from hsokv_ray.errors import DataError

Kind = Literal["texts", "pairs", "tokens", "vectors", "images"]
Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_FORMS = {
    "texts": ("U", 1, "text [n]"),
    "pairs": ("U", 2, "text [n, 2]"),
    "tokens": ("iu", 2, "integers [n, tokens]"),
    "vectors": ("f", 2, "floats [n, dim]"),
    "images": ("u", 4, "uint8 [n, height, width, channels]"),
}


@dataclass(frozen=True, eq=False)
class Examples:
    """n inputs of one kind and their labels; the arrays are made read-only.

    Raises `DataError` where shapes or types do not fit, or a label is negative.
    """

    kind: Kind
    """What `inputs` holds."""
    inputs: np.ndarray
    """texts [n] str; pairs [n, 2] str; tokens int [n, T]; vectors float [n, D]; images uint8 [n, H, W, C]."""
    labels: np.ndarray
    """int64 [n], or [n, T] where every token has one (the next token of a text window)."""

    def __post_init__(self) -> None:
        types, num_axes, needed = _FORMS[self.kind]
        if self.inputs.dtype.kind not in types or self.inputs.ndim != num_axes:
            got = f"{self.inputs.dtype} {list(self.inputs.shape)}"
            raise DataError(f"inputs: got {got}; {self.kind} are {needed}")
        if self.labels.dtype != np.int64 or self.labels.shape not in (self.inputs.shape[:1], self.inputs.shape[:2]):
            got = f"{self.labels.dtype} {list(self.labels.shape)} for inputs {list(self.inputs.shape)}"
            raise DataError(f"labels: got {got}; int64, one for each of the {len(self.inputs)} inputs, are needed")
        if self.labels.size and self.labels.min() < 0:
            raise DataError(f"labels: got {self.labels.min()}; labels count from 0: give every example its label")
        self.inputs.setflags(write=False)
        self.labels.setflags(write=False)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def digest(self) -> str:
        """Hex digest of all inputs and labels, in their order."""
        whole = hashlib.blake2b("".join(self.digests()).encode(), digest_size=16)
        whole.update(np.ascontiguousarray(self.labels).tobytes())
        return whole.hexdigest()

    def digests(self) -> list[str]:
        """Return the hex digest of each input, without its label; texts are compared without case and spacing."""
        return [hashlib.blake2b(_content(row), digest_size=16).hexdigest() for row in self.inputs]

    def select(self, indices: np.ndarray | Sequence[int]) -> "Examples":
        """Return the examples at `indices` (integers or a mask [n]), in that order."""
        picked = np.asarray(indices)
        picked = picked.astype(np.int64) if picked.dtype != bool else picked
        return Examples(self.kind, self.inputs[picked], self.labels[picked])


def text_examples(texts: Sequence[str] | Sequence[tuple[str, str]], labels: Sequence[int]) -> Examples:
    """Return texts, or pairs of texts, with their labels as `Examples`."""
    kind: Kind = "pairs" if len(texts) and not isinstance(texts[0], str) else "texts"
    inputs = np.array(texts, dtype=np.str_) if len(texts) else np.empty(0, dtype="U1")
    return Examples(kind, inputs, np.asarray(labels, dtype=np.int64))


def check_labels(labels: np.ndarray, num_labels: int, *, where: str) -> None:
    """Raise `DataError` where a label is not in [0, `num_labels`); `where` names the data in the message."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_labels))
    if len(wrong):
        first = int(np.ravel(labels)[wrong[0]])
        raise DataError(
            f"{where}: label {first} of example {int(wrong[0])} is outside [0, {num_labels - 1}]; repair the data"
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Splits:
    """Train, validation and test of a task; no input occurs in two of them.

    Raises `DataError` where a label is out of range or an input occurs in two splits.
    """

    name: str
    num_labels: int
    train: Examples
    validation: Examples
    test: Examples
    source: str = ""
    """Where the examples come from, for tables."""

    def __post_init__(self) -> None:
        for split in SPLITS:
            check_labels(self.of(split).labels, self.num_labels, where=f"{self.name} {split}")
        check_disjoint(self)

    def of(self, split: Split) -> Examples:
        """Return one split by name."""
        return getattr(self, split)

    def texts(self) -> list[str]:
        """Return every text of every split, each once. Raises `DataError`: the inputs are no texts."""
        kind = self.train.kind
        if kind not in ("texts", "pairs"):
            raise DataError(f"texts: got {kind}; only texts and pairs of texts have them")
        return list(dict.fromkeys(text for split in SPLITS for text in self.of(split).inputs.ravel().tolist()))

    def with_vectors(self, encode: Callable[[list[str]], np.ndarray]) -> "Splits":
        """Return the splits with every text, or pair of texts, replaced by a vector.

        Args:
            encode: n texts -> [n, D] numbers. A pair u, v becomes [u, v, |u - v|, u * v] (InferSent, Conneau et al.
                2017, section 3.1).
        """
        changed = {split: _vectors(self.of(split), encode) for split in SPLITS}
        return dataclasses.replace(self, **changed)


class Task(Protocol):
    """A labelled task."""

    @property
    def name(self) -> str:
        """Short name, for tables."""
        ...

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        ...

    def splits(self, seed: int) -> Splits:
        """Return train, validation and test as `seed` draws them; the test set is the same for every seed."""
        ...


def check_disjoint(splits: Splits) -> None:
    """Raise `DataError` where an input occurs in two splits, whatever its labels."""
    digests = {split: set(splits.of(split).digests()) for split in SPLITS}
    for i, first in enumerate(SPLITS):
        for second in SPLITS[i + 1 :]:
            if shared := digests[first] & digests[second]:
                raise DataError(
                    f"{splits.name}: {len(shared)} inputs occur in both {first} and {second}; "
                    f"remove them from {first} with without_inputs_of()"
                )


def without_inputs_of(examples: Examples, *others: Examples) -> Examples:
    """Return `examples` less those whose input occurs in one of `others`."""
    taken = {digest for other in others for digest in other.digests()}
    return examples.select(np.array([digest not in taken for digest in examples.digests()], dtype=bool))


def _content(row: np.ndarray | str) -> bytes:
    if isinstance(row, str):
        return " ".join(row.casefold().split()).encode("utf-8", "surrogatepass")
    if row.dtype.kind == "U":
        # The separator is no character of a text, so that (ab, c) and (a, bc) differ.
        return b"\xff".join(_content(str(text)) for text in row)
    return np.ascontiguousarray(row).tobytes()


def _vectors(examples: Examples, encode: Callable[[list[str]], np.ndarray]) -> Examples:
    if examples.kind == "texts":
        vectors = np.asarray(encode(examples.inputs.tolist()), dtype=np.float32)
    elif examples.kind == "pairs":
        u, v = (np.asarray(encode(examples.inputs[:, i].tolist()), dtype=np.float32) for i in range(2))
        vectors = np.concatenate([u, v, np.abs(u - v), u * v], axis=1)
    else:
        raise DataError(f"with_vectors: got {examples.kind}; only texts and pairs of texts can be encoded")
    return Examples("vectors", vectors, examples.labels)
