"""The registry of published segments under a clock that the tests move."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from synthetic_segments import digests_of, encoded

from hsokv_ray.longcontext.segments import Encoded, Segment
from serve.segment_registry import LEASE_S, Chain, Published, SegmentRegistry

MAX_AGE_S = 100.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def published(segment: Segment) -> Published:
    return Published(segment.meta(), segment.nbytes, [f"ref of {segment.digest}"], "node")


def add_all(registry: SegmentRegistry, text: Encoded) -> list[bool]:
    return [registry.add(published(segment)) for segment in text.segments]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> SegmentRegistry:
    return SegmentRegistry(max_bytes=1000, max_age_s=MAX_AGE_S, clock=clock)


def found(registry: SegmentRegistry, digest: str) -> bool:
    return registry.find([digest]) is not None


def test_a_published_text_is_found_whole_up_to_the_longest_known_mark(registry: SegmentRegistry):
    root = encoded(range(6), marks=[2, 4])
    text = encoded([7, 8], marks=[1], after=root)
    assert add_all(registry, text) == [True, True]
    chain = registry.find(digests_of([*range(6), 7, 9], [2, 4, 6, 7, 8]))
    assert isinstance(chain, Chain)
    assert [part.digest for part in chain.segments] == [root.digest, text.digest]
    assert chain.digest == text.segments[1].marks[0].digest
    assert registry.missing([root.digest, "x"]) == ["x"]
    assert registry.find(["x", "y"]) is None
    assert (registry.stats()["hits"], registry.stats()["misses"]) == (1, 1)


def test_a_segment_whose_beginning_is_not_there_is_refused(registry: SegmentRegistry):
    text = encoded([7, 8], after=encoded(range(6)))
    assert not registry.add(published(text.segments[1]))
    assert registry.stats()["num_segments"] == 0


def test_a_segment_larger_than_everything_is_refused_and_evicts_nothing(registry: SegmentRegistry):
    small = encoded([1])
    add_all(registry, small)
    assert add_all(registry, encoded([2], num_bytes=2000)) == [False]
    assert found(registry, small.digest)


def test_room_is_made_by_what_was_not_used_longest_children_before_parents(registry: SegmentRegistry, clock: Clock):
    root = encoded([0], num_bytes=290)
    child = encoded([1], after=root, num_bytes=290)
    other = encoded([2], num_bytes=290)
    for text in (child, other):
        clock.now += 1
        add_all(registry, text)
    clock.now += 1
    add_all(registry, encoded([3], num_bytes=290))
    assert not found(registry, child.digest)
    assert found(registry, root.digest)
    assert found(registry, other.digest)
    assert registry.stats()["evictions"] == 1


def test_old_texts_go_at_the_next_beat_and_used_ones_stay(registry: SegmentRegistry, clock: Clock):
    old, used, asked = (encoded([number]) for number in range(3))
    for text in (old, used, asked):
        add_all(registry, text)
    clock.now += MAX_AGE_S - 1
    registry.beat("me", [], used=[used.digest], held=[])
    assert found(registry, asked.digest)
    clock.now += 2
    gone = registry.beat("me", [], used=[], held=[old.digest, used.digest, "never heard of"])
    assert gone == [old.digest]
    assert found(registry, used.digest)
    assert found(registry, asked.digest)


def test_a_pinned_text_and_its_beginning_outlast_room_and_age(registry: SegmentRegistry, clock: Clock):
    root = encoded([0], num_bytes=400)
    text = encoded([1], after=root, num_bytes=400)
    add_all(registry, text)
    assert registry.pin(text.digest)
    clock.now += 10 * MAX_AGE_S
    big = encoded([2], num_bytes=900)
    assert add_all(registry, big) == [False]  # there is no room beside what is pinned
    assert found(registry, text.digest)
    assert registry.unpin(text.digest)
    clock.now += 10 * MAX_AGE_S
    assert add_all(registry, big) == [True]
    assert not found(registry, root.digest)
    assert not registry.pin(root.digest)


def test_a_dropped_text_is_gone_even_pinned_and_holders_hear_of_it_until_it_is_back(registry: SegmentRegistry):
    root = encoded([0])
    text = encoded([1], after=root)
    add_all(registry, text)
    registry.pin(text.digest)
    assert registry.drop(text.digest) == 2
    held = [root.digest, text.digest]
    assert set(registry.beat("me", [], [], held)) == set(held)
    add_all(registry, root)
    assert registry.beat("me", [], [], held) == [text.digest]


def test_lost_arrays_take_what_continues_them_along(registry: SegmentRegistry):
    root = encoded([0])
    text, other = encoded([1], after=root), encoded([2], after=root)
    for each in (text, other):
        add_all(registry, each)
    assert registry.forget([text.digest]) == 1
    assert found(registry, other.digest)
    assert registry.forget([root.digest]) == 2
    assert registry.stats()["lost"] == 3


def test_a_claim_is_one_process_s_until_it_is_released_or_not_renewed(registry: SegmentRegistry, clock: Clock):
    assert registry.claim("d", "a") == "yours"
    assert registry.claim("d", "a") == "yours"
    assert registry.claim("d", "b") == "busy"
    clock.now += LEASE_S - 1
    registry.beat("a", ["d"], [], [])
    clock.now += LEASE_S - 1
    assert registry.claim("d", "b") == "busy"
    registry.release("d", "b")
    assert registry.claim("d", "b") == "busy"
    clock.now += 1
    assert registry.claim("d", "b") == "yours"
    registry.beat("a", ["d"], [], [])  # too late
    assert registry.claim("d", "a") == "busy"
    registry.release("d", "b")
    assert registry.claim("d", "a") == "yours"
    text = encoded([1])
    add_all(registry, text)
    assert registry.claim(text.digest, "b") == "there"


class Machine(RuleBasedStateMachine):
    """Anything in any order; a dict of claims, a set of pins and a list of times say what must hold."""

    texts: Bundle[Any] = Bundle("texts")

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.registry = SegmentRegistry(max_bytes=120, max_age_s=50, clock=self.clock)
        self.claims: dict[str, tuple[str, float]] = {}
        self.used: dict[str, float] = {}
        self.pinned: set[str] = set()

    @rule(target=texts, ids=st.lists(st.integers(0, 2), min_size=1, max_size=3))
    def begin_text(self, ids: list[int]) -> Encoded:
        return encoded(ids, marks=range(1, len(ids)), num_bytes=8)

    @rule(target=texts, after=texts, ids=st.lists(st.integers(0, 2), min_size=1, max_size=2))
    def go_on(self, after: Encoded, ids: list[int]) -> Encoded:
        return encoded(ids, after=after, num_bytes=8)

    @rule(text=texts)
    def add(self, text: Encoded) -> None:
        for segment in text.segments:
            if not self.registry.add(published(segment)):
                break
            self.used[segment.digest] = self.clock.now

    @rule(text=texts)
    def find(self, text: Encoded) -> None:
        chain = self.registry.find(digests_of(text.token_ids.tolist(), range(1, len(text) + 1)))
        if chain is not None:
            ids = Encoded(tuple(Segment.of(part.meta, {}) for part in chain.segments), self.mark(chain)).mark
            assert chain.digest == digests_of(text.token_ids.tolist(), [ids.num_tokens])[0]
            for part in chain.segments:
                self.used[part.digest] = self.clock.now

    @staticmethod
    def mark(chain: Chain) -> Any:
        mark = Segment.of(chain.segments[-1].meta, {}).mark(chain.digest)
        assert mark is not None
        return mark

    @rule(text=texts, pinned=st.booleans())
    def pin(self, text: Encoded, pinned: bool) -> None:
        done = self.registry.pin(text.digest) if pinned else self.registry.unpin(text.digest)
        (self.pinned.add if done and pinned else self.pinned.discard)(text.digest)

    @rule(text=consumes(texts))
    def drop(self, text: Encoded) -> None:
        self.registry.drop(text.digest)
        self.pinned = {digest for digest in self.pinned if self.registry._tree.entries.get(digest)}
        assert text.digest not in self.registry._tree

    @rule(text=texts, claimant=st.sampled_from("ab"))
    def claim(self, text: Encoded, claimant: str) -> None:
        holder, until = self.claims.get(text.digest, (claimant, 0.0))
        verdict = self.registry.claim(text.digest, claimant)
        if verdict == "there":
            assert text.digest in self.registry._tree
        elif verdict == "busy":
            assert holder != claimant
            assert until > self.clock.now
        else:
            assert holder == claimant or until <= self.clock.now
            self.claims[text.digest] = (claimant, self.clock.now + LEASE_S)

    @rule(text=texts, claimant=st.sampled_from("ab"))
    def release(self, text: Encoded, claimant: str) -> None:
        self.registry.release(text.digest, claimant)
        if self.claims.get(text.digest, ("", 0))[0] == claimant:
            del self.claims[text.digest]

    @rule(seconds=st.sampled_from([1.0, 10.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.registry.beat("c", [], [], [])
        for entry in self.registry._tree.entries.values():
            young = entry.last_used > self.clock.now - 50
            assert young or entry.is_pinned or entry.num_children, "what is old goes"

    @invariant()
    def it_is_whole(self) -> None:
        if not hasattr(self, "registry"):
            return
        self.registry.check_integrity()
        for digest, entry in self.registry._tree.entries.items():
            assert entry.last_used >= self.used.get(digest, 0)
        assert self.pinned <= {mark.digest for e in self.registry._tree.entries.values() for mark in e.segment.marks}


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRegistryInAnyOrder = Machine.TestCase


def test_what_is_pinned_over_http_takes_half_of_the_room_at_most() -> None:
    registry = SegmentRegistry(max_bytes=1000, max_age_s=100)
    first, second = encoded([0], num_bytes=300), encoded([1], num_bytes=300)
    assert add_all(registry, first) + add_all(registry, second) == [True, True]
    assert registry.pin_for("unknown", "a") == "absent"
    assert registry.pin_for(first.digest, "a") == "pinned"
    assert registry.pin_for(first.digest, "a") == "pinned", "it counts once"
    assert registry.pin_for(second.digest, "a") == "full"
    assert registry.stats()["num_pinned"] == 1
    assert registry.pin_for(first.digest, "b") == "pinned"
    registry.unpin_for(first.digest, "a")
    assert registry.stats()["num_pinned"] == 1, "another document needs it"
    registry.unpin_for(first.digest, "b")
    assert registry.stats()["num_pinned"] == 0
    assert registry.pin_for(second.digest, "a") == "pinned"
