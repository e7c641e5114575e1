"""Which segments are known, who continues whom, and which to let go first."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from hsokv_ray.longcontext.segments import Mark, Segment, fits

T = TypeVar("T")


@dataclass
class Entry(Generic[T]):
    """A known segment."""

    segment: Segment
    """The registry's have no arrays."""
    nbytes: int
    value: T
    parent: "Entry[T] | None"
    last_used: float
    num_children: int = 0
    is_pinned: bool = False


@dataclass(frozen=True)
class Found(Generic[T]):
    """A text that is known up to a mark."""

    entries: tuple[Entry[T], ...]
    """Root first."""
    mark: Mark


@dataclass
class SegmentTree(Generic[T]):
    """Segments by their marks. A parent stays as long as a child does."""

    nbytes: int = 0
    entries: OrderedDict[str, Entry[T]] = field(default_factory=OrderedDict)
    """By digest; the least recently used first, children before their parents."""
    _by_mark: dict[str, list[Entry[T]]] = field(default_factory=dict)

    def __contains__(self, digest: str) -> bool:
        """Return whether some segment has a mark with this digest."""
        return digest in self._by_mark

    def find(self, digests: Sequence[str], now: float) -> Found[T] | None:
        """Return the text that ends at the last of the marks that is known, and note that it was used."""
        known = next((digest for digest in reversed(digests) if digest in self._by_mark), None)
        if known is None:
            return None
        entry = self._by_mark[known][0]
        mark = entry.segment.mark(known)
        assert mark is not None, known
        self.touch(entry, now)
        return Found(tuple(reversed(list(_upwards(entry)))), mark)

    def add(self, segment: Segment, nbytes: int, value: T, now: float) -> bool:
        """Take a segment in; return False where nothing is known that it continues. Known ones are only touched."""
        entry = self.entries.get(segment.digest)
        if entry is None:
            parent = self._parent(segment)
            if parent is None and segment.parent is not None:
                return False
            entry = self._insert(Entry(segment, nbytes, value, parent, now))
        self.touch(entry, now)
        return True

    def touch(self, entry: Entry[T], now: float) -> None:
        """Note that the segment, and so those before it, were used."""
        for each in _upwards(entry):
            each.last_used = now
            self.entries.move_to_end(each.segment.digest)

    def text(self, digest: str) -> list[Entry[T]]:
        """Return the segments with this mark and all they continue; [] where there are none."""
        return [entry for marked in self._by_mark.get(digest, ()) for entry in _upwards(marked)]

    def pin(self, digest: str, pinned: bool) -> bool:
        """Keep the segments with this mark, or no longer; return whether there are any."""
        for entry in self._by_mark.get(digest, ()):
            entry.is_pinned = pinned
        return digest in self

    def evict(self, max_bytes: int, used_after: float) -> list[Entry[T]]:
        """Remove what was not used since, then the least recently used until the rest fits; pinned ones stay."""
        removed = []
        for entry in list(self.entries.values()):
            if self.nbytes <= max_bytes and entry.last_used > used_after:
                break
            if not entry.num_children and not entry.is_pinned:
                removed.append(self._remove(entry))
        return removed

    def drop(self, digest: str) -> list[Entry[T]]:
        """Remove the segments with this mark, what continues them, and what only they continued; pinned or not."""
        dropped = list(self._by_mark.get(digest, ()))
        before = [above for entry in dropped for above in list(_upwards(entry))[1:]]
        removed = self.forget([entry.segment.digest for entry in dropped])
        for entry in before:
            if entry.segment.digest in self.entries and not entry.num_children:
                removed.append(self._remove(entry))
        return removed

    def forget(self, digests: Sequence[str]) -> list[Entry[T]]:
        """Remove the segments with these digests and all that continue them."""
        lost = {digest for digest in digests if digest in self.entries}
        going = [
            entry for entry in self.entries.values() if any(above.segment.digest in lost for above in _upwards(entry))
        ]
        return [self._remove(entry) for entry in going]  # in their order, so children first

    def check_integrity(self) -> None:
        """Assert what must always hold."""
        assert self.nbytes == sum(entry.nbytes for entry in self.entries.values()), "bytes"
        order = {digest: number for number, digest in enumerate(self.entries)}
        children = dict.fromkeys(self.entries, 0)
        for digest, entry in self.entries.items():
            assert digest == entry.segment.digest, "keys are digests"
            assert all(entry in self._by_mark[mark.digest] for mark in entry.segment.marks), "every mark is known"
            assert fits(entry.parent and entry.parent.segment, entry.segment), "it continues its parent"
            if entry.parent is not None:
                parent = entry.parent.segment.digest
                assert self.entries[parent] is entry.parent, "the parent is known"
                assert order[parent] > order[digest], "children go first"
                children[parent] += 1
        assert children == {digest: entry.num_children for digest, entry in self.entries.items()}, "children"
        used = [entry.last_used for entry in self.entries.values()]
        assert used == sorted(used), "the least recently used first"
        num_marks = sum(len(entry.segment.marks) for entry in self.entries.values())
        assert num_marks == sum(map(len, self._by_mark.values())), "marks of known segments only"
        assert all(self._by_mark.values()), "no mark of nothing"

    def _parent(self, segment: Segment) -> Entry[T] | None:
        candidates = self._by_mark.get(segment.parent, ()) if segment.parent else ()
        return next((entry for entry in candidates if fits(entry.segment, segment)), None)

    def _insert(self, entry: Entry[T]) -> Entry[T]:
        self.entries[entry.segment.digest] = entry
        self.nbytes += entry.nbytes
        if entry.parent is not None:
            entry.parent.num_children += 1
        for mark in entry.segment.marks:
            self._by_mark.setdefault(mark.digest, []).append(entry)
        return entry

    def _remove(self, entry: Entry[T]) -> Entry[T]:
        assert not entry.num_children, entry.segment.digest
        del self.entries[entry.segment.digest]
        self.nbytes -= entry.nbytes
        if entry.parent is not None:
            entry.parent.num_children -= 1
        for mark in entry.segment.marks:
            self._by_mark[mark.digest].remove(entry)
            if not self._by_mark[mark.digest]:
                del self._by_mark[mark.digest]
        return entry


def _upwards(entry: Entry[T] | None) -> Iterator[Entry[T]]:
    """Yield a segment, its parent, and so on."""
    while entry is not None:
        yield entry
        entry = entry.parent
