"""Segments that nobody read: real digests and marks over small arrays."""

from collections.abc import Sequence

import numpy as np

from hsokv_ray.longcontext.segments import Encoded, Mark, Segment, prefix_digests

BLOCK = 4


def digests_of(ids: Sequence[int], ends: Sequence[int]) -> list[str]:
    """Return the digests of prefixes as `encoded` makes them."""
    return prefix_digests("model", {}, ids, ends)


def encoded(ids: Sequence[int], marks: Sequence[int] = (), after: Encoded | None = None, num_bytes: int = 0) -> Encoded:
    """Return the text `ids` behind `after`, with marks after so many of its tokens and at its end.

    Args:
        num_bytes: of the new segment besides its ids.
    """
    before = [] if after is None else after.token_ids.tolist()
    ends = [len(before) + end for end in sorted({*marks, len(ids)})]
    digests = digests_of([*before, *ids], ends)
    segment = Segment(
        parent=None if after is None else after.digest,
        begin=len(before),
        first_block=0 if after is None else after.mark.num_blocks,
        marks=tuple(Mark(end, digest, {"blocks": end // BLOCK}) for end, digest in zip(ends, digests, strict=True)),
        dtype="float32",
        far_dtype="float32",
        index="flat",
        arrays={
            "token_ids": np.array(ids, np.int64),
            "far.keys": np.resize(np.arange(sum(ids), sum(ids) + 251).astype(np.uint8), num_bytes),
        },
    )
    return Encoded((*(() if after is None else after.segments), segment), segment.marks[-1])
