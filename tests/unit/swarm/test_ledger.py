"""The ledger against a plain dict of all charges."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.errors import ConfigError, RunError
from hsokv_ray.swarm.ledger import KINDS, Ledger

CHARGES = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(0, 100), st.sampled_from(KINDS)), max_size=30
)


@given(charges=CHARGES)
def test_every_attempt_counts_once_and_further_attempts_count_as_repeated(charges: list) -> None:
    ledger = Ledger(None)
    seen: dict[tuple[str, int], tuple[str, int]] = {}
    for agent, attempt, flops, kind in charges:
        key = (f"a{agent}.1", attempt)
        new = ledger.charge(*key, flops, kind)
        assert new == (key not in seen)
        if new:
            again = any(order == key[0] for order, _ in seen)
            seen[key] = ("repeated" if again else kind, flops)
    for kind in KINDS:
        assert ledger.totals[kind] == sum(flops for each, flops in seen.values() if each == kind)
    assert ledger.spent == sum(flops for _, flops in seen.values())
    copy = Ledger(None)
    copy.load(json.loads(json.dumps(ledger.to_json())))
    assert copy.to_json() == ledger.to_json()
    assert not any(copy.charge(order, attempt, 1, "useful") for order, attempt in seen)


def test_an_order_is_closed_once_its_account_has_a_newer_one() -> None:
    ledger = Ledger(100)
    assert ledger.charge("a1.9", 1, 10, "useful")
    assert ledger.charge("a1.10", 1, 10, "useful")
    assert not ledger.charge("a1.9", 1, 10, "useful")
    assert not ledger.charge("a1.9", 2, 10, "useful")
    assert ledger.charge("a11.9", 1, 10, "useful")
    assert (ledger.spent, ledger.remaining) == (30, 70)


def test_its_memory_grows_with_accounts_and_not_with_orders() -> None:
    ledger = Ledger(None)
    for number in range(1000):
        ledger.charge(f"a0.{number}", 1, 1, "useful")
    assert ledger.to_json()["last"] == {"a0": [999, [1]]}
    assert ledger.spent == 1000


def test_a_budget_below_one_step_is_refused_with_the_minimum() -> None:
    with pytest.raises(ConfigError, match="got 999.*at least 1000"):
        Ledger(999, minimum=1000)
    assert Ledger(1000, minimum=1000).remaining == 1000


@pytest.mark.parametrize(("flops", "kind"), [(-1, "useful"), (1, "stolen")])
def test_nonsense_is_refused(flops: int, kind: str) -> None:
    with pytest.raises(RunError):
        Ledger(10).charge("a0.1", 1, flops, kind)  # pyright: ignore
