"""Near-duplicates in groups, each with one member that stands for it; the order of the input does not matter."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Group:
    """Near-duplicates."""

    medoid: str
    """The member that is nearest to all others in sum, of those within the similarity of every member."""
    members: tuple[str, ...]
    """All of them, the medoid included, in the order of their ids."""


def group_near_duplicates(ids: Sequence[str], vectors: np.ndarray, similarity: float) -> list[Group]:
    """Return groups in which every member has at least `similarity` with the group's medoid.

    Takes again and again the one with the largest sum of similarities over its remaining neighbours (ties: the smallest
    id) together with those neighbours. No chains: a and c do not share a group because both resemble b.

    Args:
        ids: n distinct ids.
        vectors: float [n, d] at unit length.
        similarity: cosine from which two are neighbours.
    """
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    names = [ids[i] for i in order]
    cosine = np.asarray(vectors, np.float64)[order] @ np.asarray(vectors, np.float64)[order].T
    near = np.where(cosine >= similarity, cosine, 0.0)
    np.fill_diagonal(near, 1.0)
    left, reach = np.ones(len(names), bool), near.sum(axis=1)
    groups = []
    while left.any():
        widest = int(
            np.where(left, reach, -np.inf).round(9).argmax()
        )  # rounded: the order of summation must not decide
        members = np.flatnonzero((near[widest] > 0) & left)
        medoid = _medoid(members, cosine, near)
        groups.append(Group(names[medoid], tuple(names[i] for i in members)))
        left[members] = False
        reach -= near[:, members].sum(axis=1)
    return groups


def _medoid(members: np.ndarray, cosine: np.ndarray, near: np.ndarray) -> int:
    inside = np.ix_(members, members)
    stands_for_all = (near[inside] > 0).all(axis=1)
    total = np.where(stands_for_all, cosine[inside].sum(axis=1), -np.inf).round(9)
    return int(members[total.argmax()])
