"""Chimera (Lazaridou, Marelli and Baroni 2017): nonces in 2, 4 or 6 sentences, with human similarity to probe words."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hsokv_ray.data.tasks.episodes import Episode, make_episode
from hsokv_ray.data.tasks.files import read_tsv, require
from hsokv_ray.data.tasks.words import BLANK, words
from hsokv_ray.errors import DataError

_HOW = (
    "give a folder with chimera.l2.fixed.train.txt and the like: id, sentences with ___ between @@, probes, ratings "
    "(https://github.com/NLPrinceton/ALaCarte, data-chimeras)"
)


@dataclass(frozen=True)
class Chimera:
    """One nonce, as it was shown and rated."""

    id: str
    sentences: tuple[str, ...]
    """With `___` for the nonce; two of all 1,320 are halves of sentences that have it in the other half."""
    probes: tuple[str, ...]
    """Words it was compared with, 5 or 6."""
    ratings: tuple[float, ...]
    """Mean human similarity to each probe, 1 to 5."""


def read_chimera(
    folder: str | Path, *, num_sentences: Literal[2, 4, 6], part: Literal["train", "test"]
) -> list[Chimera]:
    """Read the published `part` (220 and 110 nonces).

    Args:
        folder: holds the files, or a folder oneshot_words with them.

    Raises `DataError` where the file is missing or a row is damaged.
    """
    folder = Path(folder).expanduser()
    inner = folder / "oneshot_words"
    path = require(inner if inner.is_dir() else folder, f"chimera.l{num_sentences}.fixed.{part}.txt", how=_HOW)
    found = [_chimera(row, f"{path}:{i}") for i, row in enumerate(read_tsv(path, num_columns=4), start=1)]
    if not found:
        raise DataError(f"{path}: is empty; {_HOW}")
    return found


def chimera_episode(chimeras: list[Chimera], *, seed: int) -> Episode:
    """Return one episode: the first half of a nonce's sentences is its definition, the second half its context.

    Of nonces with the same probes, which stand for the same concept, one is drawn, so that only one answer is right.
    """
    rng = np.random.default_rng(seed)
    chosen = {chimeras[i].probes: chimeras[i] for i in rng.permutation(len(chimeras)).tolist()}
    halves = [_halves(chimera.sentences) for chimera in chosen.values()]
    return make_episode(
        [f"nonce {chimera.id}" for chimera in chosen.values()],
        [first for first, _ in halves],
        [[second] for _, second in halves],
        rng=rng,
    )


def _halves(sentences: tuple[str, ...]) -> tuple[str, str]:
    middle = len(sentences) // 2
    return " . ".join(sentences[:middle]), " . ".join(sentences[middle:])


def _chimera(row: list[str], where: str) -> Chimera:
    sentences = tuple(" ".join(text.split()) for text in row[1].split("@@"))
    probes = tuple(row[2].split(","))
    try:
        ratings = tuple(float(rating) for rating in row[3].split(","))
    except ValueError:
        raise DataError(f"{where}: a rating is no number ({row[3]!r}); {_HOW}") from None
    # Some published sentences were cut in two where they had no end, so that a half is without the nonce.
    if len(ratings) != len(probes) or not any(BLANK in words(text) for text in sentences):
        got = f"{len(probes)} probes, {len(ratings)} ratings, {len(sentences)} sentences"
        raise DataError(f"{where}: got {got}; a rating per probe and sentences with ___ are needed; {_HOW}")
    return Chimera(row[0], sentences, probes, ratings)
