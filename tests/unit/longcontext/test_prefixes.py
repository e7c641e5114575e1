"""A store of texts against a list of everything that was ever added, and under threads."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_segments import digests_of, encoded

from hsokv_ray.longcontext.prefixes import LocalPrefixes
from hsokv_ray.longcontext.segments import Encoded, Segment, fits

TEXTS = st.lists(st.integers(0, 1), min_size=1, max_size=5)


class Reference:
    """Every segment in a list, the least recently used first; what goes is found by looking at all of them."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.segments: list[Segment] = []
        self.inserted: list[Segment] = []
        self.parents: dict[Segment, Segment | None] = {}

    def chain(self, segment: Segment) -> list[Segment]:
        parent = self.parents[segment]
        return [*(self.chain(parent) if parent else []), segment]

    def use(self, segment: Segment) -> list[Segment]:
        chain = self.chain(segment)
        self.segments = [each for each in self.segments if each not in chain] + chain[::-1]
        return chain

    def find(self, digests: list[str]) -> list[int] | None:
        for digest in reversed(digests):
            for segment in self.inserted:
                if mark := segment.mark(digest):
                    return Encoded(tuple(self.use(segment)), mark).token_ids.tolist()
        return None

    def add(self, text: Encoded) -> None:
        for segment in text.segments:
            known = next((each for each in self.segments if each.digest == segment.digest), None)
            if known is None and not self.insert(segment):
                break
            self.use(known or segment)
        while sum(segment.nbytes for segment in self.segments) > self.max_bytes:
            leaf = next(each for each in self.segments if each not in map(self.parents.get, self.segments))
            self.segments.remove(leaf)
            self.inserted.remove(leaf)

    def insert(self, segment: Segment) -> bool:
        parent = next((each for each in self.inserted if segment.parent and fits(each, segment)), None)
        if segment.nbytes > self.max_bytes or (segment.parent and not parent):
            return False
        self.parents[segment] = parent
        self.segments.append(segment)
        self.inserted.append(segment)
        return True


@given(data=st.data())
def test_the_store_keeps_and_finds_what_a_list_of_everything_does(data: st.DataObject):
    max_bytes = data.draw(st.integers(8, 200), label="max_bytes")
    store, reference, texts = LocalPrefixes(max_bytes), Reference(max_bytes), []
    for _ in range(data.draw(st.integers(1, 25), label="steps")):
        if texts and data.draw(st.booleans(), label="find"):
            ids = data.draw(st.lists(st.integers(0, 1), max_size=12), label="ids")
            digests = digests_of(ids, range(1, len(ids) + 1))
            found, expected = store.find(digests), reference.find(digests)
            assert (None if found is None else found.token_ids.tolist()) == expected
            assert found is None or found.token_ids.tolist() == ids[: len(found)]
        else:
            after = data.draw(st.sampled_from([None, *texts]), label="after")
            if after is not None and data.draw(st.booleans(), label="in the middle"):
                after = Encoded(after.segments, data.draw(st.sampled_from(after.segments[-1].marks), label="mark"))
            ids = data.draw(TEXTS, label="new ids")
            texts.append(encoded(ids, marks=range(1, len(ids)), after=after, num_bytes=8))
            store.add(texts[-1])
            reference.add(texts[-1])
        store.check_integrity()
        assert store.digests() == [segment.digest for segment in reference.segments]
        assert store.stats().bytes == sum(segment.nbytes for segment in reference.segments)


def test_the_longest_known_prefix_is_found_and_cut_where_it_ends():
    store = LocalPrefixes(10_000)
    text = encoded(range(20), marks=[4, 8, 12])
    store.add(text)
    ids = [*range(9), 99, 98]
    found = store.find(digests_of(ids, [4, 8, 11]))
    assert found is not None
    assert found.token_ids.tolist() == list(range(8))
    assert found.segments == text.segments
    assert store.find(digests_of(ids, [3, 9])) is None
    assert store.find([]) is None
    assert (store.stats().hits, store.stats().misses) == (1, 2)


def test_a_text_too_large_is_refused_with_a_word_and_nothing_goes_for_it(caplog: pytest.LogCaptureFixture):
    store = LocalPrefixes(300)
    small, large = encoded([1, 2]), encoded([3], num_bytes=400)
    store.add(small)
    with caplog.at_level("WARNING"):
        store.add(large)
    [said] = caplog.messages
    assert "takes 4" in said
    assert "300; raise prefix_cache_bytes" in said
    assert store.find([small.digest]) is not None
    assert store.find([large.digest]) is None
    assert store.stats().refused == 1
    assert store.stats().evictions == 0


