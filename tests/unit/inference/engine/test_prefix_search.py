"""Of requests with one beginning, one reads it and the others wait."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from hsokv_ray.inference.engine import Engine
from hsokv_ray.inference.engine.prefix_search import Found, search
from hsokv_ray.longcontext.prefixes import LocalPrefixes
from hsokv_ray.longcontext.segments import Encoded


@pytest.fixture
def known(engine: Engine, text: list[int]) -> tuple[list[str], Encoded]:
    """Digests of the text's first 64, 128 and 192 tokens, and the first 128 encoded."""
    served = engine.served
    digests = served.digests(engine.encode(text[:192]).result(60).token_ids, [64, 128, 192], served.settings)
    return digests, engine.encode(text[:128]).result(60)


def always() -> bool:
    return True


def test_what_nobody_knows_is_claimed_from_its_beginning(known: tuple[list[str], Encoded]):
    digests, _ = known
    store = LocalPrefixes(10**9)
    assert search(store, digests, always) == Found(None, digests[0])
    assert not store.claim(digests[0], 0)


def test_behind_what_is_known_the_next_part_is_claimed(known: tuple[list[str], Encoded]):
    digests, encoded = known
    store = LocalPrefixes(10**9)
    store.add(encoded)
    found = search(store, digests, always)
    assert found.encoded is not None
    assert found.encoded.digest == digests[1]
    assert found.claim == digests[2]
    assert search(store, digests[:2], always).claim is None


@pytest.mark.parametrize("adds", [True, False])
def test_a_claim_is_waited_for_until_it_is_released(known: tuple[list[str], Encoded], adds: bool):
    digests, encoded = known
    store, results = LocalPrefixes(10**9), []
    first = search(store, digests, always)
    thread = threading.Thread(target=lambda: results.append(search(store, digests, always)))
    thread.start()
    if adds:
        store.add(encoded)
    assert first.claim is not None
    store.release(first.claim)
    thread.join(30)
    assert [found.claim for found in results] == [digests[2] if adds else digests[0]]


def test_a_search_that_is_not_wanted_any_more_ends_and_claims_nothing(known: tuple[list[str], Encoded]):
    digests, _ = known
    store, looks = LocalPrefixes(10**9), iter([True, True, False])
    assert store.claim(digests[0], 0)
    assert search(store, digests, lambda: next(looks)) == Found()


def test_a_store_that_contradicts_itself_is_not_asked_for_ever(known: tuple[list[str], Encoded]):
    class Contradicting(LocalPrefixes):
        num_claims = 0

        def claim(self, digest: str, timeout_s: float) -> bool:
            self.num_claims += 1
            return False

        def find(self, digests: Sequence[str]) -> Any:
            return None

    store = Contradicting(10**9)
    assert search(store, known[0], always) == Found()
    assert store.num_claims < 20
