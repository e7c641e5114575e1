"""A text that was read, as a chain of immutable arrays that processes can share.

A segment holds what reading added behind its parent's mark. A mark is a place where reading can be taken up again: it
has copies of sinks and local part there, and the number of far blocks. `Recorder` writes segments and reads on from
them; `Prefixes` keeps them.

Shapes: L layers, R layers that retrieve, K key-value heads, N far tokens, S tokens, D head size.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_FORMAT = "hsokv segments 1"


class TokenDigest:
    """The digest of a text's token ids as one model reads them with one layout."""

    def __init__(self, model_digest: str, layout: dict[str, Any]) -> None:
        facts = json.dumps([_FORMAT, model_digest, layout], sort_keys=True)
        self._sha = hashlib.sha256(f"{facts}\n".encode())

    def update(self, token_ids: Sequence[int] | np.ndarray) -> None:
        """Take the next token ids."""
        self._sha.update(np.asarray(token_ids, dtype="<i8").tobytes())

    def hexdigest(self) -> str:
        """Return the digest of the ids so far."""
        return self._sha.copy().hexdigest()


def prefix_digests(
    model_digest: str, layout: dict[str, Any], token_ids: Sequence[int] | np.ndarray, ends: Sequence[int]
) -> list[str]:
    """Return the digest of `token_ids[:end]` for each of the ascending `ends`, reading the ids once.

    Args:
        layout: `layout_of(settings)`.
    """
    digest, done, digests = TokenDigest(model_digest, layout), 0, []
    for end in ends:
        assert done <= end <= len(token_ids), f"ends {list(ends)} for {len(token_ids)} tokens"
        digest.update(token_ids[done:end])
        digests.append(digest.hexdigest())
        done = end
    return digests


@dataclass(frozen=True)
class Mark:
    """A place where reading can be taken up."""

    num_tokens: int
    """From the beginning of the whole text."""
    digest: str
    """Of these tokens; see `prefix_digests`."""
    counts: dict[str, int]
    """length, position, origin and num_first of a row; blocks: far blocks from the beginning of the text."""

    @property
    def num_blocks(self) -> int:
        return self.counts["blocks"]


@dataclass(frozen=True, eq=False)
class Segment:
    """What reading added between the parent's mark, or the beginning, and the last of its own marks."""

    parent: str | None
    """Digest of the mark it begins at; None: the beginning of the text."""
    begin: int
    """Tokens before it."""
    first_block: int
    """Far blocks before it."""
    marks: tuple[Mark, ...]
    """Ascending, at least one."""
    dtype: str
    """Torch's name of the type of sinks and local parts."""
    far_dtype: str
    index: str
    """Kind of the indexes."""
    arrays: dict[str, np.ndarray]
    """token_ids [end - begin] int64; far.keys, far.values [R, K, N, D]; index.R.name: state of the index over them;
    sinks.M, local.M [2, L, K, S, D]: keys and values at mark number M. numpy has no bfloat16: int16 stands for it."""

    def __post_init__(self) -> None:
        for array in self.arrays.values():
            array.flags.writeable = False

    def __reduce__(self) -> tuple[Any, ...]:
        return Segment.of, (self.meta(), self.arrays)

    def __len__(self) -> int:
        return self.end - self.begin

    @property
    def digest(self) -> str:
        """The last mark's."""
        return self.marks[-1].digest

    @property
    def end(self) -> int:
        """Tokens up to the last mark."""
        return self.marks[-1].num_tokens

    @property
    def token_ids(self) -> np.ndarray:
        """[end - begin] int64."""
        return self.arrays["token_ids"]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def mark(self, digest: str | None) -> Mark | None:
        """Return the mark with this digest."""
        return next((mark for mark in self.marks if mark.digest == digest), None)

    def meta(self) -> dict[str, Any]:
        """Return everything but the arrays, fit for JSON."""
        names = ("parent", "begin", "first_block", "dtype", "far_dtype", "index")
        return {name: getattr(self, name) for name in names} | {"marks": [asdict(mark) for mark in self.marks]}

    @classmethod
    def of(cls, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> "Segment":
        """Return the segment with this `meta()` and these arrays, which are not copied."""
        facts = {name: value for name, value in meta.items() if name != "marks"}
        return cls(**facts, marks=tuple(Mark(**mark) for mark in meta["marks"]), arrays=arrays)


@dataclass(frozen=True, eq=False)
class Encoded:
    """A text that was read: its segments, root first, up to one mark of the last of them."""

    segments: tuple[Segment, ...]
    mark: Mark

    def __post_init__(self) -> None:
        block, parent = 0, None
        for segment, mark in self.parts():
            assert segment.parent == parent, (segment.parent, parent)
            assert segment.first_block == block, (segment.first_block, block)
            block, parent = mark.num_blocks, mark.digest

    def __len__(self) -> int:
        """Return the number of tokens."""
        return self.mark.num_tokens

    @property
    def digest(self) -> str:
        return self.mark.digest

    @property
    def token_ids(self) -> np.ndarray:
        """[len] int64."""
        return np.concatenate([segment.token_ids[: mark.num_tokens - segment.begin] for segment, mark in self.parts()])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays of all segments."""
        return sum(segment.nbytes for segment in self.segments)

    def parts(self) -> Iterator[tuple[Segment, Mark]]:
        """Yield each segment with the mark up to which the text uses it."""
        for number, segment in enumerate(self.segments):
            is_last = number == len(self.segments) - 1
            mark = self.mark if is_last else segment.mark(self.segments[number + 1].parent)
            assert mark is not None, f"segment {number} has no mark {self.segments[number + 1].parent}"
            yield segment, mark


def fits(parent: Segment | None, child: Segment) -> bool:
    """Return whether `child` was read behind a mark that `parent` has; None: behind nothing."""
    if parent is None:
        return child.parent is None
    mark = parent.mark(child.parent)
    return mark is not None and (mark.num_tokens, mark.num_blocks) == (child.begin, child.first_block)