def test_a_text_brings_its_beginning_along_where_that_was_evicted():
    store = LocalPrefixes(1000)
    root = encoded([1, 2, 3])
    store.add(root)
    store.forget([root.digest])
    store.add(encoded([4], after=root))
    assert len(store.digests()) == 2
    store.check_integrity()


def test_a_parent_with_fewer_far_blocks_at_the_mark_is_no_parent():
    root = encoded(range(8), marks=[4])
    child = encoded([1], after=Encoded(root.segments, root.segments[0].marks[0])).segments[1]
    assert fits(root.segments[0], child)
    meta = root.segments[0].meta()
    meta["marks"][0]["counts"]["blocks"] += 1
    assert not fits(Segment.of(meta, {}), child)
    assert not fits(None, child)


def test_dropping_a_text_takes_what_continues_it_and_what_only_it_continued():
    store = LocalPrefixes(100_000)
    root = encoded([1, 2])
    middle = encoded([3], after=root)
    leaf, other = encoded([4], after=middle), encoded([5], after=root)
    for text in (leaf, other):
        store.add(text)
    store.drop(middle.digest)
    store.check_integrity()
    assert set(store.digests()) == {root.digest, other.digest}
    store.drop(other.digest)
    assert store.digests() == []


def test_a_segment_may_move_to_other_memory():
    store = LocalPrefixes(100_000)
    text = encoded([1, 2], num_bytes=100)
    store.add(text)
    [segment] = text.segments
    moved = Segment.of(segment.meta(), {name: array.copy() for name, array in segment.arrays.items()})
    store.swap(moved)
    found = store.find([text.digest])
    assert found is not None
    assert found.segments[0] is moved
    store.swap(encoded([7]).segments[0])
    assert store.stats().num_segments == 1


def test_another_segment_that_ends_at_the_same_mark_takes_no_place():
    store = LocalPrefixes(100_000)
    root = encoded([1, 2])
    text, whole = encoded([3], after=root), encoded([1, 2, 3])
    assert text.digest == whole.digest
    store.add(text)
    store.swap(whole.segments[0])
    found = store.find([text.digest])
    assert found is not None
    assert found.segments == text.segments
    store.check_integrity()


def test_of_many_that_claim_a_text_one_reads_it_and_the_others_find_it():
    store = LocalPrefixes(100_000)
    text = encoded([1, 2, 3])
    barrier, reads = threading.Barrier(8), []

    def get() -> Encoded | None:
        barrier.wait(10)
        if (found := store.find([text.digest])) is not None:
            return found
        if store.claim(text.digest, timeout_s=30):
            reads.append(threading.get_ident())
            store.add(text)
            store.release(text.digest)
        return store.find([text.digest])

    with ThreadPoolExecutor(8) as pool:
        found = [future.result(60) for future in [pool.submit(get) for _ in range(8)]]
    assert all(each is not None for each in found)
    assert len(reads) == 1


def test_a_claim_given_up_wakes_those_who_wait_and_can_be_claimed_again():
    store = LocalPrefixes(1000)
    assert store.claim("d", timeout_s=0)
    waiting = threading.Event()

    def wait() -> bool:
        waiting.set()
        return store.claim("d", timeout_s=60)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(wait)
        assert waiting.wait(30)
        store.release("d")
        if other.result(30):  # it came after the release
            store.release("d")
    assert store.claim("d", timeout_s=0)


def test_a_claim_never_released_holds_nobody_longer_than_asked():
    store = LocalPrefixes(1000)
    assert store.claim("d", timeout_s=0)
    begin = time.monotonic()
    assert not store.claim("d", timeout_s=0.05)
    assert time.monotonic() - begin >= 0.05


def test_many_threads_leave_the_store_whole():
    store = LocalPrefixes(2000)
    root = encoded(range(8), marks=[2, 4])
    texts = [
        encoded([number], after=Encoded(root.segments, mark)) for mark in root.segments[0].marks for number in range(20)
    ]

    def work(seed: int) -> None:
        for number in range(200):
            text = texts[(seed * 7 + number) % len(texts)]
            store.add(text)
            found = store.find([text.digest])
            assert found is None or found.token_ids.tolist() == text.token_ids.tolist()
            if number % 50 == 0:
                store.drop(text.digest)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work, seed) for seed in range(4)]:
            future.result(60)
    store.check_integrity()
