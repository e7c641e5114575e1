"""A folder of vectors that somebody else has made, in an encoder's place.

    write_vectors("vectors/sst2", texts, vectors)                         # texts: each once; vectors: float32 [n, D]
    encoder = open_encoder("vectors:vectors/sst2")                        # of hsokv_ray.memory.encoders
    encoder.encode(texts[:2])                                             # rows 0 and 1, bit for bit

The folder holds vectors.npy, float32 [n, D], and texts.jsonl, whose line i is {"text": ...} for row i. A text is looked
up as it is, letter by letter. The texts a task asks for are `task.splits(seed).texts()`.

Shapes: N stored vectors, D dim.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hsokv_ray.errors import DataError

VECTORS, TEXTS = "vectors.npy", "texts.jsonl"
_ROWS = 65_536
"""Rows looked at at a time."""


class StoredVectors:
    """An encoder that knows the texts of a folder, and no others.

    Args:
        folder: with vectors.npy, which stays on disk, and texts.jsonl.

    Raises:
        DataError: a file is missing or damaged, or the two do not fit.
    """

    max_tokens = 2**31

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder).expanduser()
        self._vectors_ND = _read_vectors(self._folder / VECTORS)
        self._row_of = _read_texts(self._folder / TEXTS, len(self._vectors_ND))
        self.dim = self._vectors_ND.shape[1]
        self.fingerprint = self._fingerprint()

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Return the words of each text: what made the vectors is not known."""
        return [len(text.split()) for text in texts]

    def encode(self, texts: list[str]) -> np.ndarray:
        """Return float32 [n, dim]. Raises `DataError`: a text has no vector."""
        self.require(texts)
        return np.array(self._vectors_ND[[self._row_of[text] for text in texts]])

    __call__ = encode

    def require(self, texts: list[str]) -> None:
        """Raise `DataError` where a text has no vector."""
        unknown = [text for text in dict.fromkeys(texts) if text not in self._row_of]
        if not unknown:
            return
        others = f" and {len(unknown) - 1} others" if len(unknown) > 1 else ""
        raise DataError(
            f"{self._folder}: no vector for {_short(unknown[0])}{others}; texts are looked up letter by letter among "
            f"{len(self._row_of)}: write a folder that has all of them"
        )

    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(json.dumps([*self._row_of, self.dim]).encode(), digest_size=8)
        for rows in _in_parts(self._vectors_ND):
            digest.update(rows.tobytes())
        return digest.hexdigest()


def write_vectors(folder: str | Path, texts: Sequence[str], vectors: np.ndarray) -> None:
    """Write a folder for `open_encoder("vectors:FOLDER")`.

    Args:
        folder: made if missing.
        texts: n, each once.
        vectors: numbers [n, D], written as float32.

    Raises:
        DataError: they do not fit, a number is not finite, or the folder holds vectors already.
    """
    folder = Path(folder).expanduser()
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused below
        vectors_ND = np.asarray(vectors, np.float32)
    _check_shape(vectors_ND, "vectors")
    _check_count(len(texts), len(vectors_ND), "texts")
    _rows_of(texts, "texts")
    _check_finite(vectors_ND, "vectors")
    if found := [name for name in (VECTORS, TEXTS) if (folder / name).exists()]:
        raise DataError(f"{folder}: got a folder with {found[0]} in it; give a new one, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / VECTORS, vectors_ND, allow_pickle=False)
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    (folder / TEXTS).write_text("".join(lines), encoding="utf-8")


def _read_vectors(path: Path) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"{path}: no such file; make the folder with hsokv_ray.memory.stored_vectors.write_vectors")
    try:
        vectors_ND = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: cannot be read ({reason}); an array that numpy.save wrote is needed") from None
    if not isinstance(vectors_ND, np.ndarray) or vectors_ND.dtype != np.float32:
        got = vectors_ND.dtype if isinstance(vectors_ND, np.ndarray) else "several arrays"
        raise DataError(f"{path}: got {got}; one array of float32 is needed: save it as such")
    _check_shape(vectors_ND, str(path))
    _check_finite(vectors_ND, str(path))
    return vectors_ND


def _read_texts(path: Path, num_vectors: int) -> dict[str, int]:
    if not path.is_file():
        raise DataError(f'{path}: no such file; a line {{"text": ...}} for each row of {VECTORS} is needed')
    texts = []
    for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), start=1):
        try:
            texts.append(json.loads(line)["text"])
        except (ValueError, KeyError, TypeError):
            raise DataError(f'{path}:{number}: got {_short(line)}; {{"text": ...}} is needed') from None
    _check_count(len(texts), num_vectors, str(path))
    return _rows_of(texts, str(path))


def _rows_of(texts: Sequence[str], what: str) -> dict[str, int]:
    """Return text -> row. Raises `DataError`: one is no text, or occurs twice."""
    row_of: dict[str, int] = {}
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"{what}: row {row} has {_short(text)}; a text is needed")
        if row_of.setdefault(text, row) != row:
            raise DataError(f"{what}: rows {row_of[text]} and {row} have the same text {_short(text)}; keep one")
    return row_of


def _check_shape(vectors: np.ndarray, what: str) -> None:
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise DataError(f"{what}: got shape {list(vectors.shape)}; [n, dim], neither of them 0, is needed")


def _check_count(num_texts: int, num_vectors: int, what: str) -> None:
    if num_texts != num_vectors:
        raise DataError(f"{what}: got {num_texts} texts for {num_vectors} vectors; one for each vector is needed")


def _check_finite(vectors_ND: np.ndarray, what: str) -> None:
    for part, rows in enumerate(_in_parts(vectors_ND)):
        wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(wrong):
            row = part * _ROWS + int(wrong[0])
            raise DataError(f"{what}: row {row} has a number that is not finite in float32; make its vector anew")


def _in_parts(vectors_ND: np.ndarray) -> Iterator[np.ndarray]:
    for begin in range(0, len(vectors_ND), _ROWS):
        yield np.ascontiguousarray(vectors_ND[begin : begin + _ROWS])


def _short(value: object) -> str:
    whole = repr(value)
    return whole if len(whole) <= 60 else f"{whole[:57]}..."
